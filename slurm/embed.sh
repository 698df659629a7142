#!/bin/bash
# Embeddings of a file of cutouts too large for one task: a folder of parts, one a cell of the sky (`skylib embed --help`).
# As an array, each task makes its share; parts that exist are not made again, so failed tasks are submitted again as they were.
#   sbatch --array=0-99 --account=def-someone slurm/embed.sh run_dir=embeddings papermill_runs/first cutouts.h5 [--order=5]
# The arguments are the folder of the parts, the model, and the cutouts. Some tasks again, such as --array=3,5: add --n-shards=100.
#SBATCH --job-name=embed --time=12:00:00 --cpus-per-task=6 --mem=64G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%A_%a.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
[ "${#overrides[@]}" = 2 ] || die "needs run_dir=FOLDER, a model and a file of cutouts"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  options=("--shard=$SLURM_ARRAY_TASK_ID" "--n-shards=$((SLURM_ARRAY_TASK_MAX + 1))" "${options[@]}")
fi
run_skylib embed "${overrides[@]}" "$run_dir" "${options[@]}"
