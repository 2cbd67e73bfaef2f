#!/bin/bash
# The 3B config on 8 nodes of 8 GPUs, one process a GPU. Replace the names in capitals.
#SBATCH --job-name=frame-3b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# SIGTERM comes five minutes before the time limit; the state is saved, and 75 asks for a new start.

srun .venv/bin/python -m frame_jax.main --config configs/frame_3b.yaml \
  --parallel.distributed true --run_directory SHARED_FOLDER/frame-3b
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
