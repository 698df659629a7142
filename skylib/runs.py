"""Running notebooks without a person: parameters checked by name and type, everything kept in one run folder."""

from __future__ import annotations

import ast
import difflib
import io
import json
import logging
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import EllipsisType
from typing import Any

from skylib.checkpoint import write_json
from skylib.stopping import Interrupted

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
CHAIN = ("00_make_cutouts", "01_pretrain", "02_evaluate", "03_umap", "04_label_efficiency", "05_similarity")
PACKAGES = (
    "skylib", "torch", "numpy", "scipy", "scikit-learn", "pandas", "h5py", "astropy", "galsim", "umap-learn", "matplotlib",
    "papermill", "ipykernel",
)  # fmt: skip
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "tuple": tuple}


class NotebookError(RuntimeError):
    """A notebook did not run to its end. The executed copy is kept.

    Attributes
    ----------
    notebook : Path
        The executed copy.
    cell : int or None
        Number of the code cell, as JupyterLab shows it in brackets; None if no cell had begun.
    reason : str
        Name and message of the exception.
    """

    def __init__(self, notebook: Path, cell: int | None, reason: str) -> None:
        self.notebook, self.cell, self.reason = notebook, cell, reason
        where = "before the first cell" if cell is None else f"in cell [{cell}]"
        super().__init__(f"{notebook.name} failed {where}: {reason} (executed up to there: {notebook})")


class NotebookInterrupted(NotebookError):
    """A notebook was asked to stop, saved where it stood (`skylib.Interrupted`), and goes on when it is run again."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's cell tagged ``parameters``: ``name: type = default  # comment``."""

    name: str
    annotation: str
    default: Any
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation} = {self.default!r}" + (f"  # {self.comment}" if self.comment else "")


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name, in their order.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook; the message lists those beside it.
    ValueError
        If it has no cell tagged ``parameters``, or a line of that cell is no typed literal.
    """
    path = Path(notebook)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.ipynb"))
        raise FileNotFoundError(f"{path}: no such notebook; in its folder: {', '.join(there) or 'none'}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = ["".join(cell["source"]) for cell in cells if _is_tagged(cell, "parameters")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a notebook: {type(error).__name__}: {error}") from error
    if len(tagged) != 1:
        raise ValueError(f"{path}: {len(tagged)} cells are tagged 'parameters': must be one")
    try:
        return {p.name: p for p in _read_parameters(tagged[0])}
    except (ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"{path}: the cell tagged 'parameters': {error}") from error


def _read_parameters(source: str) -> Iterator[Parameter]:
    statements = ast.parse(source).body
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in statements:
        text = ast.unparse(node)
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"{text!r} must read 'name: type = literal  # comment'")
        if not _is_type(node.annotation):
            known = f"{', '.join(_TYPES)}, None, list[…], tuple[…] and unions of them by |"
            raise ValueError(f"{text!r}: unknown type; known are {known}")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{text!r}: the value must be a literal") from None
        comment = comments.get(node.end_lineno or node.lineno, comments.get(node.lineno, ""))
        parameter = Parameter(node.target.id, ast.unparse(node.annotation), default, comment)
        check_value(parameter, default)
        yield parameter


def parse_overrides(texts: Iterable[str], notebook: str | Path) -> dict[str, Any]:
    """Turn ``name=value`` texts into values of the types that the notebook states.

    Parameters
    ----------
    texts : iterable of str
        A parameter of type ``str`` takes the text as it is, with or without quotes; all others a Python literal.
    notebook : path

    Raises
    ------
    ValueError
        If a text has no ``=``, or a name is unknown or given twice.
    TypeError
        If a value is not of the type stated.
    """
    known, values = notebook_parameters(notebook), {}
    for text in texts:
        name, value = split_override(text)
        if name in values:
            raise ValueError(f"{text!r}: {name} is given twice")
        values[name] = parse_value(_known(known, name, notebook), value)
    return values


def split_override(text: str) -> tuple[str, str]:
    """Part ``name=value`` at the first ``=``.

    Examples
    --------
    >>> split_override("query=z_spec==0")
    ('query', 'z_spec==0')
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"{text!r}: must read name=value")
    return name.strip(), value


