#!/bin/bash
# Embeddings of a file of cutouts too large for one task: a folder of parts, one per cell of the sky (`skylib embed --help`).
# As an array, each task makes its share; parts that exist are not made again, so failed tasks are submitted again as they were.
#   sbatch --array=0-99 --account=def-someone slurm/embed.sh run_dir=embeddings cutouts.h5 --model=papermill_runs/first --order=5
# Some tasks again, such as --array=3,5: add --n-shards=100.
#SBATCH --job-name=embed --time=12:00:00 --cpus-per-task=6 --mem=64G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=%x-%A_%a.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
[ "${#overrides[@]}" = 1 ] || die "needs run_dir=FOLDER, one file of cutouts, --model=MODEL and --order=N"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  options=("--shard=$SLURM_ARRAY_TASK_ID" "--n-shards=$((SLURM_ARRAY_TASK_MAX + 1))" "${options[@]}")
fi
run_skylib embed "${overrides[0]}" "--out=$run_dir" "${options[@]}"
