#!/bin/bash
# Tokens of the 3B config on 8 CPU nodes, without Ray: one process a node, which starts a worker for
# every core. A later job trains on them. Replace the names in capitals.
#SBATCH --job-name=frame-3b-tokens
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
# SIGTERM comes to this script a minute before the time limit: it asks for a new start.

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # which srun does not take over by itself
trap 'scontrol requeue "$SLURM_JOB_ID"' TERM
srun .venv/bin/python -m frame_jax.main --config configs/frame_3b.yaml --until tokenize \
  --parallel.distributed true --run_directory SHARED_FOLDER/frame-3b &
wait $!
