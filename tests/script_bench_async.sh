#!/bin/bash
# foresight bench async, in small and on the clock that other load does not move: every row is there
# with its figures, what must hold by construction holds, a prediction is there, wrong options say so.
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
check(list(rows) == ["a", "b", "c", "d", "e", "f", "fixed_lag"], list(rows))
for name, row in rows.items():
    check(row["tokens_per_second"] > 0 and row["pass_us"] > 0, name, row)
    check(row["ratio"] > 0 and row["ratio_to_e"] > 0, name, row)
    check(row["predicted_tokens_per_second"] > 0, name, row)
    for key in ("learner_idle", "rollout_idle", "learner_weight_wait", "rollout_weight_wait"):
        check(0 <= row[key] <= 1, name, key, row[key])
for name in "ab":  # in turns: one side idles while the other works, nothing is old
    check(0.8 < rows[name]["learner_idle"] + rows[name]["rollout_idle"] < 1.25, name, rows[name])
    check(rows[name]["staleness_mean"] == 0, name, "staleness")
for name in ("c", "d", "e", "f"):
    check(0 < rows[name]["staleness_mean"] <= 9, name, "staleness", rows[name])
check(0 < rows["fixed_lag"]["staleness_mean"] <= 8, "fixed_lag", "staleness", rows["fixed_lag"])
image = rows["a"]["bytes_per_update"]
check(image > 0 and rows["e"]["bytes_per_update"] == 0, "bytes")
check(0 < rows["f"]["bytes_per_update"] < 0.2 * image, "updates are no deltas", rows["f"])
check(rows["e"]["switch_gap_us"]["p50"] < rows["e"]["pass_us"], "a pause in (e)", rows["e"])
check(all(rows[name]["switch_gap_us"]["count"] == 0 for name in "abc"), "switch while running")

for arguments, words in ((["async", "--repeats", "0"], "1 to"), (["async", "--clock", "x"], "wall"),
                         (["async", "workrs=1"], "no option"), (["nonsense"], "kernels|decode"),
                         (["kernels", "--isa", "x"], "expected ref")):
    done = bench(*arguments)
    check(done.returncode == 2 and words in done.stderr, arguments, done.returncode, done.stderr)
sys.exit(failed)
PY
