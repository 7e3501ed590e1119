"""The PyTorch side of pytorch.py: waits for a line, makes some training steps, answers."""
import json
import statistics
import sys
import time


def make_model(shape):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    config = Qwen2Config(
        num_hidden_layers=shape["layers"], hidden_size=shape["width"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"], vocab_size=shape["vocab"], max_position_embeddings=32768,
        tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False)
    return Qwen2ForCausalLM(config).train()


def make_step(torch, settings):
    model = make_model(settings["shape"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    count = settings["tokens"] // settings["sequence"]
    vocab = settings["shape"]["vocab"]
    inputs = torch.randint(vocab, (count, settings["sequence"]))
    targets = torch.randint(vocab, (count * settings["sequence"],))

    def loss_of(inputs, targets):
        logits = model(input_ids=inputs).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, vocab), targets)

    forward = torch.compile(loss_of) if settings["compile"] else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        forward(inputs, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main():
    import torch
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(1)
    step = make_step(torch, settings)
    for _ in range(2):  # also compiles
        step()
    print(json.dumps({"version": torch.__version__, "setting": "torch.compile"
                      if settings["compile"] else "eager"}), flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(settings["steps"]):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        tokens = settings["tokens"] // settings["sequence"] * settings["sequence"]
        print(json.dumps({"tokens_per_second": tokens / statistics.median(seconds)}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # pylint: disable=broad-except
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
        sys.exit(1)
