#!/bin/bash
# Synchronous training from outside: log-probs exact, the same bits whatever the number of threads
# and however often the run was killed or stopped and resumed.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
make_base

# start NAME [KEY=VALUE...]: in the background; its process id in $pid
start() {
    local name=$1
    shift
    "$foresight" train "$work/config.yaml" async.enabled=false run.name="$name" "$@" \
        >>"$work/$name.log" 2>&1 &
    pid=$!
}

# Seconds between the start and the end of an undisturbed run
measure() {
    local start
    start=$(date +%s%N)
    train "$@"
    took_ms=$((($(date +%s%N) - start) / 1000000))
}

# killed NAME COUNT [KEY=VALUE...]: SIGKILL after a random part of $took_ms, COUNT times, then to
# the end.
killed() {
    local name=$1 count=$2 i delay
    shift 2
    for i in $(seq "$count"); do
        start "$name" "$@"
        delay=$((RANDOM % took_ms))
        sleep "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))"
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    train "$name" "$@"
}

exact='s["completed"] and s["logprob_mismatch"]["max"] == 0 and s["logprob_mismatch"]["tokens"] > 0'
settled='s["tickets"]["created"] == s["tickets"]["trained"] + sum(s["tickets"]["dropped"].values())
    and s["tickets"]["live"] == 0'
settled=$(tr '\n' ' ' <<<"$settled")

# --- never killed against killed
long=(run.steps=120 checkpoint.every=7)
measure plain "${long[@]}"
summary plain "$exact"
summary plain "$settled"
summary plain 's["tickets"]["trained"] == 720 and s["staleness"]["max"] == 0'
killed killed 5 "${long[@]}"
same_bits plain killed
summary killed "$exact"
every_step killed 120
[ "$(run_files once "$work/runs/killed")" = 720 ] || fail "killed: not every group once in segments"
[ "$(run_files samples "$work/runs/plain" "$work/runs/killed")" = 2880 ] || fail "killed: samples"

# --- threads
train threads "${long[@]}" run.threads=2
same_bits plain threads

# --- keys and values in bf16: another model, as exact
train kv_bf16 model.kv_dtype=bf16
summary kv_bf16 "$exact"
train kv_fp32
cmp -s "$(last_checkpoint kv_bf16)/model.safetensors" "$(last_checkpoint kv_fp32)/model.safetensors" &&
    fail "bf16 keys and values make no difference"

# --- dynamic sampling
dynamic=(run.steps=60 checkpoint.every=7 loss.dynamic_sampling=true)
measure dynamic "${dynamic[@]}"
summary dynamic "$exact"
summary dynamic "$settled"
summary dynamic 's["tickets"]["dropped"]["zero_variance"] > 0'
killed dynamic_killed 3 "${dynamic[@]}"
same_bits dynamic dynamic_killed

# --- a reference model, in the loss and in the reward, ratios against recomputed log-probs
for kind in loss reward; do
    kl=(run.steps=40 checkpoint.every=7 loss.old_logprob=recompute loss.beta=0.05 loss.kl_in=$kind)
    measure kl_$kind "${kl[@]}"
    summary kl_$kind "$exact"
    killed kl_${kind}_killed 2 "${kl[@]}"
    same_bits kl_$kind kl_${kind}_killed
done
cmp -s "$(last_checkpoint kl_loss)/model.safetensors" "$(last_checkpoint kl_reward)/model.safetensors" &&
    fail "the KL term makes no difference"

# --- signals: checkpoint and exit within a step, then the same bits as never stopped
ended=(checkpoint.every=0 rollout.prompts_per_step=16 optimizer.updates_per_step=8 loss.beta=0.01)
for signal in TERM USR1; do
    start stopped_$signal "${ended[@]}" run.steps=1000000
    first_steps stopped_$signal 3
    stop_soon stopped_$signal "$pid" $signal
    wait "$pid" || fail "SIG$signal: exit code $?"
    after=$(lines stopped_$signal)
    [ "$after" -le $((before + 1)) ] || fail "SIG$signal: $((after - before)) steps more were made"
    [ "$(basename "$(last_checkpoint stopped_$signal)")" = "$(printf 'step_%06d' "$after")" ] ||
        fail "SIG$signal: no checkpoint of step $after"
    summary stopped_$signal 'not s["completed"]'
    steps=$((after + 3))
    train stopped_$signal "${ended[@]}" run.steps=$steps run.resume=must
    train whole_$signal "${ended[@]}" run.steps=$steps
    same_bits whole_$signal stopped_$signal
    every_step stopped_$signal $steps
    summary stopped_$signal "$exact"
done

# --- another seed is another run; a checkpoint refuses it
train other_seed "${long[@]}" run.seed=4
run_files state "$(last_checkpoint plain)" "$(last_checkpoint other_seed)" >/dev/null 2>&1 &&
    fail "seeds make no difference"
"$foresight" train "$work/config.yaml" async.enabled=false run.name=plain "${long[@]}" run.seed=4 \
    >"$work/refused.log" 2>&1 && fail "a run went on with another seed"
grep -q 'run.seed is 4' "$work/refused.log" || fail "the seed is not named"

[ $failed -eq 0 ] && echo "script_train_sync: all as expected"
exit $failed
