#!/bin/bash
# foresight bench async, in small and on the clock that other load does not move: every row is there
# with its figures, what must hold by construction holds, the prediction is near, wrong options say so.
set -u
foresight=$1
python3 - "$foresight" <<'PY'
import json, subprocess, sys

failed = 0

def bench(*arguments):
    return subprocess.run([sys.argv[1], "bench", *arguments], capture_output=True, text=True)

def check(holds, *what):
    global failed
    if not holds:
        failed = 1
        print("FAIL:", *what)

done = bench("async", "--quick", "--clock", "cpu", "--json")
assert done.returncode == 0, done.stderr
rows = {row["row"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
check(list(rows) == ["a", "b", "c", "d", "e"], list(rows))
for name, row in rows.items():
    check(row["tokens_per_second"] > 0 and row["pass_us"] > 0, name, row)
    check(0.5 < row["predicted_ratio"] < 2, name, "prediction", row["predicted_ratio"])
    check(row["learner_weight_wait"] < 0.005, name, "the learner waits for slots", row)
for name in "ab":  # in turns: one side idles while the other works, nothing is old
    check(0.9 < rows[name]["learner_idle"] + rows[name]["rollout_idle"] < 1.1, name, rows[name])
    check(rows[name]["staleness_mean"] == 0, name, "staleness")
for name in "cde":
    check(0 < rows[name]["staleness_mean"] <= 3, name, "staleness", rows[name])
    check(rows[name]["ratio"] > 1.2, name, "is not faster than taking turns", rows[name])
check(rows["a"]["bytes_per_update"] > 0 and rows["e"]["bytes_per_update"] == 0, "bytes")
check(all(rows[name]["switch_gap_us"]["count"] == 0 for name in "abc"), "switch while running")
check(rows["e"]["switch_gap_us"]["p50"] < rows["e"]["pass_us"], "a pause in (e)", rows["e"])
check(rows["e"]["rollout_weight_wait"] < 0.005, "weight wait in (e)", rows["e"])

for arguments, words in ((["async", "--repeats", "0"], "1 to"), (["async", "--clock", "x"], "wall"),
                         (["async", "workrs=1"], "no option"), (["nonsense"], "kernels|async"),
                         (["kernels", "--isa", "x"], "expected ref")):
    done = bench(*arguments)
    check(done.returncode == 2 and words in done.stderr, arguments, done.returncode, done.stderr)
sys.exit(failed)
PY
