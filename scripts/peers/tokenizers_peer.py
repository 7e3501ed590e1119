"""Encoding against the Rust `tokenizers` through its Python binding, one thread each."""
import glob
import os

from common import Missing, Worker, foresight, needs_module, result, say, take_turns

BYTES, DOCUMENT, BAR = 10_000_000, 4096, 3.0
# Where text lies on most machines, for whoever gives no file.
GATHER = {"english": ["/usr/share/doc/**/*.txt", "/usr/share/doc/**/copyright",
                      "/usr/share/common-licenses/*", "/usr/share/perl/**/*.pod"],
          "code": ["/usr/lib/python3*/**/*.py", "/usr/include/**/*.h"]}


def gather(args, kind):
    """10 MB of text of this machine in one file."""
    path = os.path.join(args.work, f"{kind}.txt")
    if os.path.exists(path):
        return path
    seen, parts, total = set(), [], 0
    for pattern in GATHER[kind]:
        for name in sorted(glob.glob(pattern, recursive=True)):
            if total >= BYTES or not os.path.isfile(name):
                continue
            with open(name, encoding="utf-8", errors="ignore") as file:
                text = file.read()
            if text and text not in seen:
                seen.add(text)
                parts.append(text)
                total += len(text.encode())
    if total < BYTES // 10:
        raise Missing(f"no {kind} text on this machine: give --{kind} FILE")
    with open(path, "wb") as file:
        file.write("".join(parts).encode()[:BYTES].decode(errors="ignore").encode())
    say(f"gathered {min(total, BYTES) / 1e6:.1f} MB into {path}")
    return path


def ours(args, folder, path):
    return foresight(args, "tokenizer", folder, "--file", path, "--bytes", str(BYTES),
                     "--document", str(DOCUMENT), "--runs", "1", "--json")


def run(args):
    needs_module(args, "tokenizers", "tokenizers")
    if not args.tokenizer:
        raise Missing("give --tokenizer FOLDER (one with a tokenizer.json), more than once if wished")
    for folder in args.tokenizer:
        for kind in ("english", "code"):
            path = getattr(args, kind) or gather(args, kind)
            worker = Worker(args, "tokenizers_worker.py",
                            {"folder": folder, "file": path, "bytes": BYTES, "document": DOCUMENT},
                            TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
            own, peer = take_turns(args.rounds, lambda f=folder, p=path: ours(args, f, p),
                                   worker.turn)
            if own[0]["tokens"] != peer[0]["tokens"]:
                say(f"{folder}, {kind}: {own[0]['tokens']} tokens, the peer has "
                    f"{peer[0]['tokens']}: the ids differ")
            yield result(args, {"what": "tokenizer",
                                "model": os.path.basename(os.path.abspath(folder)), "dtype": "-",
                                "case": kind, "peer": f"tokenizers {worker.about['version']}",
                                "unit": "MB/s"},
                         [turn["mbytes_per_second"] for turn in own],
                         [turn["mbytes_per_second"] for turn in peer], bar=BAR, order=0,
                         setting="encode_batch_fast, one thread")
            worker.close()
