"""Which recipe of pretraining gives the best frozen embeddings, on a simulated survey that is always the same.

    python benchmarks/recipes.py survey --out SURVEY --workers 16
    python benchmarks/recipes.py rivals --survey SURVEY --out RESULTS
    python benchmarks/recipes.py study  --survey SURVEY --out RESULTS --recipes plain,noise+flux --seeds 0,1,2 \\
                                        --steps 1000 --batch 512 --jobs 8 --minutes 4
    python benchmarks/recipes.py table  --out RESULTS
    python benchmarks/recipes.py run    --survey SURVEY --out RESULTS --recipe noise+flux --seed 0 --steps 1000
    python benchmarks/recipes.py score  --survey SURVEY --out RESULTS --model RUN --name shipped
    python benchmarks/recipes.py real   --data DATA --out RESULTS --model sky-nano
    python benchmarks/recipes.py labels --survey SURVEY --out RESULTS --model sky-nano

`survey` renders 16 tiles in HSC's seeing and depth, and 4 of other seeing and depth that nothing is fitted to (20 s a
tile and core); `--extra-tiles 24` adds fields of varied seeing and depth to pretrain on (`run --extra`). `--quick` makes
everything tiny: to see that it works, not to measure. `rivals` measures what anyone gets without pretraining. `study`
runs all recipes with the first seed, then with the next; every result is one file, `RESULTS/rows/RECIPE-SEED.json`; made
again, it resumes. With `--compile`, long runs of a small model are several times faster on a GPU, after a minute or so.
Each recipe is given as many steps as cost the floating point operations of `--steps` of `plain`.

A recipe is a sum of settings (`SETTINGS` in `recipe_train.py`), such as ``noise+flux+bands25``. Those that this version
of the library does not have are left out, with a message.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the library is not installed

from recipe_labels import study as label_study
from recipe_real import SETS
from recipe_real import measure as measure_real
from recipe_rivals import rivals
from recipe_scores import Survey
from recipe_survey import make_survey
from recipe_table import table
from recipe_train import RECIPES, measure, recipe, run

from skylib import load_model
from skylib.files import write_json


def study(options: argparse.Namespace) -> None:
    """Run recipes as processes, some at a time, until all are done or the time is up; then print the table."""
    end = time.monotonic() + 60 * options.minutes
    survey, bands = Survey(options.survey), None
    todo = []
    names = RECIPES if options.recipes == "all" else tuple(options.recipes.split(","))
    for seed in map(int, str(options.seeds).split(",")):
        for name in names:
            try:
                bands = bands or survey.main.bands
                recipe(name, bands=bands)
            except ValueError as error:
                if seed == int(str(options.seeds).split(",")[0]):
                    print(f"left out: {error}", flush=True)
                continue
            if not (options.out / "rows" / f"{name}-{seed}.json").is_file():
                todo.append((name, seed))
    running: dict[subprocess.Popen[bytes], tuple[str, int, float]] = {}
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    longest = 0.0
    while todo or running:
        for process in [p for p in running if p.poll() is not None]:
            name, seed, began = running.pop(process)
            seconds = time.monotonic() - began
            longest = max(longest, seconds)
            state = "done" if process.returncode == 0 else f"FAILED, see {options.out}/logs/{name}-{seed}.log"
            print(f"{name}, seed {seed}: {state} in {seconds:.0f} s", flush=True)
        late = time.monotonic() + longest > end
        if todo and late and not running:
            break
        while todo and len(running) < options.jobs and not late:
            name, seed = todo.pop(0)
            with open(options.out / "logs" / f"{name}-{seed}.log", "wb") as log:
                process = subprocess.Popen(_command(options, name, seed), stdout=log, stderr=log, env=_quiet())
            running[process] = (name, seed, time.monotonic())
        if time.monotonic() > end + 5:
            print(f"time is up: {len(running)} unfinished, {len(todo)} not begun", flush=True)
            for process in running:
                process.terminate()
            break
        time.sleep(0.2)
    print(table(options.out), flush=True)


def _command(options: argparse.Namespace, name: str, seed: int) -> list[str]:
    command = [sys.executable, __file__, "run", "--survey", options.survey, "--out", options.out, "--recipe", name]
    command += ["--seed", seed, "--steps", options.steps, "--batch", options.batch]
    command += ["--learning-rate", options.learning_rate]
    command += [f"--{flag}" for flag in ("extra", "compile", "attentive") if getattr(options, flag)]
    return [str(word) for word in command]


def _quiet() -> dict[str, str]:
    """Return an environment in which each process keeps to one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = ("survey", "rivals", "run", "study", "score", "real", "labels", "table")
    parts = {name: commands.add_parser(name) for name in names}
    for name, part in parts.items():
        part.add_argument("--out", type=Path, required=True)
        if name not in ("survey", "real", "table"):
            part.add_argument("--survey", type=Path, required=True)
        if name in ("run", "study", "score"):
            part.add_argument("--attentive", action="store_true", help="also train an attentive head on the tokens")
        if name in ("run", "study"):
            part.add_argument("--steps", type=int, default=1600, help="of plain; others as many as cost the same")
            part.add_argument("--batch", type=int, default=64)
            part.add_argument("--learning-rate", type=float, default=2e-3)
            part.add_argument("--extra", action="store_true", help="pretrain on the extra fields too")
            part.add_argument("--compile", action="store_true")
    parts["survey"].add_argument("--tiles", type=int, default=16)
    parts["survey"].add_argument("--extra-tiles", type=int, default=0)
    parts["survey"].add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parts["survey"].add_argument("--quick", action="store_true", help="tiny: to see that it works")
    parts["survey"].add_argument("--keep-tiles", action="store_true", help="do not delete the rendered tiles")
    parts["run"].add_argument("--recipe", required=True)
    parts["run"].add_argument("--seed", type=int, default=0)
    parts["study"].add_argument("--recipes", default="all", help="names with commas between, or all")
    parts["study"].add_argument("--seeds", default="0,1,2")
    parts["study"].add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parts["study"].add_argument("--minutes", type=float, default=60.0, help="start nothing that would end later")
    parts["score"].add_argument("--model", required=True, help="run folder, checkpoint or name")
    parts["score"].add_argument("--name", default="model")
    parts["real"].add_argument("--model", default="sky-nano", help="run folder, checkpoint or name")
    parts["real"].add_argument("--data", type=Path, required=True, help="folder that holds kids_viking/, sdss_qso_z/ …")
    parts["real"].add_argument("--all-orientations", action="store_true", help="average over rotations and flips")
    parts["real"].add_argument("--sets", default=",".join(SETS), help="which of them")
    parts["real"].add_argument("--steps", type=int, default=300, help="also train the model on, on the images of train")
    parts["labels"].add_argument("--model", default="sky-nano", help="run folder, checkpoint or name")
    parts["labels"].add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("skylib").setLevel(logging.ERROR)
    start = time.perf_counter()
    if options.command == "survey":
        names = ("tiles", "extra_tiles", "workers", "quick", "keep_tiles")
        make_survey(options.out, **{name: getattr(options, name) for name in names})
    elif options.command == "rivals":
        survey = Survey(options.survey)
        rivals(survey, options.out, recipe("plain", bands=survey.main.bands)[0], measure)
    elif options.command == "run":
        names = ("seed", "steps", "batch", "learning_rate", "extra", "compile", "attentive")
        chosen = {name: getattr(options, name) for name in names}
        row = run(options.recipe, Survey(options.survey), options.out, **chosen)
        print(json.dumps(row))
    elif options.command == "score":
        found = measure(load_model(options.model), Survey(options.survey), attentive=options.attentive)
        row = {"recipe": options.name, "seed": 0, **found}
        write_json(options.out / "rows" / f"{options.name}-0.json", row)
        print(json.dumps(row))
    elif options.command == "real":
        for name in options.sets.split(","):
            how = {"model": options.model, "steps": options.steps, "all_orientations": options.all_orientations}
            for row in measure_real(name, options.data, options.out, **how):
                print(json.dumps(row), flush=True)
    elif options.command == "labels":
        model = load_model(options.model)
        label_study(model, Survey(options.survey), options.out, seeds=options.seeds)
    elif options.command == "study":
        study(options)
    else:
        print(table(options.out))
    print(f"{options.command}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
