#!/bin/bash
# foresight simulate: published systems within 15 % with at most two points fitted, the same options
# give the same result, size, laws that any such system obeys, unsound input.
set -u
foresight=$1
python3 - "$foresight" <<'PY'
import json, subprocess, sys

failed = 0

def simulate(*arguments):
    return subprocess.run([sys.argv[1], "simulate", *arguments], capture_output=True, text=True)

def rows(*arguments):
    done = simulate(*arguments, "--json")
    assert done.returncode == 0, (arguments, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])["rows"]

def check(holds, *what):
    global failed
    if not holds:
        failed = 1
        print("FAIL:", *what)

# --- published figures
for preset, count in (("areal_1.5b", 6), ("verl_7b", 5), ("olmo3_table23", 4)):
    found = rows("--preset", preset, "steps=8")
    check(len(found) == count, preset, len(found), "rows")
    check(sum(row["fitted"] for row in found) <= 2, preset, "more than two points fitted")
    for row in found:
        check(0.85 <= row["ratio"] <= 1.15, preset, row["row"], "ratio", row["ratio"])

# --- the same options, the same result; another seed, another
small = ["workers=3", "prompts_per_step=8", "samples_per_prompt=4", "max_running=16", "pass_s=0.01",
         "sequence_s=0.001", "length_median=100", "length_max=1000", "train_token_s=1e-4",
         "transfer_s=0.5", "resolution=1000"]
once = rows(*small)
check(once == rows(*small), "two runs differ")
check(once != rows(*small, "seed=2"), "the seed does nothing")

# --- laws: with eta 0 nothing is old and sides take turns; staleness stays within eta; each rung of
# the ladder is at least as fast as the one before
sync = rows(*small, "mode=static", "max_staleness=0")[0]
check(sync["staleness_max"] == 0 and sync["dropped"] == 0, "staleness without eta", sync)
check(sync["learner_idle"] + sync["rollout_idle"] >= 1 - 0.02, "both sides at once", sync)
for eta in (1, 2, 4):
    row = rows(*small, f"max_staleness={eta}")[0]
    check(row["staleness_max"] <= eta, "staleness above eta", eta, row)
ladder = [rows(*small, "max_staleness=2", "drop_stale=0", f"mode={mode}")[0]["tokens_per_second"]
          for mode in ("drain", "pause", "slots")]
ladder.insert(0, sync["tokens_per_second"])
check(all(a <= 1.02 * b for a, b in zip(ladder, ladder[1:])), "ladder", ladder)

# --- an engine's throughput alone, by hand: n sequences of one length, passes of known cost
row = rows("max_staleness=0", "mode=static", "prompts_per_step=4", "samples_per_prompt=4",
           "max_running=16", "prompt_tokens=1", "length_ratio=1", "length_median=200",
           "length_max=200", "resolution=200", "pass_s=0.01", "sequence_s=0.001", "train_s=1.8",
           "train_token_s=0")[0]
check(abs(row["step_seconds"] - (200 * (0.01 + 16 * 0.001) + 1.8)) < 1e-6, "known costs", row)

# --- 4,096 engines
big = rows("workers=4096", "prompts_per_step=512", "samples_per_prompt=16", "max_running=16",
           "steps=2", "warmup_steps=1", "resolution=64")
check(len(big) == 1, "4,096 engines")

# --- a sweep, and what is wrong is said
check([r["row"] for r in rows(*small, "--sweep", "max_staleness=0,1")] ==
      ["max_staleness=0", "max_staleness=1"], "sweep")
for arguments, words in ((["workrs=2"], "did you mean 'workers'"), (["workers=0"], "from 1 to"),
                         (["workers=nan"], "from 1 to"), (["mode=fast"], "expected static"),
                         (["--preset", "x"], "areal_1.5b"), (["kv_tokens=10"], "holds no sequence"),
                         (["mode=static", "max_running=4"], "holds no group"),
                         (["minibatches=5"], "no multiple"), (["--sweep", "workers"], "expected"),
                         (["workers"], "expected name=value")):
    done = simulate(*arguments)
    check(done.returncode == 2 and words in done.stderr, arguments, done.returncode, done.stderr)
sys.exit(failed)
PY
