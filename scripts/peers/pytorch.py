"""A training step against PyTorch: the same shape, batch and number of threads."""
from common import Worker, foresight, needs_module, result, shapes, take_turns

TOKENS, SEQUENCE, CHOICES = 4096, 256, 2
BARS = {"m1": 5.0, "m10": 2.0, "m100": 1.2}


def ours(args, model, dtype):
    found = foresight(args, "train", "--model", model, "--dtype", dtype, "--tokens", str(TOKENS),
                      "--sequence", str(SEQUENCE), "--threads", args.threads, "--runs",
                      str(args.steps), "--json")
    return found["lines"][0]


def faster_worker(args, model):
    """The peer's better setting: plain or compiled."""
    best = None
    for compiled in (False, True):
        worker = Worker(args, "pytorch_worker.py",
                        {"shape": shapes()[model], "tokens": TOKENS, "sequence": SEQUENCE,
                         "steps": args.steps, "threads": int(args.threads), "compile": compiled})
        rate = max(worker.turn()["tokens_per_second"] for _ in range(CHOICES))
        if best is None or rate > best[0]:
            if best is not None:
                best[1].close()
            best = (rate, worker)
        else:
            worker.close()
    return best[1]


def run(args):
    needs_module(args, "torch", "torch")
    needs_module(args, "transformers", "transformers")
    for model in args.models:
        if model not in BARS:
            continue
        worker = faster_worker(args, model)
        for dtype in sorted(set(args.dtypes) - {"int8"}):  # of generation alone
            own, peer = take_turns(args.rounds, lambda d=dtype: ours(args, model, d), worker.turn)
            middle = sorted(own, key=lambda line: line["tokens_per_second"])[len(own) // 2]
            yield result(args, {"what": "train", "model": model, "dtype": dtype,
                                "case": f"{TOKENS // SEQUENCE} x {SEQUENCE}",
                                "peer": f"PyTorch {worker.about['version']}", "unit": "tokens/s"},
                         [line["tokens_per_second"] for line in own],
                         [turn["tokens_per_second"] for turn in peer],
                         bar=BARS[model] if dtype == "fp32" else None,
                         fma_share=middle["fma_share"], memory_ratio=middle["memory_ratio"],
                         setting=worker.about["setting"], order=0)
        worker.close()
