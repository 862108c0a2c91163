#!/bin/bash
# A Ray cluster as one Slurm job, with an amsd sweep on it:   sbatch docs/ray/slurm.sh sd15-cfg-eta /shared/sweep
#SBATCH --job-name=amsd-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue

set -eu
sweep=$1
folder=$2
gpus=$SLURM_GPUS_ON_NODE
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$head:6379
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '+/=')

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --num-gpus="$gpus" --include-dashboard=false --block &
sleep 20
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --address="$address" --num-gpus="$gpus" --block &
    sleep 20
fi

# Five minutes before the end every trial writes a checkpoint; the same command goes on where it was.
amsd sweep run "$sweep" --output "$folder" --launcher ray --ray-address "$address" \
    --workers $((${#nodes[@]} * gpus)) &
driver=$!
trap 'kill -TERM "$driver"' TERM
wait "$driver" || wait "$driver" || code=$?
[ "${code:-0}" = 130 ] && scontrol requeue "$SLURM_JOB_ID"
exit "${code:-0}"
