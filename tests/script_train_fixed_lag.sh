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

# --- finished samples of unfinished groups are in checkpoints: the worker, one sample at a time, has
# 61 steps' groups to make while the learner makes the first steps, and so is amid one at some
# checkpoint of these. Gone on with from that one by other workers, the run ends with the same bits.
ahead=(async.order=fixed_lag async.max_staleness=60 checkpoint.every=1 checkpoint.keep_last=100
    rollout.prompts_per_step=2 rollout.samples_per_prompt=256 rollout.max_running=1 run.steps=8)
kept() { grep -q 'finished samples of [0-9]* unfinished groups are kept' "$work/$1.log"; }
# from_step STEP COPY: what the run `ahead` was right after that step
from_step() {
    local i
    cp -r "$work/runs/ahead" "$work/runs/$2"
    for i in $(seq $(($1 + 1)) 8); do
        rm -r "$work/runs/$2/checkpoints/$(printf 'step_%06d' "$i")"
    done
}
for attempt in 1 2 3 4 5; do
    rm -rf "$work/runs/ahead"
    train_ranks 2 ahead "${ahead[@]}"
    for step in 1 2 3 4 5 6 7; do
        from_step $step part_$attempt$step
        train_ranks 4 part_$attempt$step "${ahead[@]}" run.resume=must
        same_model ahead part_$attempt$step
        ! kept part_$attempt$step || break 2
    done
done
kept part_$attempt$step || fail "no finished samples of unfinished groups were in a checkpoint"

# --- stopped by SIGTERM, the whole job killed, then a worker, each gone on from with other workers.
# How many steps are made by then is up to the machine; the undisturbed run makes as many.
cut=(async.order=fixed_lag async.max_staleness=12 checkpoint.every=5
    rollout.prompts_per_step=8 rollout.samples_per_prompt=32 rollout.max_running=2)
endless=("${cut[@]}" run.steps=1000000)
# more_steps COUNT: the run in the background makes so many steps from here
more_steps() {
    local seen
    seen=$(lines cut)
    wait_for 120 has_lines cut $((seen + $1)) || { fail "cut: no $1 steps after $seen"; give_up cut; }
}
start_ranks 2 cut "${endless[@]}"
first_steps cut 2
kill -TERM "$(ranks_of 0)"
wait "$pid" || fail "cut: mpirun's status is $?"
start_ranks 4 cut "${endless[@]}" run.resume=must
more_steps 7
kill_job
mpirun_flags=--enable-recovery
start_ranks 4 cut "${endless[@]}" run.resume=must
more_steps 2
kill -KILL "$(ranks_of 2)"
wait_for 120 grep -q 'rollout rank 2 is lost' "$work/cut.log" || fail "cut: the loss is unseen"
more_steps 2
kill -TERM "$(ranks_of 0)"
wait "$pid" || fail "cut: mpirun's status is $?"
mpirun_flags=
steps=$(($(lines cut) + 2))
train_ranks 2 cut "${cut[@]}" run.steps=$steps run.resume=must
train_ranks 2 uncut "${cut[@]}" run.steps=$steps
every_step cut $steps
exact_lag cut 12
summary cut 's["completed"] and s["logprob_mismatch"]["max"] == 0 and s["tickets"]["live"] == 0'
summary cut "s['tickets']['trained'] == 8 * $steps"
summary cut 's["tickets"]["created"] == s["tickets"]["trained"] + s["tickets"]["dropped"]["surplus"]'
[ "$(run_files once "$work/runs/cut")" = $((8 * steps)) ] || fail "cut: groups in segments"
same_model uncut cut

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
    timeout 600 mpirun -n 2 "$foresight" train "$work/config.yaml" run.name=lag_2 run.steps=44 "$@" \
        >"$work/refused.log" 2>&1 && fail "a fixed_lag run went on with $*"
    grep -q 'belong to other steps and versions' "$work/refused.log" || fail "$*: not the reason"
}
refused async.order=fixed_lag async.max_staleness=1
train_ranks 2 lag_2 run.steps=44 async.order=ready
sound lag_2 2 44

[ $failed -eq 0 ] && echo "script_train_fixed_lag: all as expected"
exit $failed
