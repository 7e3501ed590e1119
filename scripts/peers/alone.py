"""Our own figures where no peer is: decode and prefill beside what the machine can do at best."""
from common import KV_TYPE, foresight, own_row

DECODE = {"m1": "1,8,32,64", "m10": "1,8,32,64", "m100": "1,8,32", "m500": "1,8"}
PREFILL = {"m1": 512, "m10": 512, "m100": 512, "m500": 128}


def run(args):
    for model in args.models:
        for dtype in args.dtypes:
            shared = ["--model", model, "--dtype", dtype, "--threads", args.threads, "--runs",
                      str(args.rounds), "--json"]
            for line in foresight(args, "decode", "--batch", args.batch or DECODE[model], "--kv",
                                  KV_TYPE, *shared)["lines"]:
                yield own_row(args, "decode", line, f"batch {line['batch']}")
            for line in foresight(args, "prefill", "--batch", "1", "--prompt",
                                  str(PREFILL[model]), "--kv", KV_TYPE, *shared)["lines"]:
                yield own_row(args, "prefill", line, f"1 x {line['prompt']}")
