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

A recipe is a sum of settings (`SETTINGS`), such as ``noise+flux+bands25``. Those that this version of the library does
not have are left out, with a message.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the library is not installed

from recipe_labels import study as label_study
from recipe_real import SETS
from recipe_real import measure as measure_real
from recipe_rivals import rivals
from recipe_scores import Survey, score
from recipe_table import table

from skylib import CutoutFile, CutoutLoader, ModelConfig, PretrainConfig, build_model, load_model, pretrain
from skylib.data.augment import Augmentation
from skylib.device import fast_precision, pick_device
from skylib.files import write_json
from skylib.model.embed import encode

VERSION = 1  # of the survey: numbers of different versions do not compare
SEED, OTHER_SEED, EXTRA_SEED = 7, 1007, 2007
OTHER_SEEING, OTHER_DEPTH = (1.3, 1.0, 1.3, 1.15), (0.0, -0.75, -0.75, -0.4)  # of the four tiles of the other field
POOLS, LAYERS = ("mean", "mean_central"), (2, 3, 4, 5)

# What a recipe is a sum of: fields of ModelConfig and of PretrainConfig.
SHAPE: dict[str, Any] = {"size": "nano", "image_size": 32, "patch_size": 4, "decoder_width": 96, "decoder_depth": 1}
SHAPE |= {"norm_pix": "band", "flux_weight": 0.0, "hide_bands": 0.0}  # whatever the defaults of this version are
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"norm_pix": "band"}, {}),
    "patch": ({"norm_pix": "patch"}, {}),
    "raw": ({"norm_pix": None}, {}),
    "flux": ({"flux_weight": 0.3}, {}),
    "flux10": ({"flux_weight": 0.1}, {}),
    "flux100": ({"flux_weight": 1.0}, {}),
    "bands": ({"hide_bands": 0.5}, {}),
    "bands25": ({"hide_bands": 0.25}, {}),
    "deep": ({"decoder_depth": 3}, {}),
    "ema": ({}, {"ema": 0.998}),
    "half": ({"mask_ratio": 0.5}, {}),
    "dropout": ({}, {"band_dropout": 0.2}),  # of the augmentation
    "original": (
        {"objective": "simmim", "stretch": "linear", "norm_pix": "patch", "loss": "l1", "ra_dec": True},
        {"learning_rate": 1e-4, "warmup_steps": 0, "clip_grad": 0.0},
    ),
    "fast": ({}, {"learning_rate": 2e-3, "warmup_steps": None, "clip_grad": 1.0}),  # "original" at our learning rate
}
RECIPES = (
    "plain",
    "patch",
    "original",
    "original+fast",
    "flux",
    "bands25",
    "patch+flux",
    "patch+flux+bands",
    "patch+flux+bands25",
)


def recipe(name: str, *, bands: tuple[str, ...]) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the model of a recipe, and its settings of the training; ValueError if this version lacks one."""
    model: dict[str, Any] = dict(SHAPE)
    training: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in SETTINGS:
            raise ValueError(f"recipe {name!r}: no setting {part!r}; there are {', '.join(SETTINGS)}")
        model |= SETTINGS[part][0]
        training |= SETTINGS[part][1]
    try:
        return ModelConfig(bands=bands, **model), training
    except TypeError as error:
        raise ValueError(f"recipe {name!r}: this version cannot do it ({error})") from error


def flops(config: ModelConfig, *, n: int = 8) -> float:
    """Return the floating point operations of a training step, for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(config)
    flux = torch.randn(n, len(config.bands), config.image_size, config.image_size)
    nowhere = torch.zeros(n)
    with FlopCounterMode(display=False) as counter:
        model(flux, ra=nowhere, dec=nowhere).loss.backward()
    return counter.get_total_flops() / n


