#!/bin/bash
# Runs whose numbers stop being finite: a learning rate that tears the weights apart. Updates are
# skipped, the run goes back to sound weights at half the rate, goes on if that helps and stops with
# a clear error if it does not.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
export OMPI_MCA_odls_base_sigkill_timeout=1 # mpirun sleeps twice as long after a rank that failed
make_base
# a checkpoint a step: where a run is stopped, none is there that others lack
wild=(optimizer.max_grad_norm=0 optimizer.updates_per_step=1 run.steps=120 checkpoint.every=1
    checkpoint.keep_last=12)

# figure NAME KEY: the last value of a metric
figure() {
    python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readlines()[-1])[sys.argv[2]])' \
        "$work/runs/$1/metrics.jsonl" "$2"
}

# --- weights times -99 a step, half the rate is no help: the run stops
# hopeless NAME COMMAND...: fails, and leaves what it should
hopeless() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 && fail "$name: exit code 0"
    grep -q 'rolled back to' "$work/$name.log" || fail "$name: no rollback"
    grep -q 'again after a rollback; the run stops' "$work/$name.log" || fail "$name: no reason"
    [ "$(figure "$name" rollbacks)" = 1 ] || fail "$name: rollbacks"
    [ "$(figure "$name" skipped_updates)" -ge 5 ] || fail "$name: skipped updates"
    local dumps=("$work/runs/$name"/dumps/step_*.h5)
    [ ${#dumps[@]} = 4 ] || fail "$name: ${#dumps[@]} dumps, alarms.dumps is 4"
    "$foresight" inspect "${dumps[0]}" >/dev/null || fail "$name: the dump is not sound"
    [ ! -e "$work/runs/$name/summary.json" ] || fail "$name: a summary"
}
wilder=(optimizer.learning_rate=10 optimizer.weight_decay=10 alarms.dumps=4)
hopeless alone timeout 600 "$foresight" train "$work/config.yaml" run.name=alone \
    async.enabled=false "${wild[@]}" "${wilder[@]}"
hopeless ranks timeout 600 mpirun -n 2 "$foresight" train "$work/config.yaml" run.name=ranks \
    "${wild[@]}" "${wilder[@]}"
hopeless pair timeout 600 mpirun -n 4 "$foresight" train "$work/config.yaml" run.name=pair \
    cluster.learners=2 "${wild[@]}" "${wilder[@]}"

# --- weights times -1.8 a step, at half the rate times -0.4: the run goes on to its end
milder=(optimizer.learning_rate=0.35 optimizer.weight_decay=8)
recovered() {
    summary "$1" 's["completed"] and s["logprob_mismatch"]["max"] == 0'
    summary "$1" 's["tickets"]["trained"] == 720 and s["tickets"]["live"] == 0'
    [ "$(figure "$1" rollbacks)" = 1 ] || fail "$1: rollbacks"
    [ "$(figure "$1" learning_rate)" = 0.175 ] || fail "$1: learning rate"
    every_step "$1" 120
}
train whole "${wild[@]}" "${milder[@]}"
recovered whole
train_ranks 3 many "${wild[@]}" "${milder[@]}"
recovered many
train_ranks 4 both cluster.learners=2 "${wild[@]}" "${milder[@]}"
recovered both

# --- stopped before, amid and after the trouble, and resumed: the same bits
first=$(grep -o 'batch of step [0-9]*' "$work/whole.log" | head -n 1 | grep -o '[0-9]*$')
for steps in $((first - 1)) $((first + 1)) $((first + 4)) 120; do
    train parts "${wild[@]}" "${milder[@]}" run.steps=$steps
done
recovered parts
same_bits whole parts

[ $failed -eq 0 ] && echo "script_train_guard: all as expected"
exit $failed
