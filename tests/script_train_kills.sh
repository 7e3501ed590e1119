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
steps_on() { wait_for 120 has_lines stops $(($(lines stops) + $1)) || fail "stops: no steps $2"; }
mpirun_flags=--enable-recovery
start_ranks 3 stops run.steps=1000000 checkpoint.every=0 rollout.samples_per_prompt=16 \
    async.dead_after_ms=8000
first_steps stops 2
victim=$(ranks_of 1)
for _ in $(seq 10); do
    kill -STOP "$victim"
    sleep 0.095
    kill -CONT "$victim"
    sleep 0.005
done
steps_on 2 "beside a slow rank"
stopped_at=$(now)
hold "$victim"
steps_on 2 "beside a stopped rank"
kill -CONT "$victim"
# Whoever was held for longer than intended, by a machine that had other things to do, may be lost.
awk -v time="$(since "$stopped_at")" 'BEGIN { exit time > 4 }' && sleep 0.5 &&
    grep -q 'is lost' "$work/stops.log" && fail "stops: a moment is taken for death"
steps_on 2 "after a stop"
hold "$victim"
wait_for 120 grep -q 'rollout rank 1: process .* takes the seat (incarnation 1)' "$work/stops.log" ||
    fail "stops: not replaced"
kill -CONT "$victim"
wait_for 120 grep -q 'worker 1 I the learner has given this process up; it leaves' "$work/stops.log" ||
    fail "stops: the old process stays"
steps_on 2 "after the replacement"
kill -USR1 "$(ranks_of 0)"
wait "$pid" || fail "stops: mpirun's status is $?"
steps=$(($(lines stops) + 2))
train_ranks 3 stops run.steps=$steps checkpoint.every=0 rollout.samples_per_prompt=16
sound stops 2 $steps

# --- a deadline that passes says who waits for whom: a step of four million samples, one at a time
start_ranks 3 late rollout.prompts_per_step=4096 rollout.samples_per_prompt=1024 \
    rollout.max_running=1 async.wait_timeout_ms=4000 async.dead_after_ms=3900
wait "$pid" && fail "late: mpirun's status is 0"
grep -Eq 'learner 0 waits for samples of step 1, in vain for 4 s .*: rank 1 has [0-9]+ tickets \([0-9]+-[0-9]+\) and was last heard [0-9.]+ s ago; rank 2 has' \
    "$work/late.log" || { fail "late: the wait is not explained"; tail -5 "$work/late.log"; }

[ $failed -eq 0 ] && echo "script_train_kills: all as expected"
exit $failed
