"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skylib.lock import is_running

if TYPE_CHECKING:  # what `skylib status` loads must be small
    import numpy as np

try:
    from isal.isal_zlib import crc32  # about ten times as fast
except ImportError:
    from zlib import crc32

_HOST = socket.gethostname().split(".")[0]
_ABANDONED = 2 * 86400  # seconds after which a partial file of another machine is taken as abandoned


@contextmanager
def replaced(path: str | Path, *, first: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces `path` once everything is written and on disk.

    Any number of processes, on any machine, may write the same file at the same time; the last one wins. Temporary
    files of processes that were killed are deleted by the next call for the same file.

    Parameters
    ----------
    path : path
        Its folder is made if it does not exist.
    first : bool
        The first one wins: a file that is there by then stays.

    Yields
    ------
    Path
        In the same folder.

    Raises
    ------
    OSError
        If the file cannot be written, such as on a full disk; the message names `path`, whose old content stays.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield partial
        sync(partial)
        if not first:
            os.replace(partial, path)
        else:
            with suppress(FileExistsError):
                os.link(partial, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or type(error) is RuntimeError:  # as HDF5 and torch call a full disk
            raise unwritable(path, error) from error
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON; a kill at any moment leaves either the old or the new content."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """Return the record that a file holds as JSON, with the names that are needed.

    Raises
    ------
    ValueError
        If it is damaged, or another kind of file; the message names it.
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or not record.keys() >= set(needed):
            raise ValueError(f"it holds {str(record)[:50]!r}, and must be a record with {', '.join(needed)}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a record: {error}") from error
    return record


def read_log(path: Path, *, last: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a log, each JSON with its ``step``, and how many others cannot be read.

    Parameters
    ----------
    path : Path
        It may be written at the same time; without such a file there are no lines.
    last : int, optional
        How many bytes at its end are read; all by default.
    """
    lines: list[dict[str, Any]] = []
    damaged, text = 0, ""
    if path.is_file():
        with open(path, "rb") as file:
            if last is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            text = file.read().decode(errors="replace")
    for row in text.splitlines():
        try:
            line = json.loads(row)
            lines.append(line | {"step": int(line["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged += 1
    return lines, damaged


def unwritable(path: Path, error: Exception) -> OSError:
    """Return the error that says which file cannot be written, and why."""
    if isinstance(error, OSError) and str(error).startswith(str(path)):
        return error
    named = OSError(f"{path}: cannot be written: {error}")
    named.errno = getattr(error, "errno", None)
    return named


def row_sums(values: np.ndarray, dtype: Any = "uint32") -> np.ndarray:
    """Return a checksum of each row of an array (n, ...), shape (n,).

    That is its CRC-32, which any flipped bit changes; or for ``uint64`` the weighted sum of its words, which older
    files hold.

    Examples
    --------
    >>> import numpy as np
    >>> row_sums(np.array([[0, 1], [1, 0]])).tolist()
    [538004427, 1121180356]
    """
    import numpy as np

    rows = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
    if dtype != np.uint64:
        return np.array([crc32(row) for row in rows], "<u4")
    rows = rows.view("<u8" if rows.nbytes // max(1, len(rows)) % 8 == 0 else f"<u{rows.itemsize}")
    weights = 2 * np.arange(rows.shape[1], dtype=np.uint64) + 1
    return np.einsum("ij,j->i", rows, weights, dtype=np.uint64)


def sync(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _remove_abandoned(path: Path) -> None:
    """Delete temporary files of `path` whose writer no longer runs."""
    with os.scandir(path.parent) as entries:
        found = [e.path for e in entries if e.name.startswith(f"{path.name}.") and e.name.endswith(".partial")]
    for old in found:
        host, _, rest = old.removeprefix(f"{path}.").rpartition(".partial")[0].partition(".")
        pid = rest.partition(".")[0]
        with suppress(OSError):  # another process may delete it too
            running = host != _HOST and time.time() - os.path.getmtime(old) < _ABANDONED
            if pid.isdigit() and not running and (host != _HOST or not is_running(int(pid))):
                os.unlink(old)
