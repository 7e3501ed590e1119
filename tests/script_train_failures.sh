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

# --- SIGUSR1 to the learner, SIGTERM to mpirun
slow=(run.steps=12 checkpoint.every=0 rollout.samples_per_prompt=64 rollout.prompts_per_step=32
    optimizer.updates_per_step=8)
start_ranks 3 stopped "${slow[@]}"
wait_for 30 has_lines stopped 2 || fail "SIGUSR1: no step was made"
before=$(lines stopped)
kill -USR1 "$(ranks_of 0)"
wait "$pid" || fail "SIGUSR1: mpirun's exit code is $?"
after=$(lines stopped)
[ "$after" -le $((before + 2)) ] && [ "$after" -lt 12 ] || fail "SIGUSR1: steps $before to $after"
[ "$(basename "$(last_checkpoint stopped)")" = "$(printf 'step_%06d' "$after")" ] ||
    fail "SIGUSR1: no checkpoint of step $after"
start_ranks 3 stopped "${slow[@]}" run.resume=must
wait_for 30 has_lines stopped $((after + 1)) || fail "resumed: no step was made"
kill -TERM "$pid"
wait "$pid"
after=$(lines stopped)
[ "$(basename "$(last_checkpoint stopped)")" = "$(printf 'step_%06d' "$after")" ] ||
    fail "SIGTERM: no checkpoint of step $after"
train_ranks 3 stopped "${slow[@]}" run.resume=must
every_step stopped 12
summary stopped 's["completed"] and s["logprob_mismatch"]["max"] == 0'
[ "$(run_files once "$work/runs/stopped")" = 384 ] || fail "stopped: groups in segments"

# --- ranks that fail end the job soon, not in silence
export OMPI_MCA_odls_base_sigkill_timeout=1 # mpirun sleeps twice as long, whoever has left
ended() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }
# ends_with NAME PATTERN: the job in $pid fails within 20 s and says why
ends_with() {
    local status
    wait_for 20 ended "$pid" || { fail "$1: still there"; kill_job; return; }
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
start_ranks 3 bereft "${slow[@]}" run.steps=2000 async.replace_workers=0
wait_for 30 has_lines bereft 1 || fail "bereft: no step was made"
kill -KILL "$(ranks_of 2)"
wait_for 30 grep -q 'rollout rank 2 is lost' "$work/bereft.log" || fail "bereft: the loss is unseen"
seen=$(lines bereft)
wait_for 30 has_lines bereft $((seen + 2)) || fail "bereft: no steps after the loss"
kill -KILL "$(ranks_of 1)"
ends_with bereft 'no rollout rank is left'
after=$(lines bereft)
[ "$(basename "$(last_checkpoint bereft)")" = "$(printf 'step_%06d' "$after")" ] ||
    fail "bereft: no checkpoint of step $after"
start_ranks 2 bereft "${slow[@]}" run.steps=$((after + 2)) run.resume=must
wait "$pid" || fail "bereft: not resumed"
every_step bereft $((after + 2))

[ $failed -eq 0 ] && echo "script_train_failures: all as expected"
exit $failed
