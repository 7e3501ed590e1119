#!/bin/bash
# foresight sweep as a whole: plan, trials, evaluation, trials that die in every way, kills of the sweep,
# several ranks, halving. What is compared does not depend on how fast anything is.
foresight=$1
. "$(dirname -- "$0")/sweep_support.sh"
make_base

# Refused before anything runs: exit status 1, the words, and no folder.
refused() {
    local words=$1
    shift
    if sweep "$@"; then fail "not refused: $words"; fi
    grep -q -- "$words" "$work/$1.log" || { fail "no word of: $words"; tail -2 "$work/$1.log"; }
}
write_sweep unknown 'axes: [{loss.los_type: [fipo]}]'
refused 'did you mean loss.loss_type' unknown
write_sweep empty 'axes: [{loss.loss_type: []}]'
refused 'axis loss.loss_type is empty' empty
write_sweep range 'axes: [{rollout.top_p: [1.5]}]'
refused 'out of range' range
write_sweep none 'axes: [{rollout.top_p: [1]}]'
refused 'No such file' none model.path="$work/nowhere"
[ ! -e "$work/sweeps/none" ] || fail "a refused sweep left a folder"

# The examples are sound; what is no sweep is the shared configuration of one.
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
for example in $(grep -l '^sweep:' "$root"/configs/sweeps/*.yaml); do
    (cd "$root" && "$foresight" sweep "$example" --dry-run) >"$work/example.log" 2>&1 ||
        { fail "$example"; tail -1 "$work/example.log"; }
done

# The plain case, then the same bytes on three ranks and with two trials at a time.
write_sweep plain "$(cat <<'YAML'
axes:
  - loss.loss_type: [fipo, grpo]
  - {optimizer.learning_rate: [1e-3, 1e-4], name: [fast, slow]}
seeds: [1, 2]
exclude:
  - {loss.loss_type: grpo, optimizer.learning_rate: 1e-4}
YAML
)"
sweep plain || { fail "plain"; tail -3 "$work/plain.log"; }
[ "$(finished_trials plain)" -eq 6 ] || fail "plain: $(finished_trials plain) of 6 trials"
result plain fipo-fast-seed1 'r["state"] == "done" and r["attempts"] == 1 and r["summary"]["steps"] == 4'
result plain fipo-fast-seed1 'r["options"] == {"loss.loss_type": "fipo",
    "optimizer.learning_rate": 0.001, "run.seed": 1}'
for file in base/eval/step_000000.h5 trials/grpo-fast-seed2/eval/step_000004.h5; do
    [ -s "$work/sweeps/plain/$file" ] || fail "plain: no $file"
done
before=$(stat -c %Y.%i "$work"/sweeps/plain/trials/*/result.json)
sweep plain || fail "plain once more"
[ "$before" = "$(stat -c %Y.%i "$work"/sweeps/plain/trials/*/result.json)" ] ||
    fail "a finished trial was run again"
refused 'is of another plan' plain run.steps=5
timeout 600 mpirun -n 3 "$foresight" sweep "$work/plain.yaml" sweep.name=ranks \
    sweep.parallel=2 >"$work/ranks.log" 2>&1 || { fail "three ranks"; tail -3 "$work/ranks.log"; }
same_sweep plain ranks

# The same in two shards, as an array of Slurm jobs runs them.
mkdir "$work/bin"
cat >"$work/bin/srun" <<'SH'
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
SH
chmod +x "$work/bin/srun"
for task in 4 5; do
    PATH=$work/bin:$PATH FORESIGHT=$foresight SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_MIN=4 \
        SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=2 bash "$root/scripts/slurm/sweep_array.sh" \
        "$work/plain.yaml" sweep.name=shards >"$work/shards.log" 2>&1 ||
        { fail "shard $task"; tail -3 "$work/shards.log"; }
done
same_sweep plain shards

# Every checkpoint is evaluated.
write_sweep every 'axes: [{loss.loss_type: [fipo]}]'
sweep every sweep.evaluate=every || fail "every"
[ "$(cd "$work/sweeps/every/trials/fipo/eval" && echo *)" = "step_000002.h5 step_000004.h5" ] ||
    fail "every: not every checkpoint is evaluated"

# Trials that cannot end well: without memory, without time, with a model that is not there. The others
# do, the reasons are told, and the status says that some failed.
write_sweep bad "$(cat <<YAML
axes:
  - {model.path: [$work/base, $work/nowhere], name: [good, absent]}
YAML
)"
sweep bad sweep.retries=1 && fail "a failed trial, and status 0"
result bad good 'r["state"] == "done"'
result bad absent 'r["state"] == "failed" and r["attempts"] == 2 and "nowhere" in r["reason"]'
sweep bad sweep.retries=1 && fail "a failed trial is forgotten"
sweep bad sweep.retries=0 --retry-failed && fail "a trial that cannot run has run"
result bad absent 'r["attempts"] == 1'
write_sweep memory 'axes: [{loss.loss_type: [fipo]}]'
sweep memory sweep.memory_mib=64 sweep.retries=0 && fail "no memory, and status 0"
result memory fipo 'r["state"] == "failed" and r["reason"] != ""'
write_sweep slow 'axes: [{loss.loss_type: [fipo]}]'
sweep slow run.steps=1000000 sweep.timeout_s=1 sweep.retries=0 && fail "no time, and status 0"
result slow fipo 'r["state"] == "failed" and "sweep.timeout_s" in r["reason"]'

