"""The command line: ``python -m skylib run | check | status | demo | simulate | fetch``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 if all went well, 1 if a notebook failed, 2 if what was asked is at fault, 75 (EX_TEMPFAIL) if a notebook was asked
        to stop and goes on when it is run again, 130 if interrupted at the terminal.
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
    except (NotebookError, ValueError, TypeError, OSError) as error:
        if arguments.debug:
            raise
        print(f"skylib: error: {error}", file=sys.stderr)
        if isinstance(error, NotebookInterrupted):
            return INTERRUPTED
        return 1 if isinstance(error, NotebookError) else 2
    except KeyboardInterrupt as error:
        print(f"skylib: interrupted {error}".rstrip(), file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m skylib", description="Sky Embeddings: run its notebooks, or simulate a sky to try them on."
    )
    parser.add_argument("--version", action="version", version=_version())
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[debug], help="execute a notebook into a run folder")
    run.add_argument("notebook", type=Path)
    run.add_argument(
        "overrides", nargs="*", metavar="name=value", help="parameters of the notebook, as Python literals"
    )
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="gets the executed notebook and all results")
    run.add_argument("--help-parameters", "--list", action="store_true", help="list the notebook's parameters and end")
    run.add_argument(
        "--skip-done", action="store_true", help="do nothing if it was run there to its end with these parameters"
    )
    run.add_argument("--task", metavar="NAME", help="tells apart runs of one notebook at the same time in one folder")
    run.add_argument(
        "--local", action="append", default=[], metavar="name=COPY",
        help="read this copy, on the node's own disk, of the file or folder that is the parameter's value",
    )  # fmt: skip
    run.add_argument(
        "--shared", action="store_true", help="leave out parameters that only other notebooks in its folder have"
    )
    run.set_defaults(command=_run)

    check = commands.add_parser("check", parents=[debug], help="check parameters that are meant for all notebooks")
    check.add_argument("overrides", nargs="*", metavar="name=value")
    check.add_argument("--rows", action="store_true", help="print only how many rows the label study has with them")
    check.set_defaults(command=_check)

    status = commands.add_parser("status", parents=[debug], help="how runs stand, also while they go on")
    status.add_argument("runs_dir", type=Path, nargs="?", default=Path("papermill_runs"), metavar="RUNS_DIR")
    status.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="show it again and again, until Ctrl-C"
    )
    status.set_defaults(command=_status)

    demo = commands.add_parser(
        "demo", parents=[debug], help="run all notebooks in order, on a simulated sky or on your own"
    )
    demo.add_argument(
        "overrides", nargs="*", metavar="name=value", help="given to every notebook that has the parameter"
    )
    demo.add_argument("--run-dir", type=Path, default=Path("papermill_runs/demo"), metavar="DIR")
    demo.add_argument("--tiles", type=Path, metavar="DIR", help="your FITS tiles")
    demo.add_argument(
        "--catalogue", type=Path, metavar="FILE", help="your table of the objects on them, with ra and dec"
    )
    demo.set_defaults(command=_demo)

    simulate = commands.add_parser(
        "simulate", parents=[debug], help="write a simulated sky: FITS tiles and a catalogue"
    )
    simulate.add_argument("directory", type=Path)
    simulate.add_argument("--n-tiles", type=int, default=2)
    simulate.add_argument("--tile-size", type=int, default=1024, help="pixels")
    simulate.add_argument("--bands", default="grizy")
    simulate.add_argument("--n-objects", type=int, help="by default as many as the real sky has")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(command=_simulate)

    fetch = commands.add_parser("fetch", help="fetch public data")
    sets = fetch.add_subparsers(required=True, metavar="DATA")
    galaxies = sets.add_parser("galaxiesml", parents=[debug], help="286,401 HSC galaxies with redshifts, from Zenodo")
    galaxies.add_argument("directory", type=Path)
    galaxies.add_argument("--parts", nargs="+", metavar="PART", default=["64-training", "64-validation", "64-testing"],
                          help="64- or 127-, training, validation or testing (default: %(default)s)")  # fmt: skip
    galaxies.set_defaults(command=_fetch_galaxiesml)
    hsc = sets.add_parser(
        "hsc-tiles", parents=[debug], help="HSC PDR3 coadds, with your own account (HSC_SSP_USER and HSC_SSP_PASSWORD, or ~/.netrc)"
    )  # fmt: skip
    hsc.add_argument("directory", type=Path)
    hsc.add_argument("--tract", type=int, required=True)
    hsc.add_argument("--patch", nargs="+", required=True, metavar="X,Y", dest="patches")
    hsc.add_argument("--bands", default="grizy")
    hsc.add_argument("--rerun", default="pdr3_wide")
    hsc.set_defaults(command=_fetch_hsc)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from skylib.runner.parameters import notebook_parameters, parse_overrides
    from skylib.runner.runs import run, share

    if arguments.help_parameters:
        print(*notebook_parameters(arguments.notebook).values(), sep="\n")
        return
    if arguments.shared:
        beside = {arguments.notebook, *arguments.notebook.parent.glob("*.ipynb")}
        values = share(arguments.overrides, beside)[arguments.notebook]
    else:
        values = parse_overrides(arguments.overrides, arguments.notebook)
    if arguments.run_dir is None:
        raise ValueError("--run-dir DIR is missing: the folder that gets the executed notebook and all results")
    local = parse_overrides(arguments.local, arguments.notebook)
    options = {"task": arguments.task, "skip_done": arguments.skip_done, "local": local}
    print(run(arguments.notebook, arguments.run_dir, values, **options))


def _check(arguments: argparse.Namespace) -> None:
    from skylib.runner.parameters import notebook_parameters
    from skylib.runner.runs import NOTEBOOKS, share

    shared = share(arguments.overrides, sorted(NOTEBOOKS.glob("*.ipynb")))
    if arguments.rows:
        (study,) = (path for path in shared if path.stem == "04_label_efficiency")
        values = {name: p.default for name, p in notebook_parameters(study).items()} | shared[study]
        print(math.prod(len(values[name]) for name in ("methods", "n_labels", "seeds")))
        return
    for path, given in shared.items():
        print(f"{path.stem}:", *(f"{name}={value!r}" for name, value in given.items()))


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

    page = demo(arguments.run_dir, tiles=arguments.tiles, catalogue=arguments.catalogue, overrides=arguments.overrides)
    print(f"\nDone. All figures and numbers on one page, the executed notebooks beside it:\n  {page}")


def _simulate(arguments: argparse.Namespace) -> None:
    from skylib.data.simulate import simulate_sky

    sky = simulate_sky(
        arguments.directory,
        n_tiles=arguments.n_tiles,
        tile_size=arguments.tile_size,
        bands=arguments.bands,
        n_objects=arguments.n_objects,
        seed=arguments.seed,
    )
    print(f"tiles: {sky.tiles}\ncatalogue: {sky.catalogue}")


def _fetch_galaxiesml(arguments: argparse.Namespace) -> None:
    from skylib.data.fetch import fetch_zenodo

    print(*fetch_zenodo("galaxiesml", arguments.directory, parts=arguments.parts), sep="\n")


def _fetch_hsc(arguments: argparse.Namespace) -> None:
    from skylib.bands import sort_bands
    from skylib.data.fetch import fetch_hsc_tiles

    bands = sort_bands(arguments.bands)
    chosen = {"tract": arguments.tract, "patches": arguments.patches, "bands": bands, "rerun": arguments.rerun}
    print(*fetch_hsc_tiles(arguments.directory, **chosen), sep="\n")


def _version() -> str:
    try:
        return f"skylib {version('skylib')}"
    except PackageNotFoundError:
        return "skylib, not installed"


if __name__ == "__main__":
    sys.exit(main())
