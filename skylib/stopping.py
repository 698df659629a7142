"""Ending long work in time: a file or a signal asks for it; the work looks, saves and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOP_FILE = "SKYLIB_STOP"  # names the file by which all processes of a job are asked to stop; its text says why
EXIT_CODE = 75  # of a program that was asked to stop and has saved: EX_TEMPFAIL of sysexits.h, "try again later"


class Interrupted(RuntimeError):
    """Work was asked to stop and has saved; started again, it resumes from there.

    Examples
    --------
    >>> try:
    ...     raise skylib.Interrupted("stopped by SIGUSR1 after step 7 of 9")
    ... except skylib.Interrupted as error:
    ...     print(error)
    stopped by SIGUSR1 after step 7 of 9
    """

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message alone, since nothing is at fault."""
        return [str(self)]


class StopRequest:
    """Whether this process was asked to stop.

    Used as a context in the main thread it also takes SIGUSR1, SIGTERM and Ctrl-C as requests. A second Ctrl-C raises
    KeyboardInterrupt at once.

    Parameters
    ----------
    run_dir : path
        A file ``STOP`` in this folder, or the file that the environment variable ``SKYLIB_STOP`` names, is a request.
    every : float
        Seconds between two looks at the files, which may lie on a slow disk.

    Examples
    --------
    >>> with StopRequest("a/folder") as stop:
    ...     print(stop.why())
    None
    """

    def __init__(self, run_dir: str | Path, *, every: float = 1.0) -> None:
        self._own = Path(run_dir) / "STOP"
        self.file = Path(os.environ.get(STOP_FILE) or self._own)
        self._every, self._next, self._why, self._signalled = every, 0.0, "", False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGUSR1", "SIGTERM", "SIGINT"):
                if number := getattr(signal, name, None):  # Windows has no SIGUSR1
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def why(self) -> str | None:
        """Return what asked to stop, or None."""
        if not self._why and (now := time.monotonic()) >= self._next:
            self._next = now + self._every
            for file in (self.file, self._own):
                if file.exists():
                    self._why = file.read_text().strip() or "a STOP file"
                    break
        return self._why or None

    def spread(self) -> None:
        """Write the file, if this process was asked by a signal, so that those it started see it too."""
        if self._signalled:
            self._signalled = False
            self.file.write_text(self._why)

    def done(self) -> None:
        """Remove the file STOP of the run folder, so that the next start is not stopped by it."""
        self._own.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._why:
            raise KeyboardInterrupt
        self._signalled = True
        self._why = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
