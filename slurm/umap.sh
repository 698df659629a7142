#!/bin/bash
# Maps of the embeddings (notebook 03); no GPU.
#   sbatch --account=def-someone slurm/umap.sh run_dir=papermill_runs/first name=value ...
#SBATCH --job-name=umap --time=03:00:00 --cpus-per-task=8 --mem=64G --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
run_notebook 03_umap
