#!/bin/bash
# The program on a GPU: refused in one line where there is none; on the emulated GPU generation,
# training and resuming, beside the CPU.
set -u
foresight=$1
emulated=$(dirname "$1")/foresight_emulated
. "$(dirname "$0")/train_support.sh"
make_base

greedy() { # program, rest: options
    local program=$1
    shift
    "$program" generate "$work/config.yaml" rollout.temperature=0 rollout.max_running=4 --limit 3 \
        --samples 1 "$@" 2>"$work/err" || fail "generate $*: $(tail -1 "$work/err")"
}

# --- without a GPU
if "$foresight" doctor 2>/dev/null | grep 'gpu  *none' >/dev/null; then
    "$foresight" generate "$work/config.yaml" --device=cuda >"$work/out" 2>"$work/err"
    [ $? -ne 0 ] || fail "--device=cuda is accepted without a GPU"
    [ ! -s "$work/out" ] && [ "$(grep -c 'kernels.device is cuda, but there is no GPU' "$work/err")" = 1 ] ||
        fail "--device=cuda without a GPU says: $(cat "$work/err")"
    "$foresight" generate "$work/config.yaml" --device=auto --limit 1 >/dev/null 2>&1 ||
        fail "--device=auto does not use the CPU"
fi

# --- on the emulated GPU
greedy "$foresight" --device=cpu >"$work/cpu.txt"
greedy "$emulated" --device=cuda >"$work/cuda.txt"
cmp -s "$work/cpu.txt" "$work/cuda.txt" || fail "greedy samples differ: $(diff "$work/cpu.txt" "$work/cuda.txt" | head -4)"

cpu=$foresight
foresight=$emulated
train gpu run.steps=2 checkpoint.every=1 kernels.device=cuda rollout.prompts_per_step=2 \
    rollout.samples_per_prompt=2 rollout.max_completion_length=8
train gpu run.steps=3 checkpoint.every=1 kernels.device=cuda rollout.prompts_per_step=2 \
    rollout.samples_per_prompt=2 rollout.max_completion_length=8
foresight=$cpu
[ -f "$work/runs/gpu/checkpoints/step_000003/MANIFEST.json" ] || fail "no checkpoint of the GPU's third step"
python3 - "$work/runs/gpu/metrics.jsonl" <<'PY' || fail "metrics of the GPU's run"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [row["step"] for row in rows][-1] == 3, rows
for row in rows:
    assert row["logprob_mismatch/max"] == 0, row["logprob_mismatch/max"]
PY

[ $failed = 0 ] && echo "script_gpu: all as expected"
exit $failed
