#!/bin/bash
# A sweep as an array of small jobs without MPI: each takes its share of the trials, and is queued, preempted
# and queued again for itself.
#
#   sbatch --array=0-7 scripts/slurm/sweep_array.sh SWEEP.yaml [section.key=value ...]
#
# FORESIGHT_THREADS (1) is the threads of a trial; each job runs as many trials at a time as its CPUs allow.
#SBATCH --job-name=foresight-sweep
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -u
foresight=${FORESIGHT:-build/foresight}
threads=${FORESIGHT_THREADS:-1}
sweep=${1:?usage: sbatch --array=0-N sweep_array.sh SWEEP.yaml [section.key=value ...]}
shift

# --mpi=none: a process that finds itself in an MPI job would wait for the others.
srun --ntasks=1 --cpu-bind=none --mpi=none "$foresight" sweep "$sweep" \
    "sweep.shards=${SLURM_ARRAY_TASK_COUNT:-1}" \
    "sweep.shard=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}))" \
    "sweep.parallel=$((${SLURM_CPUS_PER_TASK:-1} / threads))" "run.threads=$threads" "$@" &
pid=$!
stopped=no
trap 'stopped=yes; kill -USR1 "$pid" 2>/dev/null' USR1 TERM

# wait ends with each signal: again, until the sweep itself has ended.
while :; do
    wait "$pid"
    status=$?
    kill -0 "$pid" 2>/dev/null || break
done
# 0: it was done just then. Under mpirun --enable-recovery any other status becomes mpirun's own.
if [ "$stopped" = yes ] && [ "$status" -ne 0 ] && [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
