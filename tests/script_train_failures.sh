#!/bin/bash
# Asynchronous training that is killed, stopped, or loses ranks: every ticket stays accounted for,
# and a job that fails says why and ends.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base

# --- the whole job killed at random points, then resumed
for ranks in 2 4; do
    for i in 1 2 3; do
        start_ranks $ranks killed_$ranks run.steps=150 checkpoint.every=4
        sleep "$(printf '%d.%03d' $((RANDOM % 2)) $((RANDOM % 1000)))"
        kill_job
    done
    train_ranks $ranks killed_$ranks run.steps=150 checkpoint.every=4
    sound killed_$ranks 2 150
done
for i in 1 2; do
    start_ranks 3 killed_pair run.steps=60 checkpoint.every=4 cluster.learners=2 \
        async.max_staleness=0
    sleep "$(printf '0.%03d' $((500 + RANDOM % 500)))"
    kill_job
done
train_ranks 3 killed_pair run.steps=60 checkpoint.every=4 cluster.learners=2 async.max_staleness=0
train_ranks 3 pair_60 run.steps=60 checkpoint.every=4 cluster.learners=2 async.max_staleness=0
same_bits pair_60 killed_pair

# --- SIGUSR1 to the learner, SIGTERM to mpirun: endless runs, a checkpoint within a step
endless=(run.steps=1000000 checkpoint.every=0 rollout.samples_per_prompt=16)
resumed() { [ "$(grep -c 'resumed from' "$work/stopped.log")" -ge "$1" ]; }
saved_last() { [ "$(basename "$(last_checkpoint stopped)")" = "$(printf 'step_%06d' "$(lines stopped)")" ]; }
start_ranks 3 stopped "${endless[@]}"
first_steps stopped 2
stop_soon stopped "$(ranks_of 0)" USR1
wait "$pid" || fail "SIGUSR1: mpirun's exit code is $?"
after=$(lines stopped)
[ "$after" -le $((before + 1)) ] || fail "SIGUSR1: steps $before to $after"
saved_last || fail "SIGUSR1: no checkpoint of step $after"
# mpirun takes no output any more once it was told to end, so the ranks write to the file themselves.
# And it kills those that are not done in time: a slow machine gets more of that.
cat >"$work/own_output.sh" <<SH
#!/bin/sh
exec "$foresight" "\$@" >>"$work/stopped.log" 2>&1
SH
chmod +x "$work/own_output.sh"
for grace in 3 15 60; do
    export OMPI_MCA_odls_base_sigkill_timeout=$grace
    began=$(grep -c 'resumed from' "$work/stopped.log")
    foresight="$work/own_output.sh" start_ranks 3 stopped "${endless[@]}" run.resume=must
    wait_for 120 resumed $((began + 1)) || fail "SIGTERM: not resumed"
    first_steps stopped $(($(lines stopped) + 1))
    kill -TERM "$pid"
    wait "$pid"
    ! saved_last || break
done
saved_last || fail "SIGTERM: no checkpoint of step $(lines stopped)"
steps=$(($(lines stopped) + 3))
train_ranks 3 stopped "${endless[@]}" run.steps=$steps run.resume=must
every_step stopped $steps
summary stopped 's["completed"] and s["logprob_mismatch"]["max"] == 0'
[ "$(run_files once "$work/runs/stopped")" = $((6 * steps)) ] || fail "stopped: groups in segments"

# --- ranks that fail end the job soon, not in silence
export OMPI_MCA_odls_base_sigkill_timeout=1 # mpirun sleeps twice as long, whoever has left
ended() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }
# ends_with NAME PATTERN: the job in $pid fails, waits for nobody, and says why
ends_with() {
    local status
    wait_for 120 ended "$pid" || { fail "$1: still there"; kill_job; return; }
    wait "$pid"
    status=$?
    [ $status -ne 0 ] || fail "$1: exit code 0"
    grep -q -- "$2" "$work/$1.log" || { fail "$1: '$2' is not said"; tail -5 "$work/$1.log"; }
}
start_ranks 2 no_data data.train="$work/absent.jsonl"
ends_with no_data absent.jsonl
cat >"$work/odd_rank.sh" <<SH
#!/bin/sh
# One rank of the job reads other data than the rest.
[ "\$OMPI_COMM_WORLD_RANK" = "\$ODD_RANK" ] && set -- "\$@" data.train=\$ODD_DATA
exec "$foresight" "\$@"
SH
chmod +x "$work/odd_rank.sh"
head -n 50 "$work/task/train.jsonl" >"$work/other.jsonl"
for data in absent other; do
    for rank in 0 1; do
        ODD_RANK=$rank ODD_DATA="$work/$data.jsonl" mpirun -n 3 "$work/odd_rank.sh" train \
            "$work/config.yaml" run.name=odd_${rank}_$data >"$work/odd_${rank}_$data.log" 2>&1 &
        pid=$!
        ends_with odd_${rank}_$data "$([ $data = absent ] && echo absent.jsonl || echo 'other prompts')"
    done
done

# --- a rollout rank dies: the others go on; the last one dies: a checkpoint, and failure
mpirun_flags=--enable-recovery
start_ranks 3 bereft "${endless[@]}" async.replace_workers=0
first_steps bereft 1
kill -KILL "$(ranks_of 2)"
wait_for 120 grep -q 'rollout rank 2 is lost' "$work/bereft.log" || fail "bereft: the loss is unseen"
seen=$(lines bereft)
wait_for 120 has_lines bereft $((seen + 2)) || fail "bereft: no steps after the loss"
kill -KILL "$(ranks_of 1)"
ends_with bereft 'no rollout rank is left'
after=$(lines bereft)
[ "$(basename "$(last_checkpoint bereft)")" = "$(printf 'step_%06d' "$after")" ] ||
    fail "bereft: no checkpoint of step $after"
start_ranks 2 bereft "${endless[@]}" run.steps=$((after + 2)) run.resume=must
wait "$pid" || fail "bereft: not resumed"
every_step bereft $((after + 2))

[ $failed -eq 0 ] && echo "script_train_failures: all as expected"
exit $failed
