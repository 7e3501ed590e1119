"""TRL's side of trl_step.py: waits for a line, makes a few GRPO steps, answers."""
import inspect
import json
import re
import statistics
import sys
import time


def reward(completions, **_):
    return [1.0 if re.search("[0-9]", text) else 0.0 for text in completions]


def read_rows(settings):
    from datasets import Dataset
    with open(settings["data"], encoding="utf-8") as file:
        return Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in file])


def make_config(settings):
    """Options by what this release knows of them."""
    from trl import GRPOConfig
    batch = settings["prompts"] * settings["samples"]
    wanted = {
        "output_dir": settings["out"], "per_device_train_batch_size": settings["micro"],
        "gradient_accumulation_steps": batch // settings["micro"],
        "num_generations": settings["samples"], "max_completion_length": settings["new"],
        "max_steps": settings["steps"], "num_iterations": 1, "beta": 0.0, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused", "max_grad_norm": 1.0, "bf16": False, "fp16": False,
        "gradient_checkpointing": False, "use_cpu": True, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "loss_type": "grpo", "use_vllm": False, "logging_steps": 1000,
        "generation_kwargs": {"min_new_tokens": settings["new"]}}
    known = inspect.signature(GRPOConfig.__init__).parameters
    return GRPOConfig(**{key: value for key, value in wanted.items() if key in known})


def make_trainer(settings, seconds):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOTrainer

    class Watch(TrainerCallback):
        """Seconds of each step, generation included."""
        begin = 0.0

        def on_step_begin(self, *_, **__):
            if not self.begin:  # on_step_begin comes once a step, before its generation
                self.begin = time.perf_counter()

        def on_step_end(self, *_, **__):
            now = time.perf_counter()
            seconds.append(now - self.begin)
            self.begin = now

        def on_train_begin(self, *_, **__):
            self.begin = time.perf_counter()

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=settings["model"] + "/tokenizer.json", eos_token="<|endoftext|>",
        pad_token="<|pad|>", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], attn_implementation="sdpa")
    return GRPOTrainer(model=model, reward_funcs=reward, args=make_config(settings),
                       train_dataset=read_rows(settings), processing_class=tokenizer,
                       callbacks=[Watch()])


def main():
    import torch
    import trl
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    print(json.dumps({"version": trl.__version__}), flush=True)
    batch = settings["prompts"] * settings["samples"]
    warm = False
    for _ in sys.stdin:
        seconds = []
        trainer = make_trainer(dict(settings, steps=settings["steps"] + (not warm)), seconds)
        trainer.train()
        counted = seconds if warm else seconds[1:]
        warm = True
        print(json.dumps({"samples_per_second": batch / statistics.median(counted)}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # pylint: disable=broad-except
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
        sys.exit(1)
