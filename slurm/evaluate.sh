#!/bin/bash
# Embeddings, classification and redshift (notebook 02).
#   sbatch --account=def-someone slurm/evaluate.sh run_dir=papermill_runs/first name=value ...
#SBATCH --job-name=evaluate --time=03:00:00 --cpus-per-task=6 --mem=100G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
run_notebook 02_evaluate
