#!/bin/bash
# A sweep as one Slurm job on several nodes: mpirun spreads the trials over the nodes' processes.
#
#   sbatch --nodes=4 scripts/slurm/sweep_job.sh SWEEP.yaml [section.key=value ...]
#
# When the time is up or the job is preempted, Slurm sends SIGUSR1 two minutes before: the trials write
# their checkpoints, the sweep ends, and the job is queued again and goes on.
#SBATCH --job-name=foresight-sweep
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u
foresight=${FORESIGHT:-build/foresight}
sweep=${1:?usage: sbatch sweep_job.sh SWEEP.yaml [section.key=value ...]}
shift

# mpirun passes SIGUSR1 on to every rank; ranks that are lost give their trials back.
mpirun --enable-recovery --bind-to none -n "${SLURM_NTASKS:-1}" \
    "$foresight" sweep "$sweep" "run.threads=${SLURM_CPUS_PER_TASK:-1}" "$@" &
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
if [ "$stopped" = yes ] && [ "$status" -ne 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
