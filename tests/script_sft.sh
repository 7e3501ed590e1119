#!/bin/bash
# Supervised fine-tuning and evaluation from outside: the same weights whatever the number of
# threads, rows with messages, bad rows by file and line, figures that agree with their rows.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

sft() {
    "$foresight" sft run.name=sft run.dir="$work" model.path="$work/init" \
        data.max_prompt_length=16 rollout.max_completion_length=24 sft.batch_tokens=2048 \
        optimizer.learning_rate=3e-3 "$@"
}

# The same bits with one thread as with the two that make_base used.
sft run.threads=1 sft.data="$work/task/sft.jsonl" sft.epochs=2 sft.output="$work/again" --json \
    >"$work/again.log" 2>&1 || fail "sft with one thread: $(tail -n 1 "$work/again.log")"
cmp -s "$work/base/model.safetensors" "$work/again/model.safetensors" ||
    fail "sft: other weights with one thread than with two"
tail -n 1 "$work/again.log" | python3 -c 'import json, sys; assert json.load(sys.stdin)["loss"] < 1.5' ||
    fail "sft: no loss below 1.5 in the figures"

# Rows that cannot be used: named, or counted.
printf '%s\n' '{"prompt": "1+2=", "completion": "#3"}' '{"prompt": "1+2="}' 'no JSON' \
    >"$work/bad.jsonl"
sft sft.data="$work/bad.jsonl" --dry-run >"$work/bad.log" 2>&1 && fail "sft took a row without completion"
grep -q 'bad.jsonl:2: .*completion' "$work/bad.log" || fail "sft: $(cat "$work/bad.log")"
sft sft.data="$work/bad.jsonl" data.bad_rows=skip --dry-run >"$work/bad.log" 2>&1 ||
    fail "sft with bad_rows=skip"
grep -q '1 examples, .*2 dropped' "$work/bad.log" || fail "sft skip: $(cat "$work/bad.log")"

# Messages whose last one is the assistant's: only the answer and the template's end carry loss.
printf '%s\n' '{"messages": [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "#3"}]}' \
    >"$work/chat.jsonl"
sft data.chat_template=chatml data.max_prompt_length=64 rollout.max_completion_length=64 \
    sft.data="$work/chat.jsonl" --dry-run >"$work/chat.log" 2>&1 || fail "sft on messages: $(cat "$work/chat.log")"
grep -q '^sft: 1 examples' "$work/chat.log" || fail "sft on messages: $(cat "$work/chat.log")"

# eval: the figures are those of the rows.
"$foresight" eval "$work/config.yaml" data.eval="$work/task/eval.jsonl" eval.output="$work/rows.jsonl" \
    --summary "$work/summary.json" --label base --json >"$work/eval.log" 2>&1 ||
    fail "eval: $(tail -n 1 "$work/eval.log")"
python3 - "$work" <<'PYTHON' || fail "eval: figures and rows differ"
import json, sys
work = sys.argv[1]
rows = [json.loads(line) for line in open(f"{work}/rows.jsonl")]
figures = json.loads(open(f"{work}/eval.log").read().splitlines()[-1])
assert len(rows) == figures["problems"] == 20 and all(row["n"] == 4 for row in rows)
assert abs(sum(row["c"] / row["n"] for row in rows) / 20 - figures["pass@1"]) < 1e-12
assert abs(sum(row["c"] > 0 for row in rows) / 20 - figures["pass@4"]) < 1e-12
low, high = figures["pass@1_ci95"]
assert low <= figures["pass@1"] <= high
assert json.load(open(f"{work}/summary.json"))["base"]["pass@1"] == figures["pass@1"]
PYTHON
[ $failed -eq 0 ] && echo "sft and eval: all as expected"
exit $failed
