"""Who is at work in a folder: one process at a time, on any node, and a killed one is not waited for."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

BEAT = 15.0  # seconds between two heartbeats: a file's time of modification
SILENT = 120.0  # seconds without one, after which a process elsewhere is taken as gone

_held: set[str] = set()  # by this very process


@contextmanager
def locked(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lock file while the context lasts, and give a heartbeat.

    Parameters
    ----------
    path : path
    what : str
        Such as "a training"; for the message.

    Raises
    ------
    ValueError
        If another process holds it; the message says where and since when. The lock of a process that has ended, or
        that has given no heartbeat from another node for two minutes, is taken over.
    OSError
        If the folder cannot be written.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _take(path):
        if who := _holder(path):
            raise ValueError(f"{path.parent}: {what} is at work there already, {who} ({path.name})")
        path.unlink(missing_ok=True)
    _held.add(str(path))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True, name="heartbeat")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        _held.discard(str(path))
        path.unlink(missing_ok=True)


def _take(path: Path) -> bool:
    """Make the lock file, whole from the first moment, unless there is one."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    draft.write_text(json.dumps(this_process() | {"since": now()}) + "\n")
    try:
        os.link(draft, path)  # fails if it exists, also on a shared file system
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):  # a disk that is away for a while must not end the work
            os.utime(path)


def _holder(path: Path) -> str | None:
    """Return who holds a lock file, or None."""
    if str(path) in _held:
        return "in this very process"
    try:
        record, seen = json.loads(path.read_text()), path.stat().st_mtime
        return at_work(record, seen)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, RecursionError):
        log.warning("%s: the lock file cannot be read and is replaced", path)
        return None


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, for a record that `at_work` is asked about later."""
    return {"host": node(), "pid": os.getpid(), "began": _began(os.getpid()), "job": os.environ.get("SLURM_JOB_ID")}


def at_work(record: Mapping[str, Any], seen: float) -> str | None:
    """Return where the process that left a record still works, or None if it has ended.

    Parameters
    ----------
    record : mapping
        With the entries of `this_process`, and perhaps ``since``.
    seen : float
        Time of its last heartbeat.
    """
    host, pid, job = (record.get(name) for name in ("host", "pid", "job"))
    if job and job == os.environ.get("SLURM_JOB_ID"):  # requeued after its node had failed
        return None
    if host == node() and (pid == os.getpid() or not is_running(pid, record.get("began"))):
        return None
    if (silent := time.time() - seen) > SILENT:
        return None
    since = f"since {record['since']}, " if record.get("since") else ""
    return f"on {host} ({f'job {job}, ' if job else ''}process {pid}, {since}last heartbeat {silent:.0f} s ago)"


def is_running(pid: Any, began: str | None = None) -> bool:
    """Return whether a process of this machine, which began then, still runs."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    return began is None or _began(pid) == began  # another process may have got the number since


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks since the machine did; None for one that has ended, or where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def node() -> str:
    """Return the name of this machine, as Slurm calls it if it started us."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def now() -> str:
    """Return the time, UTC in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
