"""Running notebooks without a person: parameters checked by name and type, everything kept in one run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from skylib.checks import checked
from skylib.files import write_json
from skylib.lock import locked, now, this_process
from skylib.runner.execute import ROOT, NotebookError, NotebookInterrupted, execute, inject
from skylib.runner.parameters import check_value, find_parameter, notebook_parameters, share, split_override
from skylib.runner.provenance import data_checksums, describe, environment
from skylib.runner.report import renew_report, write_report
from skylib.runner.status import earlier_record

log = logging.getLogger(__name__)

# In a clone they lie beside the library, else they were installed within it.
NOTEBOOKS = ROOT / "notebooks" if (ROOT / "notebooks").is_dir() else ROOT / "skylib" / "notebooks"
NEEDS = {  # the notebook whose results in the run folder another builds on
    "01_pretrain": "00_make_cutouts",
    "02_evaluate": "01_pretrain",
    "02b_diagnostics": "02_evaluate",
    "03_umap": "02_evaluate",
    "04_label_efficiency": "01_pretrain",
    "05_similarity": "02_evaluate",
    "06_search_sky": "01_pretrain",
}
CHAIN = ("00_make_cutouts", *NEEDS)[:-1]  # what `demo` runs; the search of the sky is left out


def find_notebook(notebook: str | Path) -> Path:
    """Return the path of a notebook, given as a path or as the name of one of the project's own."""
    path = Path(notebook)
    own = NOTEBOOKS / f"{path.name.removesuffix('.ipynb')}.ipynb"
    return own if not path.exists() and str(path) == path.name else path