# A trial killed by hand is tried again and goes on from its checkpoint.
trial_process() { pgrep -f "train $work/sweeps/$1/config.yaml"; }
has_checkpoint() { ls "$work/sweeps/$1"/trials/*/checkpoints/step_* >/dev/null; }
write_sweep shot 'axes: [{loss.loss_type: [fipo]}]'
sweep shot sweep.name=unshot run.steps=40 || fail "not shot"
start_sweep 1 shot run.steps=40
wait_for 120 has_checkpoint shot || fail "shot: no checkpoint"
victim=$(trial_process shot)
[ -z "$victim" ] || kill -KILL "$victim" 2>/dev/null
wait "$pid" || fail "shot: status $?"
result shot fipo 'r["state"] == "done" and r["attempts"] in (1, 2)'
cmp -s "$work/sweeps/shot/trials/fipo/eval/step_000040.h5" \
    "$work/sweeps/unshot/trials/fipo/eval/step_000040.h5" || fail "shot: another model"

# The sweep killed, alone and on ranks, and asked to stop; its trials die with it; it goes on.
stop_words="axes: [{loss.loss_type: [fipo, grpo, dapo]}]"
write_sweep killed "$stop_words"
for ranks in 1 3; do
    start_sweep $ranks killed run.steps=30
    wait_for 120 has_checkpoint killed || fail "killed: no checkpoint"
    kill_sweep
    wait_for 120 none_left || fail "left over: $(left_over)"
done
start_sweep 1 killed run.steps=30
kill -TERM "$pid"
wait "$pid"
status=$?
# 143: before it was ready to listen; 0: it had ended already
[ $status -eq 3 ] || [ $status -eq 143 ] || [ $status -eq 0 ] || fail "asked to stop: status $status"
sweep killed run.steps=30 || fail "killed, and not resumed"
sweep killed sweep.name=unkilled run.steps=30 || fail "unkilled"
same_sweep killed unkilled

# A rank that is lost gives its trial back.
mpirun_flags=--enable-recovery
write_sweep lost "$stop_words"
start_sweep 3 lost run.steps=30
wait_for 120 has_checkpoint lost || fail "lost: no checkpoint"
victim=$(ranks_of 1)
[ -z "$victim" ] || kill -KILL "$victim" 2>/dev/null
wait "$pid" || fail "lost: status $?"
same_sweep unkilled lost

# Asynchronous trials of three processes each: at staleness 0 they have the bits of one process, also
# when the sweep is killed, and no process stays behind.
write_sweep ranks_each "$(cat <<'YAML'
axes:
  - {async.enabled: [false, true], async.max_staleness: [2, 0], name: [sync, lag0]}
YAML
)"
start_sweep 1 ranks_each async.order=fixed_lag sweep.ranks_per_trial=3 run.steps=20
has_lag_checkpoint() { ls "$work"/sweeps/ranks_each/trials/lag0/checkpoints/step_* >/dev/null; }
wait_for 120 has_lag_checkpoint || fail "ranks_each: no checkpoint"
kill_sweep
wait_for 30 none_left || fail "left over: $(left_over)"
sweep ranks_each async.order=fixed_lag sweep.ranks_per_trial=3 run.steps=20 ||
    { fail "ranks_each"; tail -3 "$work/ranks_each.log"; }
grep -q 'takes the seat' "$work/sweeps/ranks_each/trials/lag0/trial.log" || fail "one process only"
weights() { grep -h weights_xxh3 "$work/sweeps/ranks_each/trials/$1/result.json"; }
[ "$(weights sync)" = "$(weights lag0)" ] || fail "ranks_each: the weights differ"

# Halving: of four cells two go on, and the decisions are the same after a restart.
write_sweep halved "$(cat <<'YAML'
halving: {steps: [2], keep: 0.5}
axes:
  - optimizer.learning_rate: [1e-3, 1e-4, 1e-5, 0.5]
YAML
)"
sweep halved || fail "halved"
states() { grep -ho '"state": "[a-z_]*"' "$work/sweeps/$1"/trials/*/result.json | sort | uniq -c | xargs; }
[ "$(states halved)" = '2 state: done 2 state: stopped_early' ] || fail "halved: $(states halved)"
cp -r "$work/sweeps/halved" "$work/sweeps/halved_before"
sweep halved || fail "halved once more"
same_sweep halved halved_before

# Distillation: three trials, two corpora; once more from nothing, the same bytes.
write_sweep distilled "$(cat <<'YAML'
axes:
  - {rollout.temperature: [0.8, 1.2, 1.2], distill.select: [none, none, best_of_n], name: [low, high, best]}
YAML
)"
for name in distilled distilled_again; do
    sweep distilled sweep.command=distill sweep.name=$name distill.samples=2 ||
        { fail "$name"; tail -3 "$work/distilled.log"; }
done
[ "$(ls "$work/sweeps/distilled/corpora" | wc -l)" -eq 2 ] || fail "distilled: not two corpora"
[ "$(finished_trials distilled)" -eq 3 ] || fail "distilled: $(finished_trials distilled) of 3 trials"
same_sweep distilled distilled_again

# A trial may be an evaluation.
write_sweep tested 'axes: [{eval.top_k: [0, 4]}, {eval.temperatures: [[0.5, 1.0]]}]'
sweep tested sweep.command=eval || fail "tested"
[ -s "$work/sweeps/tested/trials/top_k4-0.5_1.0/eval/step_000000.h5" ] ||
    fail "tested: $(ls "$work/sweeps/tested/trials")"

[ $failed -eq 0 ] && echo "script_sweep: ok"
exit $failed
