#!/bin/bash
# Look-alikes in the catalogue (notebook 05); no GPU.
#   sbatch --account=def-someone slurm/similarity.sh run_dir=papermill_runs/first name=value ...
#SBATCH --job-name=similarity --time=01:00:00 --cpus-per-task=4 --mem=32G --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
run_notebook 05_similarity
