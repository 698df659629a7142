#!/bin/bash
# Submit the whole chain; each job starts when those it builds on have come to their end, and never if one failed.
#   slurm/submit_all.sh [options of sbatch, for all jobs] run_dir=papermill_runs/first [name=value ...]
#   slurm/submit_all.sh --account=def-someone run_dir=papermill_runs/first tiles=DIR catalogue=FILE steps=100000
# A parameter goes to each notebook that has it. With cutouts=FILE none are made. Set from outside:
#   PRETRAIN   further options of sbatch for pretraining alone, such as PRETRAIN="--gres=gpu:4 --nodes=2"
#   SHARDS     also search the sky, in this many tasks
# Prints a line "name job" for each.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${SKYLIB_PYTHON:-.venv/bin/python}
for_sbatch=() parameters=()
run_dir=""
for argument in "$@"; do
  case $argument in
    run_dir=*) run_dir=$argument ;;
    -*) for_sbatch+=("$argument") ;;
    *) parameters+=("$argument") ;;
  esac
done
[ -n "$run_dir" ] || { echo "run_dir=DIR is missing: the folder of the run, such as papermill_runs/first" >&2; exit 2; }

# Misspelt parameters are reported now, not by a job next week.
rows=$("$python" -m skylib check "${parameters[@]}" | sed -n 's/^rows of the label study: //p')

# submit NAME "JOB JOB ..." SCRIPT [options of sbatch --] [name=value ...]: sets $job
submit() {
  local name=$1 after=${2// /:} script=$3
  shift 3
  local extra=()
  while [ $# -gt 0 ] && [[ $1 == --?* ]]; do extra+=("$1"); shift; done
  job=$(sbatch --parsable ${after:+--dependency=afterok:"$after" --kill-on-invalid-dep=yes} \
    "${for_sbatch[@]}" "${extra[@]}" "slurm/$script.sh" --shared "$run_dir" "${parameters[@]}" "$@")
  job=${job%%;*} # some clusters add their name
  echo "$name $job"
}

job=""
[[ " ${parameters[*]}" == *" cutouts="* ]] || submit make_cutouts "" make_cutouts
read -ra more <<<"${PRETRAIN:-}"
submit pretrain "$job" pretrain "${more[@]}"; pretrain=$job
submit evaluate "$pretrain" evaluate; evaluate=$job
submit diagnostics "$evaluate" diagnostics
submit umap "$evaluate" umap
submit similarity "$evaluate" similarity
submit label_efficiency "$pretrain" label_efficiency "--array=0-$((rows - 1))"
submit label_efficiency_merge "$job" label_efficiency
if [ -n "${SHARDS:-}" ]; then
  submit search_sky "$evaluate" search_sky "--array=0-$((SHARDS - 1))" "n_shards=$SHARDS"
  submit search_sky_merge "$job" search_sky "n_shards=$SHARDS" merge=True
fi
