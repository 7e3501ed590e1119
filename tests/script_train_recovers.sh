#!/bin/bash
# What a run recovers from by itself: groups that are damaged on their way, a rollout rank that ends
# by an error of its own, and, given up with a reason, a seat whose every process does so; numbers that
# are not finite in the order fixed_lag. And what ranks cost that wait.
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
timeout 600 mpirun -n 3 "$work/damaged_rank.sh" train "$work/config.yaml" run.name=damaged \
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
timeout 600 mpirun -n 2 --enable-recovery "$work/odd_rank.sh" train "$work/config.yaml" \
    run.name=odd "${fixed[@]}" >"$work/odd.log" 2>&1 || fail "odd: mpirun's status is $?"
grep -q 'reads other prompts than the learner' "$work/odd.log" || fail "odd: no error"
grep -q 'rollout rank 1: process .* takes the seat (incarnation 1)' "$work/odd.log" ||
    fail "odd: not replaced"
sound odd 2 30
same_bits sound_one odd

# --- every process of the only seat fails: the third time it is given up, and the run ends
cp "$work/task/train.jsonl" "$work/fleeting.jsonl"
start_ranks 2 hopeless async.order=fixed_lag run.steps=1000000 data.train="$work/fleeting.jsonl"
wait_for 120 has_lines hopeless 2 || { fail "hopeless: no steps"; kill_job; }
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

# --- numbers that stop being finite, in fixed_lag order: skipped updates and a rollback make versions
# as well, so that step s still has version s; stopped before, amid and after it, and with other
# ranks: the same bits. The decay alone makes weights grow 1.8-fold a step, and shrink to 0.4 at half
# the rate, so that it comes about once whatever the kernels.
mpirun_flags=
wild=(async.order=fixed_lag optimizer.max_grad_norm=0 optimizer.updates_per_step=1
    optimizer.learning_rate=0.35 optimizer.weight_decay=8 checkpoint.every=1 checkpoint.keep_last=12)
version_is_step() {
    python3 - "$work/runs/$1/metrics.jsonl" <<'PY' || fail "$1: versions"
import json, sys
steps = [json.loads(line) for line in open(sys.argv[1])]
last = steps[-1]
if any(s["version"] != s["step"] for s in steps) or last["rollbacks"] != 1 or last["skipped_updates"] < 3:
    sys.exit(f"{[(s['step'], s['version']) for s in steps]}: {last}")
PY
}
train_ranks 2 torn run.steps=100 "${wild[@]}"
first=$(grep -o 'batch of step [0-9]*' "$work/torn.log" | head -n 1 | grep -o '[0-9]*$')
for steps in $((first - 1)) $((first + 1)) $((first + 4)) 100; do
    train_ranks 3 torn_parts run.steps=$steps "${wild[@]}"
done
for name in torn torn_parts; do
    version_is_step $name
    every_step $name 100
    summary $name 's["completed"] and s["tickets"]["trained"] == 600 and s["tickets"]["live"] == 0'
done
same_bits torn torn_parts

# --- ranks without anything to do hardly use the processor, be they learner or rollout ranks. What is
# expected is a few hundredths of a core; a rank that spins would use all of one.
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
# idle RANK: measured while who gives it work is stopped
idle() {
    local process before began
    process=$(ranks_of "$1")
    sleep 1 # what it has been given is done by then
    before=$(ticks "$process")
    began=$(now)
    sleep 2
    awk -v ticks=$(($(ticks "$process") - before)) -v hertz="$(getconf CLK_TCK)" \
        -v seconds="$(since "$began")" -v rank="$1" 'BEGIN {
            used = ticks / hertz / seconds
            printf "idle rank %d uses %.1f %% of a core\n", rank, 100 * used
            exit used > 0.3 }' || fail "idle: rank $1 is busy"
}
start_ranks 3 idle async.order=fixed_lag run.steps=1000000
wait_for 60 has_lines idle 2 || fail "idle: no steps"
kill -STOP "$(ranks_of 0)"
idle 1
kill -CONT "$(ranks_of 0)"
kill -STOP "$(ranks_of 1)" "$(ranks_of 2)"
idle 0
kill_job

[ $failed -eq 0 ] && echo "script_train_recovers: all as expected"
exit $failed
