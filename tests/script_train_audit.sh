#!/bin/bash
# `foresight audit`: its times add up to the run's, and it refuses what is no run.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base

# A run by ranks, or alone, and how long the command took at most, in $took
timed() {
    local began
    began=$(now)
    "$@"
    took=$(since "$began")
}

# audited NAME PYTHON-EXPRESSION: over `a`, the audit, and `s`, the summary
audited() {
    "$foresight" audit "$work/runs/$1" --json >"$work/$1.json" 2>"$work/$1.err" ||
        { fail "audit $1"; cat "$work/$1.err"; return; }
    python3 - "$work/$1.json" "$work/runs/$1/summary.json" "$2" <<'PY' || fail "$1: not $2"
import json, sys
a, s = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
if not eval(sys.argv[3]):
    sys.exit(f"{sys.argv[3]} is false of {a} and {s['time']}")
PY
}

# sums NAME RANKS: the parts are the whole
sums() {
    audited "$1" 'abs(sum(a["learner"]["seconds"].values()) / s["wall_seconds"]["train"] - 1) < 0.01'
    audited "$1" "sum(a['rollout']['seconds'].values()) <= $2 * $took"
    audited "$1" 'abs(sum(a["staleness"]) - 1) < 1e-6 and abs(sum(a["lengths_up_to_power_of_2"]) - 1) < 1e-6'
    audited "$1" 'all(abs(a[r]["seconds"][k] - v) < 1e-4 for r in ("learner", "rollout") for k, v in s["time"][r]["seconds"].items())'
    audited "$1" 'min(a["rollout"]["seconds"].values()) >= 0 and a["rollout"]["seconds"]["decode"] > 0'
}
small=(checkpoint.every=0 optimizer.updates_per_step=1)
timed train_ranks 3 ranks run.steps=150 "${small[@]}"
sums ranks 2
audited ranks 'a["steps"] == 150 and 0 <= a["learner"]["idle"] <= 1 and 0 <= a["rollout"]["idle"] <= 1'
both_parts() {
    train_ranks 2 resumed run.steps=100 checkpoint.every=50
    train_ranks 2 resumed run.steps=300 checkpoint.every=50
}
timed both_parts
sums resumed 1
audited resumed 'a["steps"] == 300'

# --- a checkpoint at every step, and one process. Which part of the time is the largest is up to the
# machine; that the advice follows from the parts is test_trainer_audit's.
train_ranks 2 often run.steps=30 checkpoint.every=1
audited often 'a["learner"]["seconds"]["checkpoint"] > 0 and a["change"]'
audited often '"checkpoint.every" in a["change"] or a["bottleneck"] != "checkpoint"'
timed train alone run.steps=60 checkpoint.every=0 rollout.prompts_per_step=24
sums alone 1
audited alone 'a["bottleneck"] in ("by_turns", "rewards", "checkpoint") and "expected_gain" in a or a["bottleneck"] == "rewards"'

# --- text and page
"$foresight" audit "$work/runs/ranks" --html "$work/page.html" >"$work/text" || fail "audit --html"
for word in 'Bottleneck: ' 'What would help: ' forward_backward ticket_wait 'Staleness of tokens' \
    'Length of completions'; do
    grep -q "$word" "$work/text" || fail "text: no '$word'"
done
grep -q '</html>' "$work/page.html" || fail "page: not whole"
sed 's|http://www.w3.org/2000/svg||g' "$work/page.html" | grep -Eq 'https?://|src=|@import' && fail "page: loads something"
python3 - "$work/page.html" <<'PY' || fail "page: tags do not match"
import sys
from html.parser import HTMLParser
class Check(HTMLParser):
    open = []
    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        pass
    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            sys.exit(f"</{tag}>")
check = Check()
check.feed(open(sys.argv[1]).read())
sys.exit(1 if check.open else 0)
PY

# --- what is no run, or no whole one
# refused NAME PATTERN DIR: exit code 1 and a reason
refused() {
    "$foresight" audit "$3" >"$work/out" 2>"$work/err"
    [ $? -eq 1 ] || fail "$1: exit code"
    grep -q -- "$2" "$work/err" || { fail "$1: '$2' is not said"; cat "$work/err"; }
}
mkdir -p "$work/empty" "$work/none" "$work/torn" "$work/old"
refused "no folder" "absent" "$work/absent"
refused "empty folder" "empty" "$work/empty"
cp "$work/runs/ranks/config.yaml" "$work/none/"
: >"$work/none/metrics.jsonl"
refused "no steps" "no finished step" "$work/none"
cp "$work/runs/ranks/config.yaml" "$work/torn/"
{ head -n 3 "$work/runs/ranks/metrics.jsonl"; echo '{"step": 4, "reward": '; head -n 5 "$work/runs/ranks/metrics.jsonl" | tail -n 1; } >"$work/torn/metrics.jsonl"
refused "garbled line" "line 4" "$work/torn"
cp "$work/runs/ranks/config.yaml" "$work/old/"
echo '{"step": 1, "reward": 0.5, "step_time": 1}' >"$work/old/metrics.jsonl"
refused "no times" "no times by role" "$work/old"
cp "$work/runs/ranks/metrics.jsonl" "$work/empty/"
refused "no configuration" "config.yaml" "$work/empty"
"$foresight" audit >/dev/null 2>&1
[ $? -eq 2 ] || fail "usage: exit code"

[ $failed -eq 0 ] && echo "script_train_audit: all as expected"
exit $failed
