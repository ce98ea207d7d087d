#!/usr/bin/env bash
# SLURM, one task per node, which drives all GPUs of its node:   sbatch examples/launch/slurm_per_node.sh [FLAGS OF TRAIN]
#SBATCH --job-name=yolojax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Two minutes before the time is over, or when the job is preempted, SLURM sends SIGTERM: all tasks finish the step, save together and end.
# A job that is queued again goes on in its own run folder. Submit from a folder that all nodes share.
set -euo pipefail

name="slurm-$SLURM_JOB_ID"
if [ -f "runs/train/$name/settings.yaml" ]; then
    flags=(--resume "runs/train/$name")
else
    flags=(--weights yolov5m.pt --data voc.yaml --img 512 --batch 768 --freeze 10 --name "$name" "$@")
fi
srun yolojax train "${flags[@]}"
