#!/bin/bash
# The order fixed_lag from outside: the bits of a run do not depend on the number of workers, on
# deaths, or on being stopped or killed and resumed; at lag 0 they are the synchronous run's.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base
fixed=(async.order=fixed_lag run.steps=40 checkpoint.every=5)

# same_model A B: the models that two runs ended with are the same files
same_model() {
    cmp -s "$(last_checkpoint "$1")/model.safetensors" "$(last_checkpoint "$2")/model.safetensors" ||
        fail "the models of $1 and $2 differ"
    same_bits "$1" "$2"
}

# exact_lag NAME ETA: every token of step s was sampled by version max(0, s - ETA)
exact_lag() {
    python3 - "$work/runs/$1/metrics.jsonl" "$2" <<'PY' || fail "$1: staleness"
import json, sys
eta = int(sys.argv[2])
for line in open(sys.argv[1]):
    step = json.loads(line)
    lag = min(eta, step["step"] - 1)
    if step["staleness/max"] != lag or step["staleness/mean"] != lag or step["version"] != step["step"]:
        sys.exit(f"step {step['step']}: {step['staleness/mean']} .. {step['staleness/max']}")
PY
}

# --- 1 and 3 workers
for ranks in 2 4; do
    train_ranks $ranks lag_$ranks "${fixed[@]}"
    sound lag_$ranks 2 40
    exact_lag lag_$ranks 2
done
same_model lag_2 lag_4
[ "$(run_files samples "$work/runs/lag_2" "$work/runs/lag_4")" = 960 ] || fail "other samples"

# --- lag 0 is the synchronous run
train sync run.steps=20
train_ranks 3 lag_0 run.steps=20 async.order=fixed_lag async.max_staleness=0
same_model sync lag_0

# --- far ahead, so that much is unfinished at any time: stopped by SIGTERM in the middle, and gone on with other workers
heavy=(async.order=fixed_lag async.max_staleness=12 run.steps=18 checkpoint.every=5
    rollout.prompts_per_step=8 rollout.samples_per_prompt=256 rollout.max_running=2)
settled='s["completed"] and s["logprob_mismatch"]["max"] == 0 and s["tickets"]["live"] == 0
    and s["tickets"]["created"] == 144 and s["tickets"]["trained"] == 144'
settled=$(tr '\n' ' ' <<<"$settled")
train_ranks 2 heavy "${heavy[@]}"
start_ranks 2 stopped "${heavy[@]}"
wait_for 30 has_lines stopped 2 || fail "stopped: no 2 steps were made"
kill -TERM "$(ranks_of 0)" || fail "stopped: it was over before"
wait "$pid"
[ "$(lines stopped)" -lt 18 ] || fail "stopped: it was over before"
train_ranks 4 stopped "${heavy[@]}" run.resume=must
every_step stopped 18
exact_lag stopped 12
summary stopped "$settled"
[ "$(run_files once "$work/runs/stopped")" = 144 ] || fail "stopped: groups in segments"
same_model heavy stopped

# --- the whole job killed, and then a worker killed
start_ranks 2 killed "${heavy[@]}"
wait_for 30 has_lines killed 5 || fail "killed: no 5 steps were made"
kill_job
mpirun_flags=--enable-recovery
start_ranks 4 killed "${heavy[@]}" async.dead_after_ms=1500
wait_for 30 has_lines killed 9 || fail "killed: no 9 steps were made"
kill -KILL "$(ranks_of 2)" || fail "killed: it was over before"
wait "$pid"
mpirun_flags=
grep -q 'rollout rank 2 is lost' "$work/killed.log" || fail "killed: the loss is unseen"
every_step killed 18
summary killed "$settled"
same_model heavy killed
grep -q 'finished samples of [0-9]* unfinished groups are kept' "$work/stopped.log" "$work/killed.log" ||
    fail "no finished samples of unfinished groups were in a checkpoint"

# --- with refills, and several updates a step: whole groups only, from the step's own numbers
dynamic=("${fixed[@]}" run.steps=30 loss.dynamic_sampling=true async.max_staleness=3)
for ranks in 2 4; do
    train_ranks $ranks dynamic_$ranks "${dynamic[@]}"
    exact_lag dynamic_$ranks 3
    summary dynamic_$ranks 's["completed"] and s["tickets"]["dropped"]["zero_variance"] > 0'
    summary dynamic_$ranks 's["tickets"]["trained"] == 180 and s["tickets"]["dropped"]["stale"] == 0'
done
same_model dynamic_2 dynamic_4
start_ranks 3 dynamic_killed "${dynamic[@]}"
sleep "$(printf '0.%03d' $((400 + RANDOM % 500)))"
kill_job
train_ranks 2 dynamic_killed "${dynamic[@]}"
same_model dynamic_2 dynamic_killed

export OMPI_MCA_odls_base_sigkill_timeout=1 # mpirun sleeps twice as long, whoever has left
# --- a run may leave the order, but nothing else about it may change
refused() {
    timeout 60 mpirun -n 2 "$foresight" train "$work/config.yaml" run.name=lag_2 run.steps=44 "$@" \
        >"$work/refused.log" 2>&1 && fail "a fixed_lag run went on with $*"
    grep -q 'belong to other steps and versions' "$work/refused.log" || fail "$*: not the reason"
}
refused async.order=fixed_lag async.max_staleness=1
train_ranks 2 lag_2 run.steps=44 async.order=ready
sound lag_2 2 44

[ $failed -eq 0 ] && echo "script_train_fixed_lag: all as expected"
exit $failed
