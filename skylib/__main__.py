"""The command line: ``skylib run | check | status | demo | notebooks | embed | simulate | fetch``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skylib.stopping import EXIT_CODE, Interrupted


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 if all went well, 1 if a notebook failed, 2 if what was asked is at fault, 75 (EX_TEMPFAIL) if it was
        asked to stop and resumes when it is run again, 130 if interrupted at the terminal.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes "NOTEBOOK --run-dir DIR name=value" for a positional argument too many.
    if hasattr(arguments, "overrides"):
        arguments.overrides += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    log = logging.getLogger("skylib")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))

    from skylib.runner.execute import NotebookError, NotebookInterrupted

    try:
        arguments.command(arguments)
    except (NotebookError, Interrupted, ValueError, TypeError, OSError) as error:
        if arguments.debug:
            raise
        if isinstance(error, (NotebookInterrupted, Interrupted)):
            print(f"skylib: {error}", file=sys.stderr)
            return EXIT_CODE
        print(f"skylib: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotebookError) else 2
    except KeyboardInterrupt as error:
        print(f"skylib: interrupted {error}".rstrip(), file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skylib",
        description="Sky Embeddings: run its notebooks, list their progress, simulate or fetch data.",
        epilog="Each command has examples: skylib COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=_version(), help="print the version and end")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[..., None], help: str, example: str, to: Any = commands) -> Any:
        text = {"help": help, "description": f"{help[0].upper()}{help[1:]}.", "epilog": f"example:\n{example}"}
        new = to.add_parser(name, **text, formatter_class=argparse.RawDescriptionHelpFormatter)
        new.add_argument("--debug", action="store_true", help="show the traceback of an error")
        new.set_defaults(command=command)
        return new

    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    run = add(
        "run",
        _run,
        "execute a notebook into a run folder",
        "  skylib run 01_pretrain --run-dir papermill_runs/first learning_rate=3e-4 steps=2000\n"
        "  skylib run 01_pretrain --list",
    )
    run.add_argument("notebook", help="a path, or the name of one of the project's notebooks, such as 01_pretrain")
    run.add_argument("overrides", nargs="*", metavar="name=value", help="parameters of the notebook: Python literals")
    run.add_argument("--run-dir", **folder, help="gets the executed notebook and all results")
    run.add_argument("--help-parameters", "--list", action="store_true", help="list the notebook's parameters and end")
    run.add_argument("--skip-done", action="store_true", help="do nothing if it is done with these parameters already")
    run.add_argument(
        "--local",
        action="append",
        default=[],
        metavar="name=COPY",
        help="read this copy, on the node's own disk, of the file or folder that is the parameter's value",
    )
    run.add_argument("--shared", action="store_true", help="ignore parameters that only other notebooks beside it have")

    check = add(
        "check",
        _check,
        "check parameters that are meant for all notebooks, and say which takes which",
        "  skylib check steps=2000 n_labels=[10,100]",
    )
    check.add_argument("overrides", nargs="*", metavar="name=value", help="parameters, as Python literals")

    status = add("status", _status, "list the progress of all runs", "  skylib status papermill_runs --watch")
    runs = {**folder, "nargs": "?", "default": Path("papermill_runs")}
    status.add_argument("runs_dir", **runs, help="a folder of runs, or one run folder (default: %(default)s)")
    status.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="show it repeatedly, until Ctrl-C"
    )

    demo = add(
        "demo",
        _demo,
        "run all notebooks in order, on a simulated sky or on your own tiles, and write a page of results",
        "  skylib demo\n  skylib demo --run-dir runs/mine --tiles tiles/ --catalogue objects.fits --survey my.toml",
    )
    demo.add_argument("overrides", nargs="*", metavar="name=value", help="given to every notebook that has it")
    run_dir = {**folder, "default": Path("papermill_runs/demo")}
    demo.add_argument("--run-dir", **run_dir, help="gets all results (default: %(default)s)")
    demo.add_argument("--tiles", **folder, help="your FITS tiles")
    demo.add_argument("--catalogue", type=Path, metavar="FILE", help="your table of the objects on them: ra and dec")
    demo.add_argument("--survey", metavar="NAME", help="a name such as sdss, or a .toml file (default: hsc)")

    notebooks = add("notebooks", _notebooks, "copy the notebooks into a folder", "  skylib notebooks notebooks")
    notebooks.add_argument("directory", type=Path, help="where to; notebooks that exist there are kept")

    embed = add(
        "embed",
        _embed,
        "embed the cutouts of a file with a trained model",
        "  skylib embed cutouts.h5 --model sky-nano -o embeddings.h5\n"
        "  skylib embed cutouts.h5 --model papermill_runs/first -o embeddings --order 5 --shard 3 --n-shards 100",
    )
    embed.add_argument("cutouts", type=Path, help="HDF5 file of cutouts")
    embed.add_argument("--model", required=True, help="run folder, checkpoint, or name of shipped weights")
    embed.add_argument("-o", "--out", type=Path, default=Path("embeddings.h5"), help="default: %(default)s")
    embed.add_argument("--pool", default="mean", help="such as central or mean_central (default: %(default)s)")
    embed.add_argument("--layer", type=int, default=-1, help="after which block (default: the last)")
    embed.add_argument("--all-orientations", action="store_true", help="average rotations and flips: 8 times the time")
    embed.add_argument("--bands", help="order of the planes, for a file that does not state it")
    embed.add_argument("--survey", help="states unit and pixel scale where the file does not (default: hsc)")
    embed.add_argument("--rescale", action="store_true", help="bring the images to the pixel scale of the model first")
    embed.add_argument("--order", type=int, help="make a folder of parts, one per HEALPix cell of this order")
    embed.add_argument("--shard", type=int, default=0, help="with --order: make only every n-th part, from this one on")
    embed.add_argument("--n-shards", type=int, default=1, help="this n (default: %(default)s)")

    simulate = add(
        "simulate",
        _simulate,
        "write a simulated sky: FITS tiles and a catalogue",
        "  skylib simulate sky --n-tiles 4 --bands gri",
    )
    simulate.add_argument("directory", type=Path, help="where to")
    simulate.add_argument("--n-tiles", type=int, default=2, help="how many tiles (default: %(default)s)")
    simulate.add_argument("--tile-size", type=int, default=1024, help="pixels (default: %(default)s)")
    simulate.add_argument("--bands", default="grizy", help="one letter each (default: %(default)s)")
    simulate.add_argument("--n-objects", type=int, help="by default as many as the real sky has")
    simulate.add_argument("--seed", type=int, default=0, help="another seed, another sky (default: %(default)s)")

    fetch = commands.add_parser("fetch", help="fetch public data", description="Fetch public data.")
    sets = fetch.add_subparsers(required=True, metavar="DATA")
    galaxies = add(
        "galaxiesml",
        _fetch_galaxiesml,
        "fetch 286,401 HSC galaxies with redshifts, from Zenodo",
        "  skylib fetch galaxiesml data --parts 64-testing",
        to=sets,
    )
    galaxies.add_argument("directory", type=Path, help="where to")
    galaxies.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        default=["64-training", "64-validation", "64-testing"],
        help="64- or 127-, training, validation or testing (default: %(default)s)",
    )
    hsc = add(
        "hsc-tiles",
        _fetch_hsc,
        "fetch HSC PDR3 coadds, with your own account (HSC_SSP_USER and HSC_SSP_PASSWORD, or ~/.netrc)",
        "  skylib fetch hsc-tiles tiles --tract 9813 --patch 4,5 4,6",
        to=sets,
    )
    hsc.add_argument("directory", type=Path, help="where to")
    hsc.add_argument("--tract", type=int, required=True, help="a number, such as 9813")
    hsc.add_argument("--patch", nargs="+", required=True, metavar="X,Y", dest="patches", help="such as 4,5")
    hsc.add_argument("--bands", default="grizy", help="one letter each (default: %(default)s)")
    hsc.add_argument("--rerun", default="pdr3_wide", help="which processing (default: %(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from skylib.runner.parameters import notebook_parameters, parse_overrides, share
    from skylib.runner.report import renew_report
    from skylib.runner.runs import find_notebook, run

    notebook = find_notebook(arguments.notebook)
    if arguments.help_parameters:
        print(*notebook_parameters(notebook).values(), sep="\n")
        return
    if arguments.shared:
        values = share(arguments.overrides, {notebook, *notebook.parent.glob("*.ipynb")})[notebook]
    else:
        values = parse_overrides(arguments.overrides, notebook)
    if arguments.run_dir is None:
        raise ValueError("--run-dir DIR is missing: the folder that gets the executed notebook and all results")
    local = parse_overrides(arguments.local, notebook)
    task = os.environ.get("SLURM_ARRAY_TASK_ID")  # tasks of an array run at the same time in the same folder
    print(run(notebook, arguments.run_dir, values, task=task, skip_done=arguments.skip_done, local=local))
    if task is None:
        renew_report(arguments.run_dir)


def _check(arguments: argparse.Namespace) -> None:
    from skylib.runner.parameters import share
    from skylib.runner.runs import NOTEBOOKS, study_rows

    shared = share(arguments.overrides, sorted(NOTEBOOKS.glob("*.ipynb")))
    for path, given in shared.items():
        print(f"{path.stem}:", *(f"{name}={value!r}" for name, value in given.items()))
    print(f"rows of the label study: {study_rows(shared)}")


def _status(arguments: argparse.Namespace) -> None:
    from skylib.runner.status import format_status, read_status

    while arguments.watch:
        text = format_status(read_status(arguments.runs_dir))
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        print(f"{clear}{text}\n", flush=True)
        time.sleep(arguments.watch)
    print(format_status(read_status(arguments.runs_dir)))


def _demo(arguments: argparse.Namespace) -> None:
    from skylib.runner.runs import demo

    given = [*arguments.overrides, *([f"survey={arguments.survey!r}"] if arguments.survey else [])]
    page = demo(arguments.run_dir, tiles=arguments.tiles, catalogue=arguments.catalogue, overrides=given)
    print(f"\nDone. All figures and numbers on one page, next to the executed notebooks:\n  {page}")


def _notebooks(arguments: argparse.Namespace) -> None:
    from skylib.runner.runs import copy_notebooks

    print(*copy_notebooks(arguments.directory) or (f"nothing copied: {arguments.directory} has them all",), sep="\n")


def _embed(arguments: argparse.Namespace) -> None:
    from skylib.data.cutouts import CutoutFile, at_scale
    from skylib.model.embed import embed
    from skylib.model.parts import embed_parts
    from skylib.model.weights import load_model

    model = load_model(arguments.model)
    cutouts = CutoutFile(arguments.cutouts, bands=arguments.bands, survey=arguments.survey)
    if arguments.rescale and (trained := model.origin.get("trained_on")):
        cutouts = at_scale(cutouts, trained["pixel_scale"])
    how = {name: getattr(arguments, name) for name in ("pool", "layer", "all_orientations")}
    if arguments.order is not None:
        how |= {"order": arguments.order, "shard": arguments.shard, "n_shards": arguments.n_shards}
        print(*embed_parts(model, cutouts, arguments.out, **how), sep="\n")
        return
    embeddings = embed(model, cutouts, **how)
    embeddings.save(arguments.out)
    print(f"{arguments.out}: {embeddings}")


def _simulate(arguments: argparse.Namespace) -> None:
    from skylib.data.simulate import simulate_sky

    names = ("n_tiles", "tile_size", "bands", "n_objects", "seed")
    sky = simulate_sky(arguments.directory, **{name: getattr(arguments, name) for name in names})
    print(f"tiles: {sky.tiles}\ncatalogue: {sky.catalogue}")


def _fetch_galaxiesml(arguments: argparse.Namespace) -> None:
    from skylib.data.fetch import fetch_zenodo

    print(*fetch_zenodo("galaxiesml", arguments.directory, parts=arguments.parts), sep="\n")


def _fetch_hsc(arguments: argparse.Namespace) -> None:
    from skylib.bands import sort_bands
    from skylib.data.fetch import fetch_hsc_tiles

    chosen = {name: getattr(arguments, name) for name in ("tract", "patches", "rerun")}
    print(*fetch_hsc_tiles(arguments.directory, bands=sort_bands(arguments.bands), **chosen), sep="\n")


def _version() -> str:
    try:
        return f"skylib {version('skylib')}"
    except PackageNotFoundError:
        return "skylib, not installed"


if __name__ == "__main__":
    sys.exit(main())
