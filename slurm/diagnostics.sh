#!/bin/bash
# Missing bands, observing conditions, positions and labels (notebook 02b).
#   sbatch --account=def-someone slurm/diagnostics.sh run_dir=papermill_runs/first name=value ...
#SBATCH --job-name=diagnostics --time=03:00:00 --cpus-per-task=6 --mem=100G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
run_notebook 02b_diagnostics
