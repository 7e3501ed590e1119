#!/bin/bash
# foresight bench decode, prefill, train and tokenizer on the smallest shape, on the CPU and on the
# emulated GPU: every figure is there and possible, and wrong options, too little memory and too few
# cores say so.
set -u
foresight=$1
source_dir=$(cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
"$foresight" task chain "$work/task" --train 10 --eval 10 >/dev/null || exit 1
python3 - "$foresight" "$work" "$source_dir" <<'PY'
import json, os, subprocess, sys

foresight, work, source = sys.argv[1:]
emulated = os.path.join(os.path.dirname(foresight), "foresight_emulated")
failed = 0

def bench(*arguments, before=(), program=foresight):
    return subprocess.run([*before, program, "bench", *arguments], capture_output=True, text=True)

def check(holds, *what):
    global failed
    if not holds:
        failed = 1
        print("FAIL:", *what)

def lines(name, *arguments, program=foresight):
    runs = "1" if program == emulated else "2"
    done = bench(name, *arguments, "--threads", "1", "--runs", runs, "--json", program=program)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    check(result["bench"] == name and result["threads"] == 1 and result["cpu"], name, result)
    return result["lines"]

def positive(line, *keys):
    for key in keys:
        check(line[key] > 0, key, line)

rates = ("tokens_per_second", "best_tokens_per_second", "prompt_tokens_per_second",
         "pass_microseconds", "peak_gflops", "read_gbytes_per_second", "fma_share", "read_share")
memory = ("weight_bytes", "kv_bytes", "peak_bytes", "memory_ratio")
decode = lines("decode", "--batch", "1,4", "--prompt", "20", "--new", "6", "--dtype", "fp32,bf16,int8")
check([(line["dtype"], line["batch"]) for line in decode] ==
      [(dtype, batch) for dtype in ("fp32", "bf16", "int8") for batch in (1, 4)], decode)
for line in decode:
    check((line["model"], line["prompt"], line["new"], line["runs"]) == ("m1", 20, 6, 2), line)
    positive(line, *rates, *memory)
    check(line["best_tokens_per_second"] >= line["tokens_per_second"], line)
check(decode[1]["kv_bytes"] == 4 * decode[0]["kv_bytes"], "4 sequences of 2 pages", decode)
shared = lines("decode", "--batch", "4", "--group", "4", "--prompt", "20", "--new", "6")[0]
check(shared["kv_bytes"] * 8 == decode[1]["kv_bytes"] * 5, "one page of the prompt shared", shared)
narrow = lines("decode", "--batch", "4", "--prompt", "20", "--new", "6", "--kv", "bf16")[0]
check(narrow["kv_bytes"] * 2 == decode[1]["kv_bytes"] and narrow["kv_dtype"] == "bf16", narrow)
prefill = lines("prefill", "--batch", "2", "--prompt", "40", "--chunk", "32")[0]
positive(prefill, *rates, *memory)
check(prefill["new"] == 1 and prefill["chunk"] == 32, prefill)

guessed = lines("speculation", "--batch", "1,4", "--group", "1", "--prompt", "20", "--new", "40",
                "--temperature", "0,1", "--speculation", "always")
check([(line["batch"], line["temperature"]) for line in guessed] ==
      [(1, 0), (1, 1), (4, 0), (4, 1)], guessed)
for line in guessed:
    positive(line, "plain_tokens_per_second", "tokens_per_second", "speedup", "tokens_per_pass")
check(guessed[0]["acceptance"] > 0.5 and guessed[0]["tokens_per_pass"] > 1.5, guessed[0])

train = lines("train", "--tokens", "128", "--sequence", "32", "--microbatch", "64")[0]
check((train["tokens"], train["sequence"], train["microbatch"]) == (128, 32, 64), train)
positive(train, "tokens_per_second", "best_tokens_per_second", "gflops", "peak_gflops",
         "read_gbytes_per_second", "fma_share", "forward_backward_seconds", "update_seconds",
         "footprint_bytes", "peak_bytes", "memory_ratio")
wide = lines("train", "--tokens", "2048", "--sequence", "128")[0]
check(0.8 < wide["memory_ratio"] < 1.3, "peak memory is the footprint and the process's own", wide)

gpu = ("--device", "cuda", "--dtype", "bf16", "--kv", "bf16")
there = lines("decode", *gpu, "--batch", "2", "--prompt", "4", "--new", "3", "--profile", program=emulated)[0]
positive(there, *rates, *memory, "empty_op_seconds")
ops = {op["op"]: op for op in there["ops"]}
check(ops["head_decode"]["n"] == 512 and ops["head_decode"]["flop"] == 2 * 2 * 512 * 128, ops)
check(ops["attention_forward"]["calls"] == 4 and "linear_forward_set" in ops, ops)
there = lines("train", *gpu, "--tokens", "16", "--sequence", "8", "--vocab", "96", "--profile",
              program=emulated)[0]
positive(there, "tokens_per_second", "peak_gflops", "fma_share", "peak_bytes", "beside_weights_bytes")
check(there["vocab"] == 96 and there["sheet_share"] == 0, there)
check({"adamw_pack", "attention_backward", "head_backward"} <= {op["op"] for op in there["ops"]}, there)

done = bench("tokenizer", f"{work}/task", "--bytes", "20000", "--runs", "2", "--json")
tokens = json.loads(done.stdout)
check(tokens["bytes"] == 20000 and 0 < tokens["tokens"] <= 20000, tokens)
positive(tokens, "mbytes_per_second", "best_mbytes_per_second", "tokens_per_second")
code = bench("tokenizer", f"{work}/task", "--text", "code", "--bytes", "5000", "--runs", "1")
check(code.returncode == 0 and "MB/s" in code.stdout, code.stdout, code.stderr)
done = bench("tokenizer", f"{work}/task", "--file", f"{source}/README.md", "--runs", "1", "--json")
check(0 < json.loads(done.stdout)["tokens"], done.stdout)

table = bench("decode", "--batch", "2", "--prompt", "8", "--new", "3", "--runs", "1", "--isa", "ref")
check(table.returncode == 0 and " ref," in table.stdout and "m1" in table.stdout, table.stdout)

cases = [
    ((), "usage", 2),
    (("decode", "--model", "m2"), "m1, m10, m100, m500", 2),
    (("decode", "--model", f"{work}/task"), "config.json", 2),
    (("decode", "--dtype", "int4"), "fp32, bf16, int8", 2),
    (("decode", "--device", "gpu"), "cpu or cuda", 2),
    (("train", "--profile"), "with --device cuda", 2),
    (("train", "--vocab", "0"), "expected 1 to", 2),
    (("decode", "--dtype", "fp32,"), "fp32, bf16, int8", 2),
    (("train", "--dtype", "int8"), "no training", 2),
    (("decode", "--kv", "int4"), "fp32 or bf16", 2),
    (("decode", "--batch", "1,x"), "--batch x: expected 1 to", 2),
    (("decode", "--batch", "0"), "expected 1 to", 2),
    (("decode", "--batch", "3", "--group", "2"), "groups of 2", 2),
    (("decode", "--bach", "3"), "--bach", 2),
    (("decode", "--isa", "x"), "expected ref", 2),
    (("speculation", "--temperature", "0,x"), "0 to 100", 2),
    (("speculation", "--speculation", "off"), "auto or always", 2),
    (("train", "--new", "3"), "--new", 2),
    (("train", "--tokens", "100"), "2 sequences", 2),
    (("train", "--runs", "1,2"), "one number", 2),
    (("decode", "--batch", "65536", "--prompt", "30000", "--threads", "1"), "are available", 1),
    (("train", "--tokens", "60000000", "--threads", "1"), "are available", 1),
    (("decode", "--batch", "64", "--new", "1", "--prompt", "256", "--runs", "1"), "raise --new", 1),
    (("tokenizer",), "usage", 2),
    (("tokenizer", f"{work}/task", "--text", "poem"), "english or code", 1),
    (("tokenizer", f"{work}/task", "--file", f"{work}/none"), "cannot be read", 1),
    (("tokenizer", f"{work}/none"), "tokenizer.json", 1),
]
for arguments, words, code in cases:
    done = bench(*arguments)
    check(done.returncode == code and words in done.stderr, arguments, done.returncode, done.stderr)
done = bench("train", "--threads", "2", before=("taskset", "-c", "0"))
check(done.returncode == 2 and "only 1 core(s)" in done.stderr, done.returncode, done.stderr)
sys.exit(failed)
PY