def make_survey(
    folder: Path, *, tiles: int, extra_tiles: int, workers: int, quick: bool, keep_tiles: bool = False
) -> None:
    """Render the fields, cut out the objects, and write ``main.h5``, ``other.h5``, ``pretrain.h5`` and ``survey.json``."""
    size = {"tile_size": 192, "n_objects": 120} if quick else {"tile_size": 1024, "n_objects": 1500}
    rng = np.random.default_rng(EXTRA_SEED)
    conditions = rng.uniform(0.8, 1.5, extra_tiles), rng.uniform(-1.0, 0.5, extra_tiles)
    fields = {
        "main": (tiles, SEED, np.ones(tiles), np.zeros(tiles)),
        "other": (len(OTHER_SEEING), OTHER_SEED, np.array(OTHER_SEEING), np.array(OTHER_DEPTH)),
    }
    if extra_tiles:
        fields["extra"] = (extra_tiles, EXTRA_SEED, *conditions)
    folder.mkdir(parents=True, exist_ok=True)

    def make(name: str) -> None:
        n, seed, seeing, depth = fields[name]
        if (folder / f"{name}.h5").is_file():
            return
        _make_field(folder, name, n, seed, seeing, depth, size=size, workers=workers, keep_tiles=keep_tiles)

    with ThreadPoolExecutor(len(fields)) as pool:  # the processes of all fields share the cores
        list(pool.map(make, fields))
    if extra_tiles:
        _join(folder)
    write_json(folder / "survey.json", {"version": VERSION, "tiles": tiles, "extra_tiles": extra_tiles, "quick": quick})


def _make_field(
    folder: Path,
    name: str,
    n: int,
    seed: int,
    seeing: np.ndarray,
    depth: np.ndarray,
    *,
    size: dict[str, int],
    workers: int,
    keep_tiles: bool,
) -> None:
    import shutil

    from astropy.table import Table

    from skylib import find_tiles, make_cutouts, simulate_sky

    place = folder / "fields" / name
    if not (place / "catalogue.fits").is_file():
        per_tile = size["n_objects"]
        simulate_sky(
            place,
            n_tiles=n,
            tile_size=size["tile_size"],
            n_objects=per_tile * n,
            seed=seed,
            seeing=seeing.tolist(),
            depth=depth.tolist(),
            workers=workers,
        )
    objects = Table.read(place / "catalogue.fits")
    number = objects["object_id"] // 100_000 - 1
    objects["seeing"], objects["depth"] = seeing[number], depth[number]
    objects["split"] = np.select([number % 5 == 3, number % 5 == 4], [1, 2], 0).astype(np.int64)
    tiles = find_tiles(place / "tiles", bands="grizy", min_bands=4)
    make_cutouts(tiles, objects, folder / f"{name}.h5", size=SHAPE["image_size"], workers=min(workers, 8))
    if not keep_tiles:
        shutil.rmtree(place)


def _join(folder: Path) -> None:
    """Write ``pretrain.h5``: the training tiles of the main field and all of the extra ones, without labels."""
    from skylib import write_cutouts

    main, extra = CutoutFile(folder / "main.h5"), CutoutFile(folder / "extra.h5")
    rows = np.flatnonzero(main.column("split") == 0)
    flux = np.concatenate([main.flux(rows), extra.flux()])
    ra, dec = (np.concatenate([getattr(main, axis)[rows], getattr(extra, axis)]) for axis in ("ra", "dec"))
    write_cutouts(folder / "pretrain.h5", flux, ra=ra, dec=dec, bands=main.bands)


