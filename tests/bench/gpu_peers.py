#!/usr/bin/env python3
"""What transformers and PyTorch make of the shapes that `foresight bench --device cuda` measures.

    tests/bench/gpu_peers.py [--decode 1,64] [--train 8x1024] [--models m500,m1500] [--seconds 400]

Random weights of the shapes in app/bench_shapes.def; nothing is downloaded. Decode: the steps of a
greedy `generate` with a static cache under torch.compile (reduce-overhead, which records CUDA
graphs), at a context of 960 to 1088 tokens; the cache starts empty, which changes no time. Training:
cross entropy, SDPA, fused AdamW and clipping under torch.compile, in bf16 by autocast over fp32
weights, as ours has them. One JSON object a line, as soon as it is known. Compiling takes most of the
time: cases for which --seconds leave none are named and left out.
"""
import argparse
import contextlib
import json
import os
import re
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIELDS = ("layers", "width", "heads", "kv_heads", "ffn", "vocab")
CASE_SECONDS = 45  # that a case takes about, compiling included
CONTEXT, STEPS, WARMUP = 960, 64, 8


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="m500,m1500", help="%(default)s")
    parser.add_argument("--decode", default="1,64", help="batch sizes, '' for none (%(default)s)")
    parser.add_argument("--train", default="8x1024", help="sequences x length, '' for none (%(default)s)")
    parser.add_argument("--seconds", type=float, default=400, help="for all of it (%(default)s)")
    parser.add_argument("--device", default="cuda", help="%(default)s")
    parser.add_argument("--tiny", action="store_true", help="shape m1, short, uncompiled: to try this script")
    return parser.parse_args()


def shapes():
    """{name: {layers, width, ...}} of app/bench_shapes.def, the one table of shapes."""
    found = {}
    with open(os.path.join(ROOT, "app", "bench_shapes.def"), encoding="utf-8") as file:
        for name, values in re.findall(r"^SHAPE\((\w+), ([\d, ]+)\)$", file.read(), re.M):
            found[name] = dict(zip(FIELDS, map(int, values.split(","))))
    return found


def make_model(args, shape, dtype):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config
    config = Qwen2Config(
        num_hidden_layers=shape["layers"], hidden_size=shape["width"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"], vocab_size=shape["vocab"], max_position_embeddings=32768,
        tie_word_embeddings=True, attn_implementation="sdpa")
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def wait(args):
    if args.device == "cuda":
        import torch
        torch.cuda.synchronize()


def decode_rate(args, model, batch):
    """Tokens a second of the steps of a greedy generation."""
    import torch
    from transformers import StaticCache
    context, steps = (8, 4) if args.tiny else (CONTEXT, STEPS)
    cache = StaticCache(config=model.config, max_cache_len=context + WARMUP + 2 * steps)

    def step(ids, position):
        out = model(ids, past_key_values=cache, position_ids=position.expand(batch, 1),
                    cache_position=position, use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    compiled = step if args.tiny else torch.compile(step, mode="reduce-overhead", dynamic=False)
    ids = torch.ones((batch, 1), dtype=torch.long, device=args.device)
    position = torch.tensor([context], device=args.device)
    seconds = []
    with torch.no_grad():
        step(ids, position)  # makes the cache's memory, which a recorded graph may not
        for i in range(WARMUP + steps):
            wait(args)
            begin = time.perf_counter()
            ids = compiled(ids, position).clone()
            wait(args)
            if i >= WARMUP:
                seconds.append(time.perf_counter() - begin)
            position = position + 1
    return batch / statistics.median(seconds)


def train_rate(args, model, sequences, length):
    """Tokens a second of forward, backward, clipping and update."""
    import torch
    vocab = model.config.vocab_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=args.device == "cuda")
    inputs = torch.randint(vocab, (sequences, length), device=args.device)
    targets = torch.randint(vocab, (sequences * length,), device=args.device)

    def loss_of(inputs, targets):
        logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, vocab).float(), targets)

    compiled = loss_of if args.tiny else torch.compile(loss_of, dynamic=False)
    cast = torch.autocast(args.device, dtype=torch.bfloat16)
    seconds = []
    for i in range(7):
        wait(args)
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = compiled(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait(args)
        if i >= 2:
            seconds.append(time.perf_counter() - begin)
    return sequences * length / statistics.median(seconds)


def cases_of(args):
    """(what, model, batch or (sequences, length)), what is worth most first."""
    models = ["m1"] if args.tiny else args.models.split(",")
    for model in models:
        for batch in [int(text) for text in args.decode.split(",") if text]:
            yield "decode", model, batch
        if args.train:
            sequences, length = map(int, (args.train if not args.tiny else "2x16").split("x"))
            yield "train", model, (sequences, length)


def run_case(args, what, shape, size):
    import torch
    torch._dynamo.reset()
    model = make_model(args, shape, torch.bfloat16 if what == "decode" else torch.float32)
    if what == "decode":
        return decode_rate(args, model.eval(), size)
    return train_rate(args, model.train(), *size)


@contextlib.contextmanager
def emptied(args):
    """What a case held is given back, also after an error."""
    try:
        yield
    finally:
        import gc
        import torch
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def main():
    begin = time.time()
    args = read_arguments()
    os.environ.update(TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="1")
    import torch
    import transformers
    torch.set_float32_matmul_precision("high")
    table, failed = shapes(), 0
    peer = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
    for what, name, size in cases_of(args):
        batch = size if what == "decode" else 0
        row = {"what": what, "model": name, "batch": batch, "peer": peer}
        if time.time() - begin > args.seconds - CASE_SECONDS:
            print(f"{what} {name} {size}: left out, no time", file=sys.stderr, flush=True)
            continue
        try:
            with emptied(args):
                row["tokens_per_second"] = run_case(args, what, table[name], size)
        except Exception as error:  # pylint: disable=broad-except
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            failed = 1
        print(json.dumps(row), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
