#!/bin/bash
# The report of real sweeps: the same page from the same sweep run twice, whatever happened on the
# way; tables that agree with the trials; failed trials named.
foresight=$1
. "$(dirname -- "$0")/sweep_support.sh"
make_base

write_sweep study "$(cat <<YAML
axes:
  - loss.loss_type: [fipo, grpo]
  - {rollout.temperature: [0.8, 1.2], data.train: [$work/task/train.jsonl, $work/other.jsonl], name: [cold, warm]}
seeds: [1, 2]
YAML
)"
cp "$work/task/train.jsonl" "$work/other.jsonl"
sweep study sweep.evaluate=every || { fail "sweep"; tail -3 "$work/study.log"; }

# the same again in another folder, killed amid it
start_sweep 1 study sweep.evaluate=every sweep.dir="$work/again"
wait_for 120 ls "$work/again/study/trials/fipo-cold-seed1/summary.json" || fail "nothing came of the second sweep"
kill_sweep
timeout 600 "$foresight" sweep "$work/study.yaml" sweep.evaluate=every sweep.dir="$work/again" \
    >>"$work/again.log" 2>&1 || { fail "the second sweep"; tail -3 "$work/again.log"; }

for folder in sweeps again; do
    "$foresight" report "$work/$folder/study" --no-timings >"$work/report.log" 2>&1 ||
        { fail "report of $folder"; cat "$work/report.log"; }
done
grep -q '8 trials (8 done, 0 failed)' "$work/report.log" || fail "report: $(cat "$work/report.log")"
for file in report.html cells.csv cells.json; do
    cmp -s "$work/sweeps/study/$file" "$work/again/study/$file" || fail "$file differs after a kill"
done
grep -q 'id="timings"' "$work/sweeps/study/report.html" && fail "timings in a page without"
"$foresight" report "$work/sweeps/study" --output "$work/timed.html" --json | tail -n 1 |
    python3 -c 'import json, sys; assert json.load(sys.stdin)["cells"] == 18' || fail "report --json"
grep -q 'id="timings"' "$work/timed.html" || fail "no timings"

python3 - "$work/sweeps/study" <<'PYTHON' || fail "the tables are not the trials'"
import csv, json, sys
folder = sys.argv[1]
document = json.load(open(f"{folder}/cells.json"))
rows = list(csv.DictReader(open(f"{folder}/cells.csv")))
assert len(rows) == len(document["cells"]) == 2 * (1 + 8 * 2)
assert {row["trial"] for row in rows} >= {"base", "grpo-warm-seed2"}
winner = next(c for c in document["claims"] if c["name"] == "winner")
of = [r for r in rows if r["setting"] == winner["setting"] and int(r["step"]) == winner["step"]
      and float(r["t_eval"]) == winner["t_eval"]]
mean = lambda name: sum(float(r[name]) for r in of) / len(of)
assert len(of) == 2 and abs(mean("pass_at_1_B") - winner["pass_at_1"]["mean"]) < 1e-9
best = max(sum(float(r["pass_at_1_A"]) for r in rows if (r["setting"], r["step"], r["t_eval"]) == key) / 2
           for key in {(r["setting"], r["step"], r["t_eval"]) for r in rows if r["trial"] != "base"})
assert abs(mean("pass_at_1_A") - best) < 1e-9
assert all(float(row["kept_mass"]) == 1 for row in rows)
assert len(document["settings"]) == 4 and len(document["groups"]) >= 2
PYTHON

# Trials of two models: each has its own control, and is compared with that. Evaluated with
# truncation, so that something of the probability is cut.
other=$(ls -d "$work"/sweeps/study/trials/grpo-cold-seed1/checkpoints/step_* | tail -n 1)
write_sweep models "axes: [{model.path: [$work/base, $other], name: [young, old]}]"
sweep models eval.top_k=2 || { fail "two models"; tail -3 "$work/models.log"; }
"$foresight" report "$work/sweeps/models" >"$work/report.log" 2>&1 || fail "report of two models: $(cat "$work/report.log")"
python3 - "$work/sweeps/models" "$work/base" "$other" <<'PYTHON' || fail "not each model's own control"
import json, sys
folder, *models = sys.argv[1:]
assert [b["model"] for b in json.load(open(f"{folder}/sweep.json"))["bases"]] == models
document = json.load(open(f"{folder}/cells.json"))
rate = {(r["trial"], r["t_eval"]): r["pass_at_1_B"] for r in document["cells"]}
assert {trial for trial, _ in rate} == {"base1", "base2", "young", "old"}
assert all(0.01 < r["kept_mass"] < 0.999 for r in document["cells"])
assert len(document["groups"]) == 2 and len(document["claims"]) == 5
for claim in document["groups"]:
    trial, base = (("young", "base1"), ("old", "base2"))[claim["setting"] == "old"]
    wanted = rate[trial, claim["t_eval"]] - rate[base, document["default_temperature"]]
    assert abs(claim["against_base"]["problems"]["mean"] - wanted) < 1e-9, claim
PYTHON
[ $failed -eq 0 ] && echo "reports of sweeps: all as expected"
exit $failed
