"""Decode and prefill against llama.cpp's llama-batched-bench, on a model file made here."""
import json
import os
import shutil

from common import (KV_TYPE, Missing, foresight, needs_module, output_of, result, say, shapes,
                    take_turns)

PEER_TYPES = {"fp32": ["f32"], "bf16": ["bf16"], "int8": ["q8_0"]}
BATCHES = {"m1": "1,8,32,64", "m10": "1,8,32,64", "m100": "1,8,32,64", "m500": "1,8"}
PROMPT, NEW = 64, 128


def bar(model, dtype, batch):
    """The ratio aimed at, or None."""
    if model in ("m1", "m10"):
        return 3.0
    if model == "m100":
        return 1.5
    return {1: 1.3, 8: 1.5}.get(batch) if dtype == "bf16" else None


def model_file(args, model, kind):
    path = os.path.join(args.work, f"{model}_{kind}.gguf")
    if not os.path.exists(path):
        say(f"writing {path}")
        output_of([args.python, os.path.join(os.path.dirname(__file__), "gguf_writer.py"), path,
                   kind, json.dumps(shapes()[model])])
    return path


def batched_bench(args, path, batches, flash):
    """{batch: (decode tokens/s, prompt tokens/s)}"""
    most = max(map(int, batches.split(",")))
    out = output_of([args.llama, "-m", path, "-c", most * (PROMPT + NEW), "-b", 2048, "-ub", 512,
                     "-npp", PROMPT, "-ntg", NEW, "-npl", batches, "-t", args.threads, "-tb",
                     args.threads, "-fa", flash, "--output-format", "jsonl"])
    # other lines of its output may end where one of these starts
    lines = [json.loads(line[line.index("{"):]) for line in out.splitlines() if "{" in line]
    rates = {line["pl"]: (line["speed_tg"], line["speed_pp"]) for line in lines}
    if sorted(rates) != sorted(map(int, batches.split(","))):
        raise Missing(f"{args.llama} printed figures of batches {sorted(rates)}, not of {batches}")
    return rates


def ours(args, model, dtype, batches):
    found = foresight(args, "decode", "--model", model, "--dtype", dtype, "--kv", KV_TYPE,
                      "--batch", batches, "--prompt", PROMPT, "--new", NEW, "--threads",
                      args.threads, "--runs", "1", "--json")
    return {line["batch"]: line for line in found["lines"]}


def faster_flash(args, path, batches):
    """The peer's better setting: attention fused or not."""
    rate = {flash: sum(rate for rate, _ in batched_bench(args, path, batches, flash).values())
            for flash in ("on", "off")}
    return max(rate, key=rate.get)


def compare(args, model, dtype, kind):
    batches = args.batch or BATCHES[model]
    path = model_file(args, model, kind)
    flash = faster_flash(args, path, batches)
    own, peer = take_turns(args.rounds, lambda: ours(args, model, dtype, batches),
                           lambda: batched_bench(args, path, batches, flash))
    for batch in map(int, batches.split(",")):
        lines = [turn[batch] for turn in own]
        middle = sorted(lines, key=lambda line: line["tokens_per_second"])[len(lines) // 2]
        key = {"what": "decode", "model": model, "dtype": dtype, "case": f"batch {batch}",
               "peer": f"llama.cpp {kind}", "unit": "tokens/s"}
        yield result(args, key, [line["tokens_per_second"] for line in lines],
                     [turn[batch][0] for turn in peer], bar=bar(model, dtype, batch),
                     fma_share=middle["fma_share"], read_share=middle["read_share"],
                     memory_ratio=middle["memory_ratio"], setting=f"flash attention {flash}",
                     order=batch)
        key = dict(key, what="prefill", case=f"{batch} x {PROMPT}")
        yield result(args, key, [line["prompt_tokens_per_second"] for line in lines],
                     [turn[batch][1] for turn in peer], bar=None, setting=f"flash attention {flash}",
                     order=batch)


def run(args):
    args.llama = shutil.which(args.llama or "llama-batched-bench")
    if args.llama is None:
        raise Missing("llama-batched-bench is not there: build llama.cpp and give --llama PATH")
    needs_module(args, "numpy", "numpy gguf")
    for model in args.models:
        for dtype in args.dtypes:
            for kind in PEER_TYPES[dtype]:
                yield from compare(args, model, dtype, kind)
