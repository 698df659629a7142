#!/bin/bash
# Cutouts of the objects of a catalogue, from FITS tiles (notebook 00); no GPU.
#   sbatch --account=def-someone slurm/make_cutouts.sh run_dir=papermill_runs/first tiles=DIR catalogue=FILE name=value ...
#SBATCH --job-name=make_cutouts --time=12:00:00 --cpus-per-task=4 --mem=32G --nodes=1
#SBATCH --signal=B:USR1@300 --requeue --open-mode=append --output=papermill_runs/%x-%j.log
source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
run_notebook 00_make_cutouts
