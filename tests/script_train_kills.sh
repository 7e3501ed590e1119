#!/bin/bash
# Rollout ranks that are killed, stopped or slow, and learners that are killed: small versions of the
# soaks, and what a process that was given up does when it wakes.
foresight=$1
here=$(dirname -- "$0")
. "$here/train_support.sh"
make_base

# --- killed at random: nothing lost, nothing doubled, the same bits
"$here/../scripts/soak_kill" 3 "$foresight" >"$work/kill.log" 2>&1 ||
    { fail "soak_kill"; tail -25 "$work/kill.log"; }
"$here/../scripts/soak_resume" 2 "$foresight" >"$work/resume.log" 2>&1 ||
    { fail "soak_resume"; tail -25 "$work/resume.log"; }

# --- slow, then stopped for a while: no loss; stopped for longer: given up and replaced
mpirun_flags=--enable-recovery
start_ranks 3 stops run.steps=1000000 checkpoint.every=0 rollout.samples_per_prompt=16
wait_for 60 has_lines stops 2 || { fail "stops: no step was made"; kill_job; exit 1; }
victim=$(ranks_of 1)
seen=$(lines stops)
for _ in $(seq 20); do
    kill -STOP "$victim"
    sleep 0.095
    kill -CONT "$victim"
    sleep 0.005
done
has_lines stops $((seen + 2)) || fail "stops: a slow rank holds the learner"
kill -STOP "$victim"
sleep 5
kill -CONT "$victim"
seen=$(lines stops)
wait_for 30 has_lines stops $((seen + 2)) || fail "stops: no steps after a stop"
! grep -q 'is lost' "$work/stops.log" || fail "stops: five seconds are taken for death"
kill -STOP "$victim"
wait_for 30 grep -q 'rollout rank 1: process .* takes the seat (incarnation 1)' "$work/stops.log" ||
    fail "stops: not replaced"
kill -CONT "$victim"
wait_for 30 grep -q 'worker 1 I the learner has given this process up; it leaves' "$work/stops.log" ||
    fail "stops: the old process stays"
seen=$(lines stops)
wait_for 30 has_lines stops $((seen + 2)) || fail "stops: no steps after the replacement"
kill -USR1 "$(ranks_of 0)"
wait "$pid" || fail "stops: mpirun's status is $?"
steps=$(($(lines stops) + 2))
train_ranks 3 stops run.steps=$steps checkpoint.every=0 rollout.samples_per_prompt=16
sound stops 2 $steps

# --- a deadline that passes says who waits for whom
start_ranks 3 late rollout.prompts_per_step=1024 rollout.samples_per_prompt=256 \
    async.wait_timeout_ms=1000 async.dead_after_ms=900
wait "$pid" && fail "late: mpirun's status is 0"
grep -Eq 'learner 0 waits for samples of step 1, in vain for 1 s .*: rank 1 has [0-9]+ tickets \([0-9]+-[0-9]+\) and was last heard [0-9.]+ s ago; rank 2 has' \
    "$work/late.log" || { fail "late: the wait is not explained"; tail -5 "$work/late.log"; }

[ $failed -eq 0 ] && echo "script_train_kills: all as expected"
exit $failed
