#!/bin/bash
# What a run recovers from by itself: groups that are damaged on their way, a rollout rank that ends
# by an error of its own, and, given up with a reason, a seat whose every process does so.
foresight=$1
. "$(dirname -- "$0")/train_support.sh"
command -v mpirun >/dev/null || { echo "FAIL: no mpirun"; exit 1; }
make_base
fixed=(async.order=fixed_lag run.steps=30)
train_ranks 2 sound_one "${fixed[@]}"

# --- every seventh group is damaged: thrown away, its ticket issued again, the same bits
cat >"$work/damaged_rank.sh" <<SH
#!/bin/sh
export LD_PRELOAD="$(dirname -- "$foresight")/libdamage_mpi.so"
export ASAN_OPTIONS="verify_asan_link_order=0:\$ASAN_OPTIONS"
exec "$foresight" "\$@"
SH
chmod +x "$work/damaged_rank.sh"
timeout 120 mpirun -n 3 "$work/damaged_rank.sh" train "$work/config.yaml" run.name=damaged \
    "${fixed[@]}" >"$work/damaged.log" 2>&1 || fail "damaged: mpirun's status is $?"
grep -q 'came damaged; its [0-9]* tickets will be issued again' "$work/damaged.log" ||
    fail "damaged: no damage was seen"
sound damaged 2 30
summary damaged 's["tickets"]["reissued"] > 0 and s["tickets"]["trained"] == 180'
same_bits sound_one damaged

# --- the only rollout rank fails by an error of its own: replaced, by a process that does not
mpirun_flags=--enable-recovery
cat >"$work/odd_rank.sh" <<SH
#!/bin/sh
# Rank 1 as mpirun starts it reads other data than the learner.
[ "\$OMPI_COMM_WORLD_RANK" = 1 ] && [ "\$1" = train ] && set -- "\$@" data.train=$work/other.jsonl
exec "$foresight" "\$@"
SH
chmod +x "$work/odd_rank.sh"
head -n 50 "$work/task/train.jsonl" >"$work/other.jsonl"
timeout 120 mpirun -n 2 --enable-recovery "$work/odd_rank.sh" train "$work/config.yaml" \
    run.name=odd "${fixed[@]}" >"$work/odd.log" 2>&1 || fail "odd: mpirun's status is $?"
grep -q 'reads other prompts than the learner' "$work/odd.log" || fail "odd: no error"
grep -q 'rollout rank 1: process .* takes the seat (incarnation 1)' "$work/odd.log" ||
    fail "odd: not replaced"
sound odd 2 30
same_bits sound_one odd

# --- every process of the only seat fails: the third time it is given up, and the run ends
cp "$work/task/train.jsonl" "$work/fleeting.jsonl"
start_ranks 2 hopeless async.order=fixed_lag run.steps=1000000 data.train="$work/fleeting.jsonl"
wait_for 60 has_lines hopeless 2 || { fail "hopeless: no steps"; kill_job; }
rm "$work/fleeting.jsonl"
kill -KILL "$(ranks_of 1)"
wait "$pid" && fail "hopeless: mpirun's status is 0"
for said in 'takes the seat (incarnation 3)' '3 processes in a row failed before they delivered' \
    'no rollout rank is left' 'with a checkpoint'; do
    grep -q "$said" "$work/hopeless.log" || fail "hopeless: '$said' is not said"
done
! grep -q 'takes the seat (incarnation 4)' "$work/hopeless.log" || fail "hopeless: once too often"
cp "$work/task/train.jsonl" "$work/fleeting.jsonl"
steps=$(($(lines hopeless) + 3))
train_ranks 2 hopeless async.order=fixed_lag run.steps=$steps data.train="$work/fleeting.jsonl"
sound hopeless 2 $steps

[ $failed -eq 0 ] && echo "script_train_recovers: all as expected"
exit $failed
