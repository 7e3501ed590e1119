#!/bin/bash
# The program on a GPU: refused in one line where there is none; on the emulated GPU generation,
# training and resuming, beside the CPU; weights from GPU to GPU; several learners on GPUs of their own,
# by the emulated NCCL.
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
    "$foresight" train "$work/config.yaml" --dry-run --device=cuda >"$work/out" 2>"$work/err" &&
        grep 'no GPU here to compare with' "$work/out" >/dev/null || fail "no plan without a GPU: $(cat "$work/err")"
fi

# --- on the emulated GPU
greedy "$foresight" --device=cpu >"$work/cpu.txt"
greedy "$emulated" --device=cuda >"$work/cuda.txt"
cmp -s "$work/cpu.txt" "$work/cuda.txt" || fail "greedy samples differ: $(diff "$work/cpu.txt" "$work/cuda.txt" | head -4)"

cpu=$foresight
foresight=$emulated
small=(kernels.device=cuda rollout.prompts_per_step=2 rollout.samples_per_prompt=2
    rollout.max_completion_length=8)
train gpu run.steps=2 checkpoint.every=1 "${small[@]}"
train gpu run.steps=3 checkpoint.every=1 "${small[@]}"

# --- a GPU with room for the KV pages of two sequences, and one with less: known before step 0
# (8 KiB more are for the tables of rotations, which are there before anything is measured)
"$foresight" train "$work/config.yaml" --dry-run --json async.enabled=false "${small[@]}" \
    2>"$work/err" | tail -1 >"$work/plan.json"
read -r least enough <<<"$(python3 - "$work/plan.json" <<'PY'
import json, sys
gpu = json.load(open(sys.argv[1]))["gpus"][0]
for share in 1, 0.9:
    print(int((gpu["fixed_gib"] + gpu["kv_least_gib"] / share) * 1024 * 1024) + 8, end=" ")
PY
)"
export FORESIGHT_EMULATED_KIB=$enough
train tight run.steps=2 "${small[@]}"
grep ' [45] of [0-9]* KV pages' "$work/tight.log" >/dev/null || fail "KV pages: $(grep 'KV pages' "$work/tight.log")"
FORESIGHT_EMULATED_KIB=$((least - 16))
"$foresight" train "$work/config.yaml" async.enabled=false run.name=none "${small[@]}" \
    >"$work/out" 2>"$work/err" && fail "trained with less memory than it takes"
[ "$(grep -c 'needs .* at least, and .* are there: .* change .*max_tokens_per_microbatch' "$work/err")" = 1 ] ||
    fail "a GPU that is too small: $(cat "$work/err")"
[ ! -e "$work/runs/none/metrics.jsonl" ] || fail "a run that cannot fit began"
unset FORESIGHT_EMULATED_KIB

# --- two learners and a worker: whole and shared moments, with NCCL and without
pair=(run.steps=2 checkpoint.every=2 cluster.learners=2 async.max_staleness=0 "${small[@]}")
by_host="learners' GPUs sum by way of the host's memory: learners 0 and 1 share a GPU"
export FORESIGHT_EMULATED_GPUS=3
train_ranks 3 whole "${pair[@]}"
train_ranks 3 shared "${pair[@]}" optimizer.zero_stage=1
same_bits whole shared
for run in whole shared; do
    [ "$(grep -c "2 learners' GPUs sum by NCCL" "$work/$run.log")" = 1 ] || fail "$run: not by NCCL"
done
train_ranks 3 shared "${pair[@]}" optimizer.zero_stage=1 run.steps=3
every_step shared 3
FORESIGHT_EMULATED_GPUS=1 train_ranks 3 by_host "${pair[@]}" optimizer.zero_stage=1
[ "$(grep -c "$by_host" "$work/by_host.log")" = 1 ] || fail "one GPU for two learners: $(tail -3 "$work/by_host.log")"
FORESIGHT_EMULATED_NCCL=die:3:1 mpirun_flags=--enable-recovery start_ranks 3 lost "${pair[@]}"
wait "$pid" && fail "a learner died in a sum, and the job ended well"
grep -q "rank 1 is lost" "$work/lost.log" || fail "a learner died in a sum: $(tail -3 "$work/lost.log")"
unset FORESIGHT_EMULATED_GPUS

# --- a worker whose GPU adds up otherwise than the learner's: found before the first token
FORESIGHT_EMULATED_ORDERS=2:1 start_ranks 2 unlike run.steps=1 "${small[@]}"
wait "$pid" && fail "ranks whose sums differ trained together"
grep -q "their GPUs give sums other bits" "$work/unlike.log" || fail "unlike GPUs: $(tail -3 "$work/unlike.log")"

foresight=$cpu
[ -f "$work/runs/gpu/checkpoints/step_000003/MANIFEST.json" ] || fail "no checkpoint of the GPU's third step"
python3 - "$work"/runs/{gpu,tight}/metrics.jsonl <<'PY' || fail "metrics of the GPU's runs"
import json, sys
rows, tight = [[json.loads(line) for line in open(path)] for path in sys.argv[1:]]
assert [row["step"] for row in rows][-1] == 3, rows
for row in rows:
    assert row["logprob_mismatch/max"] == 0, row["logprob_mismatch/max"]
for a, b in zip(rows, tight):  # fewer KV pages, the same samples
    for name in ("reward", "completions/mean_length", "loss", "grad_norm"):
        assert a[name] == b[name], (name, a[name], b[name])
PY

# --- a learner and a rollout rank: new weights by each way there is, and the same run
weights_come() { # run, what the rollout rank says, environment
    local name=$1 says=$2
    shift 2
    foresight=$emulated
    (export "$@" && train_ranks 2 "$name" run.steps=2 "${small[@]}" async.order=fixed_lag async.max_staleness=1)
    foresight=$cpu
    grep -q "weights: $says" "$work/$name.log" || fail "$name: $(grep 'weights:' "$work/$name.log")"
    summary "$name" 's["logprob_mismatch"]["max"] == 0 and s["logprob_mismatch"]["tokens"] > 0'
}
weights_come in_place "read where the learner makes them" FORESIGHT_EMULATED_GPUS=1
weights_come from_peer "copied from the learner's GPU" FORESIGHT_EMULATED_GPUS=2
weights_come from_host "copied from the host's memory" FORESIGHT_EMULATED_IPC=unshared
same_bits in_place from_peer
same_bits in_place from_host

# --- scripts/gpu_check on the emulated GPU
"$(dirname "$0")/../scripts/gpu_check" --emulated --only test_kernels_device --results "$work/gpu.jsonl" \
    "$(dirname "$foresight")" >"$work/gpu_check.txt" || fail "gpu_check: $(cat "$work/gpu_check.txt")"
grep -q '"what": "test_kernels_device", "status": "passed"' "$work/gpu.jsonl" ||
    fail "gpu_check's results: $(cat "$work/gpu.jsonl")"

[ $failed = 0 ] && echo "script_gpu: all as expected"
exit $failed
