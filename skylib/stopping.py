"""Ending long work in time: a signal, or a file, asks for it; the loop looks and saves."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = ("SIGUSR1", "SIGTERM")  # Slurm's warning; pre-emption, scancel, shutdown
TOLD = "SKYLIB_STOP"  # names a file by which the process that started this one asks it to stop; its text says why


class Interrupted(RuntimeError):
    """Work was asked to stop, has saved where it stood, and goes on from there when it is started again."""


class StopRequest:
    """Whether this process was asked to stop: by SIGUSR1, SIGTERM, a file ``STOP`` in the run folder, or its parent.

    Used as a context, it catches the signals, where that is possible (in the main thread), and gives them back after.

    Parameters
    ----------
    run_dir : path
    every : float
        Seconds between looks at the files, which may lie on a slow disk.

    Examples
    --------
    >>> with StopRequest("a/folder") as stop:
    ...     print(stop.why())
    None
    """

    def __init__(self, run_dir: str | Path, *, every: float = 1.0) -> None:
        self._file, self._every, self._next = Path(run_dir) / "STOP", every, 0.0
        self._told = Path(os.environ[TOLD]) if os.environ.get(TOLD) else None
        self._why: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def why(self) -> str | None:
        """Return what asked to stop, or None."""
        if self._why is None and (now := time.monotonic()) >= self._next:
            self._next = now + self._every
            if self._told is not None and self._told.exists():
                self._why = self._told.read_text() or "its parent"
            elif self._file.exists():
                self._why = "a STOP file"
        return self._why

    def done(self) -> None:
        """Take the file away, once it was obeyed, so that the next start goes on."""
        self._file.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._why = signal.Signals(number).name
