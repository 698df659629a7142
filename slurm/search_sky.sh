#!/bin/bash
# Look-alikes all over the sky (notebook 06). As an array, each task searches its share of the tiles; the plain job after it
# puts their lists together:
#   a=$(sbatch --parsable --array=0-7 --account=def-someone slurm/search_sky.sh run_dir=papermill_runs/first name=value ...)
#   sbatch --dependency=afterok:$a --account=def-someone slurm/search_sky.sh run_dir=papermill_runs/first \
#     n_shards=8 merge=True name=value ...
# Without either it searches everything in one job. Without n_shards, an array must be whole, from 0: it has as many shards as
# tasks. Failed tasks submitted again, such as --array=3,5, need the number of all: n_shards=8.
#SBATCH --job-name=search_sky --time=12:00:00 --cpus-per-task=6 --mem=100G --gres=gpu:1 --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%A_%a.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  overrides+=("shard=$SLURM_ARRAY_TASK_ID")
  if [[ " ${overrides[*]}" != *" n_shards="* ]]; then
    [[ ${SLURM_ARRAY_TASK_MIN:-} == 0 && $((SLURM_ARRAY_TASK_MAX + 1)) == "$SLURM_ARRAY_TASK_COUNT" ]] ||
      die "this array is a part of another: say n_shards=N, of how many shards"
    overrides+=("n_shards=$SLURM_ARRAY_TASK_COUNT")
  fi
fi
run_notebook 06_search_sky