def parse_value(parameter: Parameter, text: str) -> Any:
    """Return the value that a text means for a parameter.

    Examples
    --------
    >>> parse_value(Parameter("run", "str", ""), "007"), parse_value(Parameter("rate", "float", 0.1), "3e-4")
    ('007', 0.0003)
    """
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError):
        literal = text
    members = {ast.unparse(member) for member in _members(ast.parse(parameter.annotation, mode="eval").body)}
    if "str" not in members:
        return check_value(parameter, literal)
    if literal is None and "None" not in members:
        raise TypeError(
            f"{parameter.name}=None: must be {parameter.annotation} (for the word itself, write quotes around it)"
        )
    try:  # quoted text, None, or another member of a union; all else is text as it stands
        return check_value(parameter, literal)
    except TypeError:
        return text


def check_value(parameter: Parameter, value: Any) -> Any:
    """Return the value as the notebook will get it, or raise TypeError.

    A float may be given as int, text as path; True is no int.

    Examples
    --------
    >>> check_value(Parameter("rate", "float", 0.1), 3)
    3.0
    """
    try:
        return _fit(value, ast.parse(parameter.annotation, mode="eval").body)
    except TypeError:
        hint = " (True or False)" if "bool" in parameter.annotation else ""
        got = f"{parameter.name}={value!r} is of type {type(value).__name__}"
        raise TypeError(f"{got}: must be {parameter.annotation}{hint}") from None
    except ValueError as error:
        raise ValueError(f"{parameter.name}={value!r}: {error}") from None