def copy_notebooks(directory: str | Path) -> list[Path]:
    """Copy the project's notebooks into a folder, leave those that exist there, and return those that were copied."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = [source for source in sorted(NOTEBOOKS.glob("*.ipynb")) if not (directory / source.name).exists()]
    return [Path(shutil.copyfile(source, directory / source.name)) for source in new]


def study_rows(values: Mapping[Path, Mapping[str, Any]]) -> int:
    """Return how many rows the label study has with the values for each notebook that `share` gives."""
    (study,) = (path for path in values if path.stem == "04_label_efficiency")
    given = {name: p.default for name, p in notebook_parameters(study).items()} | dict(values[study])
    return math.prod(len(given[name]) for name in ("methods", "n_labels", "seeds"))


@checked
def run_notebook(notebook: str | Path, run_dir: str | Path, **parameters: Any) -> Path:
    """Execute a notebook into a run folder, in a kernel of the Python that calls.

    Parameters
    ----------
    notebook : path, or the name of one of the project's notebooks
    run_dir : path
        Gets the executed notebook, which opens with where and with what it was run, ``status.json`` (running, done,
        failed or interrupted) and ``environment.json``; the notebook's own parameter ``run_dir`` is set to it. A page
        of results that is there already is written again.
    **parameters
        Override the notebook's parameters; checked by name and type. Relative paths among them start from the
        current directory.

    Returns
    -------
    Path
        Of the executed notebook.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook.
    ValueError, TypeError
        If a parameter is unknown or of another type, or the notebook is being run there already. Nothing has been run
        or written then.
    NotebookInterrupted
        If it was asked to stop, by SIGUSR1, SIGTERM or a file ``STOP`` in the run folder: what a cell had saved is
        kept.
    NotebookError
        If a cell fails, or the kernel dies.

    Examples
    --------
    >>> run_notebook("01_pretrain", "papermill_runs/first", steps=0.5)  # checked before anything is run
    Traceback (most recent call last):
    TypeError: steps=0.5 is of type float: must be int
    """
    out = run(find_notebook(notebook), run_dir, parameters)
    renew_report(run_dir)
    return out


def run(
    notebook: str | Path,
    run_dir: str | Path,
    parameters: Mapping[str, Any],
    *,
    task: str | None = None,
    skip_done: bool = False,
    local: Mapping[str, str | Path] | None = None,
) -> Path:
    """Execute a notebook as `run_notebook` does, as a batch system needs it.

    Parameters
    ----------
    notebook, run_dir, parameters
        As of `run_notebook`.
    task : str, optional
        Tells apart runs of one notebook at the same time in one folder: the executed copy is ``tasks/NAME.TASK.ipynb``.
    skip_done : bool
        Do nothing if the notebook has been run there to its end, is the same, was given the same parameters, and what
        it builds on is no newer.
    local : mapping, optional
        Copies on this node's disk of files or folders among the parameters. The notebook reads the copy; recorded and
        compared are the original `parameters`.

    Returns
    -------
    Path
        Of the executed notebook.
    """
    notebook, run_dir = Path(notebook), Path(run_dir).resolve()
    allowed = notebook_parameters(notebook)
    if "run_dir" not in allowed or allowed["run_dir"].annotation != "str":
        raise ValueError(f"{notebook}: has no parameter 'run_dir: str', which says where results go")
    values, copies = (
        {name: check_value(find_parameter(allowed, name, where=notebook), value) for name, value in given.items()}
        for given in (parameters, local or {})
    )
    values["run_dir"] = str(run_dir)
    if task is not None and not re.fullmatch(r"[\w-]+", task):
        raise ValueError(f"task={task!r}: must be letters, digits, - and _")
    name = f"{notebook.stem}.{task}" if task else notebook.stem
    out = run_dir / ("tasks" if task else "") / f"{name}.ipynb"
    if out == notebook.resolve():
        raise ValueError(f"run_dir {run_dir}: holds {notebook.name} itself, which the executed copy would overwrite")

    path = run_dir / "status" / f"{name}.json"
    source, before = _fingerprint(notebook), earlier_record(path)
    changed = _changes(before, values, source)
    if skip_done and before.get("state") == "done":
        changed = changed or _newer(run_dir, notebook, before, task)
        if not changed:
            log.info("%s: was run to its end at %s, with the same parameters: not run again", out, before["ended"])
            return out
    if changed:
        log.info("%s: re-running: %s", out, changed)
    resumes = bool(before) and before["state"] != "done" and not changed
    restarts = before["restarts"] + 1 if resumes else 0
    facts = this_process() | {"notebook": notebook.name, "task": task, "parameters": values, "source": source}
    facts |= {"started": now(), "restarts": restarts}

    def record(**ending: Any) -> None:
        write_json(path, ending | facts)
        if task is None:  # of several at the same time none is the state of the run
            write_json(run_dir / "status.json", ending | facts)

    with ExitStack() as held:
        try:
            held.enter_context(locked(path.with_suffix(".lock"), notebook.name))
            if resumes and out.exists():  # what an earlier attempt printed may tell why it ended
                (attempts := run_dir / "attempts").mkdir(exist_ok=True)
                os.replace(out, attempts / f"{name}.{before['restarts']}.ipynb")
            record(state="running")
            where = environment() | {"data": data_checksums([*values.values(), run_dir / "cutouts.h5"])}
            write_json(run_dir / "environment.json", where)
            given = {name: value for name, value in values.items() if name != "run_dir"}
            opening = describe(where, notebook=notebook.stem, parameters=given, restarts=restarts)
            inject(notebook, out, values, copies, opening)
        except OSError as error:
            raise OSError(f"{run_dir}: the run folder cannot be written: {error}") from error
        ending: dict[str, Any] = {"state": "failed"}
        try:
            execute(out, run_dir=run_dir)
            ending = {"state": "done"}
        except KeyboardInterrupt:
            ending = {"state": "interrupted", "error": "KeyboardInterrupt"}
            raise
        except NotebookError as error:
            state = "interrupted" if isinstance(error, NotebookInterrupted) else "failed"
            ending = {"state": state, "cell": error.cell, "error": error.reason}
            raise
        finally:
            record(**ending, ended=now())
    return out


def demo(
    run_dir: str | Path,
    *,
    tiles: str | Path | None = None,
    catalogue: str | Path | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    notebooks: str | Path = NOTEBOOKS,
) -> Path:
    """Run all notebooks in order into one folder, and write a page of results.

    If an earlier call did not reach its end, notebooks that it had finished with the same parameters are kept.

    Parameters
    ----------
    run_dir : path
    tiles, catalogue : path, optional
        A folder of FITS tiles and a table of their objects; a simulated sky by default.
    overrides : mapping, or iterable of ``name=value``
        Each is given to every notebook that has the parameter.
    notebooks : path
        The folder that holds the notebooks of `CHAIN`.

    Returns the path of the page of results.

    Raises
    ------
    ValueError, TypeError
        If no notebook has such a parameter, or of such a type. Nothing has been run then.
    NotebookError
        If a notebook fails; the page is written with what there is.
    """
    paths = [Path(notebooks) / f"{name}.ipynb" for name in CHAIN]
    if not all(path.is_file() for path in paths):
        raise FileNotFoundError(f"{notebooks}: must hold the notebooks {', '.join(CHAIN)}")
    sky = {name: Path(path) for name, path in (("tiles", tiles), ("catalogue", catalogue)) if path}
    for name, path in sky.items():
        if not path.exists():
            raise FileNotFoundError(f"{name}={path}: no such file or folder")
    if len(sky) == 1:
        raise ValueError(f"tiles={tiles}, catalogue={catalogue}: give both, or none for a simulated sky")
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(split_override, overrides)
    texts = [f"{name}={value}" for name, value in pairs]
    values = share([*texts, *(f"{name}={str(path.resolve())!r}" for name, path in sky.items())], paths)

    start = time.perf_counter()
    states = {earlier_record(Path(run_dir) / "status" / f"{path.stem}.json").get("state") for path in paths}
    resumes = "done" in states and len(states) > 1
    try:
        for number, path in enumerate(paths, 1):
            takes = re.search(r"\*Takes\* (.+?(?:minutes?|seconds))", path.read_text(encoding="utf-8"))
            takes_about = f", {takes[1]} on two quiet cores" if takes else ""
            log.info("[%d/%d] %s%s ...", number, len(paths), path.stem, takes_about)
            began = time.perf_counter()
            run(path, run_dir, values[path], skip_done=resumes)
            log.info("[%d/%d] %s took %.0f s", number, len(paths), path.stem, time.perf_counter() - began)
    except NotebookError:
        write_report(run_dir)
        raise
    log.info("%d notebooks in %.0f s", len(paths), time.perf_counter() - start)
    return write_report(run_dir)


def _fingerprint(notebook: Path) -> str:
    """Return a short name for what the cells say: the same text, the same name."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changes(before: Mapping[str, Any], values: Mapping[str, Any], source: str) -> str:
    """Say what has changed since an earlier run; nothing if there was none."""
    if not before:
        return ""
    new = json.loads(json.dumps(values))  # a tuple was written as a list
    old, new = ({name: repr(value) for name, value in given.items()} for given in (before["parameters"], new))
    names = [name for name in {**old, **new} if name != "run_dir" and old.get(name) != new.get(name)]
    said = [f"{n} changed from {old.get(n, 'its default')} to {new.get(n, 'its default')}" for n in names]
    return "; ".join(said + ["the notebook has changed"] * (before["source"] != source))


def _newer(run_dir: Path, notebook: Path, before: Mapping[str, Any], task: str | None) -> str:
    """Say which notebook that this one builds on was run after it; nothing if none was."""
    records = [run_dir / "status" / f"{NEEDS[notebook.stem]}.json"] if notebook.stem in NEEDS else []
    if task is None:  # what puts the tasks' results together
        records += sorted((run_dir / "status").glob(f"{notebook.stem}.*.json"))
    for path in filter(Path.is_file, records):
        ended = "~"  # later than any time: at work, or a damaged record
        with suppress(ValueError, AttributeError):
            ended = json.loads(path.read_bytes()).get("ended", ended)
        if ended > before["started"]:
            return f"{path.stem} was run after it"
    return ""
