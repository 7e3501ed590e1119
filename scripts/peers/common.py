"""What the comparisons share: shapes, running the program, taking turns, results."""
import json
import os
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.dirname(os.path.abspath(__file__))
FIELDS = ("layers", "width", "heads", "kv_heads", "ffn", "vocab")

KV_TYPE = "bf16"  # of our keys and values: 16 bits, as the peers' are by default


class Missing(Exception):
    """What a comparison needs and the machine lacks: said in one line, the others go on."""


def shapes():
    """{name: {layers, width, ...}} of app/bench_shapes.def, the one table of shapes."""
    found = {}
    with open(os.path.join(ROOT, "app", "bench_shapes.def"), encoding="utf-8") as file:
        for name, values in re.findall(r"^SHAPE\((\w+), ([\d, ]+)\)$", file.read(), re.M):
            found[name] = dict(zip(FIELDS, map(int, values.split(","))))
    return found


def parameters(shape):
    """Parameters of a shape: a tied embedding, biases on q, k and v."""
    width, head = shape["width"], shape["width"] // shape["heads"]
    qkv = shape["width"] + 2 * shape["kv_heads"] * head
    layer = qkv * (width + 1) + width * width + 3 * width * shape["ffn"] + 2 * width
    return shape["layers"] * layer + width + shape["vocab"] * width


def say(text):
    print(text, file=sys.stderr, flush=True)


def output_of(command, **options):
    """Standard output of a command; its error output where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise Missing(f"{os.path.basename(str(command[0]))} failed ({done.returncode}): "
                      + " | ".join(last))
    return done.stdout


def foresight(args, *arguments):
    """The JSON object that `foresight bench ...` prints last."""
    return json.loads(output_of([args.foresight, "bench", *arguments]).splitlines()[-1])


def needs_module(args, module, package):
    """A module of the Python that runs the peers."""
    done = subprocess.run([args.python, "-c", f"import {module}; print({module}.__version__)"],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"{args.python} has no {module}: pip install {package}")
    return done.stdout.strip()


class Worker:
    """A peer that stays alive between its turns: one line in, one JSON line out."""

    def __init__(self, args, script, settings, **environment):
        threads = str(args.threads)
        env = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads,
                   TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="1", **environment)
        self.process = subprocess.Popen(
            [args.python, os.path.join(HERE, script), json.dumps(settings)], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL)
        self.script = script
        self.about = self.answer()

    def answer(self):
        """The next line that is a JSON object (libraries print other things too)."""
        for line in self.process.stdout:
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                continue
            if "error" in found:
                raise Missing(f"{self.script}: {found['error']}")
            return found
        raise Missing(f"{self.script} ended early; --verbose shows what it says")

    def turn(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(rounds, ours, theirs):
    """[ours() ...], [theirs() ...], in turns, each first in every other round."""
    found = ([], [])
    for turn in range(rounds):
        sides = [(found[0], ours), (found[1], theirs)]
        for results, side in sides if turn % 2 == 0 else reversed(sides):
            results.append(side())
    return found


def own_row(args, what, line, case):
    """A row of ours alone, from a line of `foresight bench`."""
    row = {"what": what, "model": line["model"], "dtype": line["dtype"], "case": case, "peer": "-",
           "unit": "tokens/s", "ours": line["tokens_per_second"],
           "ours_best": line["best_tokens_per_second"], "rounds": line["runs"],
           "threads": args.threads, "date": time.strftime("%Y-%m-%d"), "cpu": args.cpu,
           "order": line["batch"], "fma_share": line["fma_share"],
           "memory_ratio": line["memory_ratio"]}
    if what == "decode":
        row["read_share"] = line["read_share"]
    say("{what} {model} {dtype} {case}: {ours:.1f} {unit}".format(**row))
    return row


def result(args, key, ours, theirs, **more):
    """One row: lists of rates of both, higher is better."""
    row = dict(key, ours=statistics.median(ours), theirs=statistics.median(theirs),
               ours_best=max(ours), theirs_best=max(theirs), rounds=len(ours),
               threads=args.threads, date=time.strftime("%Y-%m-%d"), cpu=args.cpu, **more)
    row["ratio"] = row["ours"] / row["theirs"]
    say("{what} {model} {dtype} {case}: {ours:.1f}, {peer} {theirs:.1f} {unit}: {ratio:.2f}"
        .format(**row))
    return row
