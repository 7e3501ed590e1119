#!/bin/bash
# Evaluation from outside: several temperatures and guards in one go give what single evaluations
# give, whatever the number of threads; comparisons agree with the rows; wrong input is refused.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

evaluate() {
    "$foresight" eval "$work/config.yaml" data.eval="$work/task/eval.jsonl" "$@" --json
}

head -n 8 "$work/task/train.jsonl" >"$work/guard.jsonl"
evaluate eval.temperatures=0.5,1,1.5 eval.guards="$work/guard.jsonl" eval.counts="$work/a.h5" \
    eval.output="$work/rows.jsonl" >"$work/a.log" 2>&1 || fail "eval: $(tail -n 1 "$work/a.log")"
evaluate eval.temperatures=1.5 run.threads=2 eval.counts="$work/b.h5" >"$work/b.log" 2>&1 ||
    fail "eval at one temperature: $(tail -n 1 "$work/b.log")"
evaluate eval.temperatures=0.5,1,1.5 eval.guards="$work/guard.jsonl" eval.counts="$work/c.h5" \
    run.threads=2 >"$work/c.log" 2>&1 || fail "eval with two threads: $(tail -n 1 "$work/c.log")"
# Shared among ranks: the same bytes.
mpirun -n 3 "$foresight" eval "$work/config.yaml" data.eval="$work/task/eval.jsonl" eval.temperatures=0.5,1,1.5 \
    eval.guards="$work/guard.jsonl" eval.counts="$work/ranks.h5" eval.output="$work/ranks.jsonl" --json \
    >"$work/ranks.log" 2>&1 || fail "eval on three ranks: $(tail -n 1 "$work/ranks.log")"
cmp "$work/a.h5" "$work/ranks.h5" || fail "other counts on three ranks than on one"
cmp "$work/rows.jsonl" "$work/ranks.jsonl" || fail "other rows on three ranks than on one"
# A rank that dies ends it; nothing that is not complete is written.
mpirun -n 3 "$foresight" eval "$work/config.yaml" data.eval="$work/task/eval.jsonl" eval.samples=5000 \
    eval.counts="$work/lost.h5" >"$work/lost.log" 2>&1 &
pid=$!
has_rank() { [ -n "$(ranks_of "$1")" ]; }
wait_for 60 has_rank 2 || fail "no third rank"
kill -KILL "$(ranks_of 2)"
wait "$pid" && fail "status 0 without a rank"
grep -q 'rank 2.*exited on signal 9' "$work/lost.log" || fail "the lost rank is not named: $(tail -n 3 "$work/lost.log")"
[ -e "$work/lost.h5" ] && fail "counts without a rank's problems"
for temperature in 0.5 1 1.5; do # an interval of no width: every problem's figure is the same
    for k in 1 2 maj; do
        "$foresight" compare "$work/a.h5" "$work/c.h5" --left $temperature --right $temperature --k $k \
            --json 2>&1 | grep -q '"difference_ci95":\[0.0,0.0\]' ||
            fail "other counts with two threads than with one"
    done
done

"$foresight" compare "$work/a.h5" "$work/a.h5" --left 1 --right 1.5 --json >"$work/compare.log" 2>&1 ||
    fail "compare: $(cat "$work/compare.log")"
"$foresight" compare "$work/a.h5" "$work/a.h5" --set guard --k 2 --json >"$work/guard.log" 2>&1 ||
    fail "compare guards: $(cat "$work/guard.log")"
python3 - "$work" <<'PYTHON' || fail "figures, rows and comparison differ"
import json, sys
work = sys.argv[1]
last = lambda name: json.loads(open(f"{work}/{name}.log").read().splitlines()[-1])
a, b, difference, guard = last("a"), last("b"), last("compare"), last("guard")
rows = [json.loads(line) for line in open(f"{work}/rows.jsonl")]
assert len(rows) == 60 and [t["temperature"] for t in a["temperatures"]] == [0.5, 1, 1.5]
assert a["temperature"] == 1 and a["pass@1"] == a["temperatures"][1]["pass@1"]
timings = ("tokens_per_second", "wall_seconds", "cpu_seconds")
strip = lambda figures: {k: v for k, v in figures.items() if k not in timings}
assert strip(a["temperatures"][2]) == strip(b)
ranks = last("ranks")
assert [strip(t) for t in a["temperatures"] + a["guards"]] == [strip(t) for t in ranks["temperatures"] + ranks["guards"]]
assert open(f"{work}/ranks.log").read().count("pass@1 ") == open(f"{work}/a.log").read().count("pass@1 ") == 6
rates = {t: [r["c"] / r["n"] for r in rows if r["temperature"] == t] for t in (1, 1.5)}
wanted = sum(y - x for x, y in zip(rates[1], rates[1.5])) / 20
low, high = difference["difference_ci95"]
assert abs(difference["difference"] - wanted) < 1e-12 and low <= wanted <= high
assert difference["problems"] == 20 and guard["problems"] == 8
assert [g["set"] for g in a["guards"]] == ["guard"] * 3 and a["guards"][0]["problems"] == 8
assert guard["difference"] == 0
PYTHON

"$foresight" inspect "$work/a.h5" --json | python3 -c 'import json, sys
found = json.load(sys.stdin)
assert found["problems"] == 28 and found["temperatures"] == [0.5, 1, 1.5], found' || fail "inspect"
head -c 3000 "$work/a.h5" >"$work/cut.h5"
"$foresight" inspect "$work/cut.h5" >/dev/null 2>&1 && fail "inspect takes half a file"

refused() { # TEXT COMMAND...
    local text=$1
    shift
    "$@" >"$work/refused.log" 2>&1 && fail "not refused: $*"
    grep -q "$text" "$work/refused.log" || fail "$*: $(cat "$work/refused.log")"
}
refused "evaluations of" "$foresight" compare "$work/a.h5" "$work/b.h5" --left 1.5 --right 1.5
refused "was not evaluated at temperature 0.7" "$foresight" compare "$work/a.h5" "$work/a.h5" --left 0.7
refused "no such set" "$foresight" compare "$work/a.h5" "$work/a.h5" --set none
refused "expected A or B" "$foresight" compare "$work/a.h5" "$work/a.h5" --split C
refused "pass@9" "$foresight" compare "$work/a.h5" "$work/a.h5" --k 9
refused "not a number from 0 to 100" evaluate eval.temperatures=1,hot
refused "twice" evaluate eval.temperatures=1,1.0
refused "none.jsonl" evaluate eval.guards="$work/none.jsonl"
[ $failed -eq 0 ] && echo "eval: all as expected"
exit $failed