def train_recipe(
    name: str,
    survey: Survey,
    run_dir: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    extra: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Pretrain by a recipe, and return what it took."""
    main = survey.main
    config, training = recipe(name, bands=main.bands)
    cost = flops(config)
    steps = max(2, round(steps * flops(recipe("plain", bands=main.bands)[0]) / cost))
    augment = Augmentation(band_dropout=training.pop("band_dropout", 0.0))
    training = {"learning_rate": learning_rate, "warmup_steps": None, **training}
    if training["warmup_steps"] is None:
        training["warmup_steps"] = steps // 10
    device = pick_device()
    settings = PretrainConfig(
        steps=steps,
        batch_size=batch,
        precision=fast_precision(device) if device.type == "cuda" else "fp32",
        seed=seed,
        compile=compile,
        log_every=max(1, steps // 20),
        validate_every=steps,
        checkpoint_every=steps,
        checkpoint_minutes=1e6,
        **training,
    )
    data = CutoutFile(survey.folder / "pretrain.h5") if extra else main
    rows = None if extra else np.flatnonzero(main.column("split") == 0)
    loader = CutoutLoader(
        data,
        rows=rows,
        batch_size=batch,
        size=config.image_size,
        augment=augment,
        seed=seed,
        device=device,
        memory=2**40,
    )
    start = time.perf_counter()
    result = pretrain(config, settings, train=loader, run_dir=run_dir)
    seconds = time.perf_counter() - start
    loss = result.metrics["loss"].dropna().tail(3).mean()
    return {
        "steps": steps,
        "batch": batch,
        "training TFLOP": cost * steps * batch / 1e12,
        "seconds of training": round(seconds, 1),
        "images/s": round(steps * batch / seconds),
        "loss": float(loss),
    }


def model_encoder(model: Any) -> Any:
    """Return a function from a file, rows and missing bands to the vectors of all layers and poolings that are tried."""
    precision = fast_precision(model.sky_sigma.device)
    depth = len(model.encoder.blocks)
    layers = LAYERS if depth == 6 else tuple(range(depth // 3, depth, max(1, depth // 6)))

    def run(cutouts: CutoutFile, rows: np.ndarray, dropped: Any) -> Any:
        return encode(
            model,
            cutouts,
            rows=rows,
            pools=POOLS,
            layers=layers,
            drop_bands=dropped,
            batch_size=1024,
            precision=precision,
        )

    return run


def run(
    name: str,
    survey: Survey,
    out: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    extra: bool = False,
    compile: bool = False,
    attentive: bool = False,
) -> dict[str, Any]:
    """Train and measure one recipe with one seed, and write its row."""
    folder = out / "runs" / f"{name}-{seed}"
    took = train_recipe(
        name,
        survey,
        folder,
        seed=seed,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        extra=extra,
        compile=compile,
    )
    row = {"recipe": name, "seed": seed, **took, **measure(load_model(folder), survey, attentive=attentive)}
    write_json(out / "rows" / f"{name}-{seed}.json", row)
    return row


def measure(model: Any, survey: Survey, *, attentive: bool = False) -> dict[str, Any]:
    """Return everything that is measured of a model."""
    row = score(model_encoder(model), survey)
    if attentive:
        from skylib import ProbeConfig, train_head

        config = ProbeConfig(batch_size=512, epochs=20, learning_rate=2e-3)
        found = train_head(model, survey.main, "class", method="attentive", split=survey.split, config=config)
        row["class attentive"] = found.metrics["balanced_accuracy"]
    return row


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
    command += [
        "--seed",
        seed,
        "--steps",
        options.steps,
        "--batch",
        options.batch,
        "--learning-rate",
        options.learning_rate,
    ]
    command += [f"--{flag}" for flag in ("extra", "compile", "attentive") if getattr(options, flag)]
    return [str(word) for word in command]


def _quiet() -> dict[str, str]:
    """Return an environment in which each process keeps to one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = {
        name: commands.add_parser(name)
        for name in ("survey", "rivals", "run", "study", "score", "real", "labels", "table")
    }
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
    parts["real"].add_argument("--sets", default=",".join(SETS), help="which of them")
    parts["real"].add_argument("--steps", type=int, default=300, help="also train the model on, on the images of train")
    parts["labels"].add_argument("--model", default="sky-nano", help="run folder, checkpoint or name")
    parts["labels"].add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("skylib").setLevel(logging.ERROR)
    start = time.perf_counter()
    if options.command == "survey":
        make_survey(
            options.out,
            tiles=options.tiles,
            extra_tiles=options.extra_tiles,
            workers=options.workers,
            quick=options.quick,
            keep_tiles=options.keep_tiles,
        )
    elif options.command == "rivals":
        rivals(
            Survey(options.survey), options.out, recipe("plain", bands=Survey(options.survey).main.bands)[0], measure
        )
    elif options.command == "run":
        row = run(
            options.recipe,
            Survey(options.survey),
            options.out,
            seed=options.seed,
            steps=options.steps,
            batch=options.batch,
            learning_rate=options.learning_rate,
            extra=options.extra,
            compile=options.compile,
            attentive=options.attentive,
        )
        print(json.dumps(row))
    elif options.command == "score":
        row = {
            "recipe": options.name,
            "seed": 0,
            **measure(load_model(options.model), Survey(options.survey), attentive=options.attentive),
        }
        write_json(options.out / "rows" / f"{options.name}-0.json", row)
        print(json.dumps(row))
    elif options.command == "real":
        for name in options.sets.split(","):
            for row in measure_real(name, options.data, options.out, model=options.model, steps=options.steps):
                print(json.dumps(row), flush=True)
    elif options.command == "labels":
        model = load_model(options.model)
        label_study(model, model_encoder(model), Survey(options.survey), options.out, seeds=options.seeds)
    elif options.command == "study":
        study(options)
    else:
        print(table(options.out))
    print(f"{options.command}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
