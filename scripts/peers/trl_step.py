"""One synchronous GRPO step, generation to update, against TRL's GRPOTrainer on the same work.

Same on both sides: 64 prompts of 64 tokens, 8 samples each, every completion 128 tokens long (ours
knows no end-of-sequence id, theirs may not sample it), temperature 1, no other filter, a reward of
1 for a completion with a digit in it, GRPO without KL, one AdamW update of all 512 samples, fp32,
equal weights in kind (random) and number. Ours computes what TRL does not need: promise P1's own
log-probs while sampling; TRL computes no old log-probs, since it makes one update a batch.
"""
import json
import os
import random
import statistics
import time

from common import ROOT, Missing, Worker, needs_module, output_of, result, say, shapes, take_turns

MODEL = "m10"
PROMPTS, SAMPLES, PROMPT, NEW, ROWS = 64, 8, 64, 128, 256
BAR = 10.0


def config_json(shape):
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "num_hidden_layers": shape["layers"], "hidden_size": shape["width"],
            "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
            "intermediate_size": shape["ffn"], "vocab_size": shape["vocab"],
            "max_position_embeddings": 4096, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "initializer_range": 0.02, "use_sliding_window": False,
            "torch_dtype": "float32"}


def prepare(args):
    """A model folder and prompts; both sides read them."""
    folder = os.path.join(args.work, "trl")
    os.makedirs(folder, exist_ok=True)
    model, data = os.path.join(folder, "model"), os.path.join(folder, "prompts.jsonl")
    if os.path.exists(data):
        return folder, model, data
    task, shell = os.path.join(folder, "task"), os.path.join(folder, "shell")
    output_of([args.foresight, "task", "chain", task, "--train", "10", "--eval", "10"])
    os.makedirs(shell, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        with open(os.path.join(task, name), encoding="utf-8") as file:
            text = json.load(file)
        text.pop("eos_token", None)  # completions run to the limit
        with open(os.path.join(shell, name), "w", encoding="utf-8") as file:
            json.dump(text, file)
    with open(os.path.join(shell, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config_json(shapes()[MODEL]), file)
    output_of([args.foresight, "export", shell, model, "--random", "1", "--dtype", "fp32"])
    draw = random.Random(1)
    with open(data, "w", encoding="utf-8") as file:
        for _ in range(ROWS):
            prompt = "".join(draw.choice("0123456789+-*/=") for _ in range(PROMPT))
            file.write(json.dumps({"prompt": prompt, "answer": "1"}) + "\n")
    return folder, model, data


def ours(args, folder, model, data):
    """Samples a second of the steps after the first."""
    name = f"run_{time.time_ns()}"
    options = {
        "run.name": name, "run.dir": os.path.join(folder, "runs"), "run.steps": args.trl_steps + 1,
        "run.threads": args.threads, "model.path": model, "data.train": data,
        "data.max_prompt_length": PROMPT, "rollout.prompts_per_step": PROMPTS,
        "rollout.samples_per_prompt": SAMPLES, "rollout.max_completion_length": NEW,
        "rollout.max_running": args.trl_running, "rewards.functions": "format",
        "rewards.format_pattern": "[0-9]", "loss.loss_type": "grpo", "loss.beta": 0,
        "optimizer.learning_rate": 1e-6, "optimizer.updates_per_step": 1, "checkpoint.every": 0}
    output_of([args.foresight, "train"] + [f"{key}={value}" for key, value in options.items()],
              cwd=ROOT)
    with open(os.path.join(folder, "runs", name, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "step_time" in line][1:]
    short = [line for line in steps if line.get("completions/mean_length", NEW) != NEW]
    if not steps or short:
        raise Missing(f"our steps are not of {NEW} tokens a sample: see {folder}/runs/{name}")
    return PROMPTS * SAMPLES / statistics.median(line["step_time"] for line in steps)


def run(args):
    needs_module(args, "trl", "trl transformers datasets torch")
    folder, model, data = prepare(args)
    say("TRL: a step takes about two minutes on two cores")
    worker = Worker(args, "trl_worker.py",
                    {"model": model, "data": data, "prompts": PROMPTS, "samples": SAMPLES,
                     "new": NEW, "micro": args.trl_micro, "steps": args.trl_steps,
                     "threads": int(args.threads), "out": os.path.join(folder, "trl_out")})
    own, peer = take_turns(args.trl_rounds, lambda: ours(args, folder, model, data),
                           lambda: worker.turn()["samples_per_second"])
    yield result(args, {"what": "GRPO step", "model": MODEL, "dtype": "fp32",
                        "case": f"{PROMPTS} x {SAMPLES} samples of {NEW}",
                        "peer": f"TRL {worker.about['version']}", "unit": "samples/s"}, own, peer,
                 bar=BAR, setting="transformers generation, SDPA, fused AdamW", order=0)
    worker.close()
