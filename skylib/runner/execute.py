"""Executing one notebook by papermill, in a kernel that is asked in time to stop."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skylib.runner.parameters import is_tagged
from skylib.stopping import STOP_FILE, Interrupted, StopRequest

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
# Seconds that a cell gets to end by itself, after which it is interrupted as by Ctrl-C. Slurm's warning comes minutes
# before the end (see slurm/common.sh); after SIGTERM, by default, 30 seconds are left until all is killed.
GRACE = {"SIGTERM": 15.0, "Ctrl-C": 15.0}
GRACE_ELSE = 150.0
AGAIN = "the same command resumes"

# Slurm sends SIGTERM to every process of a job. The kernel survives it, and looks at the stop file as all others do.
# What a kernel forks, such as a pool of processes, still obeys.
_KERNEL = "import os, signal; _kernel = os.getpid(); " + "; ".join(
    f"signal.signal({number:d}, lambda *_: os.getpid() == _kernel or os._exit(143))"
    for name in ("SIGTERM", "SIGUSR1")
    if (number := getattr(signal, name, None))
)


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

    verb = "failed"

    def __init__(self, notebook: Path, cell: int | None, reason: str) -> None:
        self.notebook, self.cell, self.reason = notebook, cell, reason
        where = "before the first cell" if cell is None else f"in cell [{cell}]"
        super().__init__(f"{notebook.name} {self.verb} {where}: {reason} (executed up to there: {notebook})")


class NotebookInterrupted(NotebookError):
    """A notebook was asked to stop, has saved, and resumes when it is run again."""

    verb = "stopped"


class _Stop(Exception):
    """Raised between two cells, to run no further one."""


def execute(out: Path, *, run_dir: Path) -> None:
    """Execute a notebook in its place, in a kernel of this very Python, whatever kernels a user has installed.

    SIGUSR1, SIGTERM, Ctrl-C and the files of `StopRequest` stop it: a training cell saves and ends by itself, another
    is waited for, and interrupted where it takes long; no further cell is begun.

    Parameters
    ----------
    out : path
        The notebook, which is overwritten by its executed copy.
    run_dir : path

    Raises
    ------
    NotebookInterrupted
        If it was stopped.
    NotebookError
        If a cell failed, or the kernel died.
    """
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillException

    # A batch script's MPLBACKEND=Agg must not hide the figures, and the kernel must find the same skylib as we did.
    environ = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if (ROOT / "pyproject.toml").is_file():
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    reason, kernels = "", []

    with tempfile.TemporaryDirectory(prefix="skylib-") as folder, StopRequest(run_dir) as stop:
        if STOP_FILE not in os.environ:  # one of this run's own, since others may run in the same folder
            stop.file = Path(folder) / "stop"
        environ[STOP_FILE] = str(stop.file)
        quiet = "--IPKernelApp.log_level=CRITICAL"  # an interrupt as it ends is no error
        arguments = get_kernel_dict(extra_arguments=[f"--IPKernelApp.exec_lines={_KERNEL}", quiet])

        class ThisPython(AsyncKernelManager):
            @property
            def kernel_spec(self) -> KernelSpec:
                return KernelSpec(env=environ, **arguments)

            def __init__(self, **kwargs: Any) -> None:
                # Sockets in files, not on ports: nobody else on the node can take or reach them.
                short = sys.platform != "win32" and len(folder) < 80
                ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"} if short else {}
                super().__init__(**kwargs, **ipc)
                kernels.append(self)

        def no_further(**_: Any) -> None:
            if stop.why():
                raise _Stop

        path = str(out).replace("{", "{{").replace("}", "}}")  # papermill formats paths
        with _watch(stop, kernels):
            try:
                no_further()
                papermill.execute_notebook(
                    path,
                    path,
                    kernel_name="python3",
                    kernel_manager_class=ThisPython,
                    progress_bar={"desc": out.stem} if sys.stderr.isatty() else False,
                    start_timeout=120,
                    on_cell_execute=no_further,
                )
                why = None  # it came to its end, even if it was asked to stop in the last cell
            except _Stop:
                why = stop.why()
            except (PapermillException, RuntimeError, TimeoutError) as error:  # a cell, or the kernel itself
                reason = f"{type(error).__name__}: {error}"
                if type(error).__name__ == "DeadKernelError":
                    reason = "the kernel died, as it does when memory runs out"
                why = stop.why()
        if stop.why():
            stop.done()
    _raise(out, reason, why)


@contextmanager
def _watch(stop: StopRequest, kernels: list[Any]) -> Iterator[None]:
    """Let the kernel see a request to stop, and interrupt it when its time is up."""
    ended = threading.Event()

    def look() -> None:
        deadline = None
        while not ended.wait(0.5):
            if (why := stop.why()) and deadline is None:
                log.warning("asked to stop by %s: the cell at hand is the last", why)
                stop.spread()
                deadline = time.monotonic() + GRACE.get(why, GRACE_ELSE)
            if deadline and time.monotonic() > deadline and kernels:
                log.warning("the cell at hand is interrupted")
                deadline = time.monotonic() + 30.0
                process = getattr(kernels[0].provisioner, "pid", None)
                if process:
                    os.kill(process, signal.SIGINT)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _raise(out: Path, reason: str, why: str | None) -> None:
    """Raise for a cell that failed, a kernel that died, or a notebook that was stopped."""
    cells = [c for c in json.loads(out.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        for error in (o for o in cell["outputs"] if o["output_type"] == "error"):
            if why and error["ename"] == "KeyboardInterrupt":
                raise NotebookInterrupted(
                    out, number, f"interrupted, since it did not end by itself after {why}; {AGAIN}"
                )
            kind = NotebookInterrupted if error["ename"] == Interrupted.__name__ else NotebookError
            raise kind(out, number, _shorten(f"{error['ename']}: {error['evalue']}"))
    started = [n for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    last = started[-1] if started else None
    if why:
        raise NotebookInterrupted(out, last, f"asked to stop by {why}; {AGAIN}")
    if reason:
        raise NotebookError(out, last, _shorten(reason))


def _shorten(text: str) -> str:
    """Return text without terminal colours, at most some lines of it."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return "\n".join(line[:500] for line in lines[:6]) + (" …" if len(lines) > 6 else "")


def inject(notebook: Path, out: Path, values: Mapping[str, Any], copies: Mapping[str, str], opening: str) -> None:
    """Write the copy to be executed, with the values in a cell after the defaults, as papermill would put them.

    Not by papermill itself: it would turn a tuple into text.
    """
    import nbformat

    new, book = nbformat.v4, nbformat.read(notebook, as_version=4)
    lines = [f"{name} = {value!r}" for name, value in values.items() if name not in copies]
    for name, copy in copies.items():
        lines.append(f"{name} = {copy!r}  # a copy on the node of {values.get(name, 'the default')!r}")
    cell = new.new_code_cell("\n".join(["# Given to this run", *lines]), metadata={"tags": ["injected-parameters"]})
    book.cells = [c for c in book.cells if not (is_tagged(c, "injected-parameters") or is_tagged(c, "provenance"))]
    after = 1 + next(i for i, c in enumerate(book.cells) if is_tagged(c, "parameters"))
    book.cells.insert(after, cell)
    book.cells.insert(0, new.new_markdown_cell(opening, metadata={"tags": ["provenance"]}))
    book.metadata["papermill"] = {"parameters": dict(values)}
    if book.nbformat_minor < 5:
        book.nbformat_minor = 5
    _, book = nbformat.validator.normalize(book)
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, out)
