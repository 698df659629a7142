#!/bin/bash
# The label study (notebook 04). As an array, each task does one row (a method, a number of labels, a seed); as a plain job it
# does whatever is missing, puts the rows together and draws the figure. submit_all.sh counts the rows, here 40:
#   a=$(sbatch --parsable --array=0-39 --account=def-someone slurm/label_efficiency.sh run_dir=papermill_runs/first name=value ...)
#   sbatch --dependency=afterok:$a --account=def-someone slurm/label_efficiency.sh run_dir=papermill_runs/first name=value ...
#SBATCH --job-name=label_efficiency --time=03:00:00 --cpus-per-task=6 --mem=100G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%A_%a.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
stage cutouts "$run_dir/cutouts.h5"
run_notebook 04_label_efficiency ${SLURM_ARRAY_TASK_ID:+"row=$SLURM_ARRAY_TASK_ID"}
