# shellcheck shell=bash
# What the job scripts share; they source it first, with their own arguments: name=value for the notebook's parameters,
# run_dir=DIR, and options of `python -m skylib run`. Set from outside, where the defaults do not fit:
#   SKYLIB_PYTHON        a Python that has the packages                (default: .venv of the project)
#   SKYLIB_MODULES       modules to load first                         (default on the Alliance clusters: python/3.11)
#   SKYLIB_STAGE=0       read data where it is, though there is a $SLURM_TMPDIR
#   SKYLIB_MAX_RESTARTS  how often a job that was stopped is queued again            (default 20)
set -euo pipefail

project=${SLURM_SUBMIT_DIR:-$PWD}
run_dir="" python="" overrides=() options=()
for argument in "$@"; do
  case $argument in
    run_dir=*) run_dir=${argument#*=} ;;
    --*) options+=("$argument") ;;
    *) overrides+=("$argument") ;; # checked, by name and type, by skylib
  esac
done

# The one file by which all processes of this job, on all its nodes, are asked to stop: each looks at it, saves and ends.
ask_to_stop() { [ -e "$SKYLIB_STOP" ] || { echo "$1" >"$SKYLIB_STOP.new" && mv "$SKYLIB_STOP.new" "$SKYLIB_STOP"; }; }
listen() {
  SKYLIB_STOP=$(realpath -m "$run_dir")/STOP.${SLURM_JOB_ID:-$$}
  export SKYLIB_STOP
  mkdir -p "$run_dir" && rm -f "$SKYLIB_STOP"
  trap 'ask_to_stop SIGUSR1' USR1 # Slurm's warning before the time limit
  trap 'ask_to_stop SIGTERM' TERM # scancel, pre-emption
  trap 'rm -f "$SKYLIB_STOP"' EXIT
}
[ -z "$run_dir" ] || listen

say() { echo "[$(date +%T)] $*"; }
die() { say "$*" >&2; exit 2; }

[ -f "$project/slurm/common.sh" ] || die "$project is not the folder of the project: submit from there"
export PYTHONUNBUFFERED=1 PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"

on_every_node() {
  local nodes=${SLURM_JOB_NUM_NODES:-1}
  if [ "$nodes" -gt 1 ]; then srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"; else "$@"; fi
}

# Sets $python.
find_python() {
  local modules=${SKYLIB_MODULES-${CC_CLUSTER:+python/3.11}}
  # shellcheck disable=SC2086 # several modules are several words
  [ -z "$modules" ] || module load $modules
  python=${SKYLIB_PYTHON:-$project/.venv/bin/python}
  if [ ! -x "$python" ] && [ -n "${CC_CLUSTER:-}" ] && [ -n "${SLURM_TMPDIR:-}" ]; then
    say "making an environment in $SLURM_TMPDIR from the wheels of $CC_CLUSTER"
    # shellcheck disable=SC2016 # expanded on each node
    on_every_node bash -euc 'virtualenv --no-download "$SLURM_TMPDIR/env"
      "$SLURM_TMPDIR/env/bin/pip" install --quiet --no-index --upgrade pip
      "$SLURM_TMPDIR/env/bin/pip" install --quiet --no-index ${2:+--find-links "$2"} -r "$1/slurm/requirements.txt"' \
      - "$project" "$(ls -d "$project/wheels" 2>/dev/null || true)"
    python=$SLURM_TMPDIR/env/bin/python
  fi
  [ -x "$python" ] || die "no Python at $python: make the environment first (see slurm/README.md), or set SKYLIB_PYTHON"
}

# stage NAME [DEFAULT]: let the notebook read a copy, on the node's own disk, of the file or folder that its parameter NAME
# says, or that is meant where it is not given. The copy keeps its time, by which a study knows its file again.
stage() {
  local value=${2:-} argument copy
  for argument in "${overrides[@]}"; do [[ $argument != "$1="* ]] || value=${argument#*=}; done
  [ -n "${SLURM_TMPDIR:-}" ] && [ "${SKYLIB_STAGE:-1}" != 0 ] && [ -e "$value" ] || return 0
  copy=$SLURM_TMPDIR/$1/$(basename "$value")
  say "copying $value to $copy"
  if on_every_node mkdir -p "$SLURM_TMPDIR/$1" && on_every_node cp -RLp "$value" "$copy"; then
    options+=("--local=$1=$copy")
  else
    say "that failed: $value is read where it is"
  fi
}

# run_notebook NOTEBOOK [name=value ...]: the end of a job script.
run_notebook() {
  local notebook=$1
  shift
  run_skylib run "$project/notebooks/$notebook.ipynb" --run-dir "$run_dir" --skip-done "${options[@]}" "${overrides[@]}" "$@"
}

# run_skylib COMMAND [argument ...]: the same, for any command of `python -m skylib`.
run_skylib() {
  local child code
  [ -n "$run_dir" ] || die "run_dir=DIR is missing: the folder of the run, such as papermill_runs/first"
  [ -n "$python" ] || find_python
  say "job ${SLURM_JOB_ID:-none} on $(hostname): skylib $1 $2 in $run_dir, started ${SLURM_RESTART_COUNT:-0} times before"
  (
    trap '' TERM # until Python listens: scancel sends it to every process
    exec "$python" -m skylib "$@"
  ) &
  child=$!
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a trap ends one `wait`
  code=0
  wait "$child" || code=$?
  [ "$code" != 75 ] || requeue
  exit "$code"
}

# Puts this job, or this task of an array, back into the queue; it then resumes from what was saved. A job that is no longer running was
# ended by Slurm: by scancel, and then it stays ended; or by a pre-emption after which Slurm itself queues it again.
requeue() {
  local id=${SLURM_JOB_ID:-} state
  [ -n "$id" ] || return 0
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the job's id alone can mean all tasks
  state=$(scontrol --oneliner show job "$id" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  if [ "$state" != RUNNING ]; then
    say "stopped and saved; ended by Slurm ($state), and not queued again from here"
  elif [ "${SLURM_RESTART_COUNT:-0}" -ge "${SKYLIB_MAX_RESTARTS:-20}" ]; then
    say "stopped and saved; not queued again, after ${SLURM_RESTART_COUNT:-0} times (SKYLIB_MAX_RESTARTS)"
  else
    say "stopped and saved; queued again"
    scontrol requeue "$id"
  fi
}
