#!/bin/bash
# Pretraining (notebook 01), on all GPUs of all nodes that the job is given.
#   sbatch --time=72:00:00 --cpus-per-task=6 --account=def-someone --mem=100G --gres=gpu:1 slurm/pretrain.sh name=value ...
# A run folder is taken by run_dir=DIR, and is named after the job otherwise.
#SBATCH --job-name=pretrain --time=72:00:00 --cpus-per-task=6 --mem=100G --gres=gpu:1 --nodes=1 --ntasks-per-node=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
[ -n "$run_dir" ] || { run_dir=papermill_runs/pretrain-${SLURM_JOB_ID:-local}; listen; }
stage cutouts "$run_dir/cutouts.h5"
run_notebook 01_pretrain
