#!/bin/bash
# Training on samples of int8 weights, from outside: off-policy by design and said so; for the rest
# all promises hold: the same bits whatever the threads, the speculation, the kills and the ranks,
# and a replay finds nothing else.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

quantized='s["completed"] and "logprob_mismatch" not in s and s["logprob_quantization"]["tokens"] > 0
    and 0 < s["logprob_quantization"]["max"] < 2'
quantized=$(tr '\n' ' ' <<<"$quantized")

# --- one process; a gap between sampler and learner is no fault here
int8=(rollout.quantize=int8 alarms.on_mismatch=stop)
train plain "${int8[@]}"
summary plain "$quantized"
summary plain 's["staleness"]["max"] == 0'
python3 - "$work/runs/plain/metrics.jsonl" <<'PY' || fail "plain: metrics.jsonl"
import json, math, sys
for line in open(sys.argv[1]):
    step = json.loads(line)
    low, high = step["importance_ratio/min"], step["importance_ratio/max"]
    if not (math.isfinite(high) and 0 < low < 1 < high and high - low > 1e-4):
        sys.exit(f"ratios from {low} to {high}")
    if not 0 < step["logprob_quantization/mean"] < step["logprob_quantization/max"]:
        sys.exit("logprob_quantization")
    if "logprob_mismatch/max" in step or not math.isfinite(step["loss"]):
        sys.exit("logprob_mismatch or loss")
PY
train full
cmp -s "$(last_checkpoint plain)/model.safetensors" "$(last_checkpoint full)/model.safetensors" &&
    fail "int8 weights make no difference"

# --- threads, guessed tokens, an end before the end
train threads "${int8[@]}" run.threads=2 rollout.speculation=always rollout.max_running=5
same_bits plain threads
train resumed "${int8[@]}" run.steps=3
train resumed "${int8[@]}"
same_bits plain resumed

# --- ranks: weights are prepared beside decoding
train_ranks 3 ranks "${int8[@]}" run.steps=12
summary ranks "$quantized"
summary ranks 's["tickets"]["live"] == 0'
"$foresight" replay "$work/runs/ranks" >"$work/replay.log" 2>&1 || { fail "replay"; tail -3 "$work/replay.log"; }
lag=("${int8[@]}" async.order=fixed_lag)
train_ranks 2 lag_a "${lag[@]}"
train_ranks 3 lag_b "${lag[@]}"
same_bits lag_a lag_b
summary lag_b "$quantized"

[ $failed = 0 ] && echo "script_train_int8: all as expected"
exit $failed