def _is_type(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _is_type(node.left) and _is_type(node.right)
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in ("list", "tuple") and all(map(_is_type, _inner(node)))
    if isinstance(node, ast.Constant):
        return node.value is None or isinstance(node.value, EllipsisType)
    return isinstance(node, ast.Name) and node.id in _TYPES


def _members(node: ast.expr) -> list[ast.expr]:
    """Return the members of a union, or the one type."""
    return [*_members(node.left), *_members(node.right)] if isinstance(node, ast.BinOp) else [node]


def _inner(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _fit(value: Any, wanted: ast.expr) -> Any:
    """Return the value as a plain Python object of the wanted type, or raise TypeError."""
    if isinstance(wanted, ast.BinOp):
        for member in _members(wanted):
            try:
                return _fit(value, member)
            except TypeError:
                continue
    elif isinstance(wanted, ast.Subscript):
        container, inner = _TYPES[ast.unparse(wanted.value)], _inner(wanted)
        if type(value) is container:
            if container is list or ast.unparse(inner[-1]) == "...":
                inner = inner[:1] * len(value)
            if len(inner) == len(value):
                return container(_fit(v, w) for v, w in zip(value, inner, strict=True))
    elif isinstance(wanted, ast.Constant):
        if value is None:
            return None
    elif (kind := ast.unparse(wanted)) == "float" and isinstance(value, float | int) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("must be finite")
        return float(value)  # NumPy's float64 too, whose repr is no literal
    elif kind == "str" and isinstance(value, str | os.PathLike):
        return str(value)
    elif type(value) is _TYPES[kind]:  # not isinstance: True is no int
        return value
    raise TypeError


def run_notebook(notebook: str | Path, run_dir: str | Path, **parameters: Any) -> Path:
    """Execute a notebook into a run folder, in a kernel of the Python that calls.

    Parameters
    ----------
    notebook : path
    run_dir : path
        Gets the executed notebook, ``status.json`` (running, done, failed or interrupted) and ``environment.json``;
        the notebook's own parameter ``run_dir`` is set to it.
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
        If a parameter is unknown or of another type. Nothing has been run or written then.
    NotebookInterrupted
        If a cell was asked to stop and saved its state.
    NotebookError
        If a cell fails, or the kernel dies.
    """
    notebook, run_dir = Path(notebook), Path(run_dir).resolve()
    known, out = notebook_parameters(notebook), run_dir / notebook.name
    if "run_dir" not in known or known["run_dir"].annotation != "str":
        raise ValueError(f"{notebook}: has no parameter 'run_dir: str', which says where results go")
    values = {name: check_value(_known(known, name, notebook), value) for name, value in parameters.items()}
    values["run_dir"] = str(run_dir)
    if out == notebook.resolve():
        raise ValueError(f"run_dir {run_dir}: holds {notebook.name} itself, which the executed copy would overwrite")
    status = {
        "notebook": notebook.name, "started": _now(), "parameters": values, "host": socket.gethostname(), "pid": os.getpid(),
    }  # fmt: skip
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "status.json", {"state": "running", **status})
        write_json(run_dir / "environment.json", environment())
        _write_injected(notebook, out, values)
    except OSError as error:
        raise OSError(f"{run_dir}: the run folder cannot be written: {error}") from error
    ending: dict[str, Any] = {"state": "failed"}
    try:
        _execute(out)
        ending = {"state": "done"}
    except KeyboardInterrupt as error:
        ending = {"state": "interrupted", "error": str(error) or "KeyboardInterrupt"}
        raise
    except NotebookError as error:
        state = "interrupted" if isinstance(error, NotebookInterrupted) else "failed"
        ending = {"state": state, "cell": error.cell, "error": error.reason}
        raise
    finally:
        write_json(run_dir / "status.json", {**ending, **status, "ended": _now()})
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

    Parameters
    ----------
    run_dir : path
    tiles, catalogue : path, optional
        A folder of FITS tiles and a table of their objects; a simulated sky by default.
    overrides : mapping, or iterable of ``name=value``
        Each is given to every notebook that has the parameter.
    notebooks : path
        The folder that holds the notebooks of `CHAIN`.

    Returns
    -------
    Path
        Of the page of results.

    Raises
    ------
    ValueError, TypeError
        If no notebook has such a parameter, or of such a type. Nothing has been run then.
    NotebookError
        If a notebook fails; the page is written with what there is.
    """
    from skylib.report import write_report

    paths = [Path(notebooks) / f"{name}.ipynb" for name in CHAIN]
    if not all(path.is_file() for path in paths):
        raise FileNotFoundError(
            f"{notebooks}: must hold the notebooks {', '.join(CHAIN)}; run from a clone of the repository"
        )
    sky = {name: Path(path) for name, path in (("tiles", tiles), ("catalogue", catalogue)) if path}
    for name, path in sky.items():
        if not path.exists():
            raise FileNotFoundError(f"{name}={path}: no such file or folder")
    if len(sky) == 1:
        raise ValueError(f"tiles={tiles}, catalogue={catalogue}: give both, or none for a simulated sky")

    known = {path: notebook_parameters(path) for path in paths}
    everything = {name: parameter for path in paths for name, parameter in known[path].items()}
    texts = [] if isinstance(overrides, Mapping) else list(overrides)
    given = overrides if isinstance(overrides, Mapping) else dict(map(split_override, texts))
    for name in given:
        if name in sky:
            raise ValueError(f"{name} is given twice: {sky[name]} and {given[name]}")
        _known(everything, name, "the notebooks")
    values: dict[Path, dict[str, Any]] = {}
    for path in paths:
        if isinstance(overrides, Mapping):
            mine = {name: check_value(known[path][name], given[name]) for name in given if name in known[path]}
        else:
            mine = parse_overrides([text for text in texts if split_override(text)[0] in known[path]], path)
        values[path] = mine | {name: str(source.resolve()) for name, source in sky.items() if name in known[path]}

    start = time.perf_counter()
    try:
        for number, path in enumerate(paths, 1):
            log.info("[%d/%d] %s ...", number, len(paths), path.stem)
            began = time.perf_counter()
            run_notebook(path, run_dir, **values[path])
            log.info("[%d/%d] %s took %.0f s", number, len(paths), path.stem, time.perf_counter() - began)
    except NotebookError:
        write_report(run_dir)
        raise
    log.info("%d notebooks in %.0f s", len(paths), time.perf_counter() - start)
    return write_report(run_dir)


def environment() -> dict[str, Any]:
    """Return with what and where a run is made: versions, git revision, device, command."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "time": _now(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "packages": packages,
        "git": _git_revision(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _git_revision() -> dict[str, Any] | None:
    """Return the revision of these sources and whether they were changed; None where git does not track them."""

    def git(*command: str) -> str:
        full = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *command]
        return subprocess.run(full, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment inside another repository is not ours
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _write_injected(notebook: Path, out: Path, values: Mapping[str, Any]) -> None:
    """Write the copy to be executed, with the values in a cell after the defaults, as papermill would put them.

    Not by papermill itself: it would turn a tuple into text.
    """
    import nbformat

    book = nbformat.read(notebook, as_version=4)
    source = "\n".join(["# Given to this run", *(f"{name} = {value!r}" for name, value in values.items())])
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    book.cells = [c for c in book.cells if not _is_tagged(c, "injected-parameters")]
    after = 1 + next(i for i, c in enumerate(book.cells) if _is_tagged(c, "parameters"))
    book.cells.insert(after, cell)
    book.metadata["papermill"] = {"parameters": dict(values)}
    if book.nbformat_minor < 5:
        book.nbformat_minor = 5
    _, book = nbformat.validator.normalize(book)
    nbformat.write(book, out)


def _execute(out: Path) -> None:
    """Execute a notebook in its place, in a kernel of this very Python, whatever kernels a user has installed."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillException

    # A batch script's MPLBACKEND=Agg must not hide the figures, and the kernel must find the same skylib as we did.
    environ = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if (ROOT / "pyproject.toml").is_file():
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    with tempfile.TemporaryDirectory(prefix="skylib-") as folder, _terminable():

        class ThisPython(AsyncKernelManager):
            @property
            def kernel_spec(self) -> KernelSpec:
                return KernelSpec(env=environ, **get_kernel_dict())

            def __init__(self, **kwargs: Any) -> None:
                # Sockets in files, not on ports: nobody else on the node can take or reach them.
                short = sys.platform != "win32" and len(folder) < 80
                ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"} if short else {}
                super().__init__(**kwargs, **ipc)

        path = str(out).replace("{", "{{").replace("}", "}}")  # papermill formats paths
        reason = ""
        try:
            papermill.execute_notebook(
                path,
                path,
                kernel_name="python3",
                kernel_manager_class=ThisPython,
                progress_bar={"desc": out.stem} if sys.stderr.isatty() else False,
                start_timeout=120,
            )
        except (PapermillException, RuntimeError, TimeoutError) as error:  # a cell, or the kernel itself
            died = type(error).__name__ == "DeadKernelError"
            reason = "the kernel died, as it does when memory runs out" if died else f"{type(error).__name__}: {error}"
    _raise_for_failure(out, reason)


def _raise_for_failure(out: Path, reason: str) -> None:
    """Raise `NotebookError` for a cell that failed, a kernel that died, or a notebook that a cell ended early."""
    cells = [c for c in json.loads(out.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        for error in (o for o in cell["outputs"] if o["output_type"] == "error"):
            kind = NotebookInterrupted if error["ename"] == Interrupted.__name__ else NotebookError
            raise kind(out, number, _shorten(f"{error['ename']}: {error['evalue']}"))
    started = [n for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    if reason:
        raise NotebookError(out, started[-1] if started else None, _shorten(reason))


def _shorten(text: str) -> str:
    """Return text without terminal colours, at most some lines of it."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return "\n".join(line[:500] for line in lines[:6]) + (" …" if len(lines) > 6 else "")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the kernel is shut down and the status told."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows must not be cut short
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _known(parameters: Mapping[str, Parameter], name: str, where: object) -> Parameter:
    if name == "run_dir":
        raise ValueError("run_dir: is given as the run folder, and cannot be given a second time as a parameter")
    if name in parameters:
        return parameters[name]
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(f"{p.name}: {p.annotation}" for p in parameters.values() if p.name != "run_dir")
    raise ValueError(f"{where}: unknown parameter {name!r}; {hint}known are {listed}")


def _is_tagged(cell: Mapping[str, Any], tag: str) -> bool:
    return tag in cell.get("metadata", {}).get("tags", [])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
