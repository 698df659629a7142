"""Progress of runs: a record for each notebook in the run folder, and a table of all runs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from skylib.files import read_json, read_log
from skylib.lock import BEAT, SILENT

log = logging.getLogger(__name__)

# The state of a run: the first of these that one of its notebooks is in.
_ORDER = ("running", "silent", "failed", "interrupted", "done")
_EMPTY: dict[str, Any] = {"notebook": "", "started": "", "parameters": {}, "source": "", "host": "", "restarts": 0}
_TAIL = 1 << 18  # bytes at the end of a log in which the newest values are looked for
_COLUMNS = ("run", "state", "notebook", "step", "loss", "probe", "images/s", "restarts", "heartbeat", "where")


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a notebook's run, ``status/NAME.json``.

    Raises
    ------
    ValueError
        If it is damaged; the message names the file.
    """
    record = read_json(path)
    for name, empty in _EMPTY.items():
        if not isinstance(record.setdefault(name, empty), type(empty)):
            raise ValueError(f"{path}: {name}={record[name]!r} in this record: must be {type(empty).__name__}")
    if record.get("state") not in _ORDER:
        raise ValueError(f"{path}: state={record.get('state')!r} in this record: one of {', '.join(_ORDER)}")
    return record


def earlier_record(path: Path) -> dict[str, Any]:
    """Return the record that an earlier run left, or an empty one. A damaged one is set aside, with a warning."""
    if not path.is_file():
        return {}
    try:
        return read_record(path)
    except (OSError, ValueError) as error:
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        log.warning("%s; set aside as %s, and taken as if there were none", error, aside)
        return {}


def read_status(runs_dir: str | Path) -> list[dict[str, Any]]:
    """Return the progress of the runs below a folder.

    Parameters
    ----------
    runs_dir : path
        A folder of run folders, two levels deep at most; or one run folder.

    Returns
    -------
    list of dict
        One for each run folder, or, of one run folder, one for each notebook: ``run``, ``state``, ``notebook``,
        ``step``, ``steps``, ``loss``, ``probe``, ``images_per_s``, ``restarts``, ``silent_for`` (seconds since the last
        heartbeat), ``where``, ``error``. The state is ``silent`` if a run never recorded its end, but has given no
        heartbeat for two minutes. Damaged records are left out, with a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no run in it.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        raise FileNotFoundError(f"{runs_dir}: no such folder; give that of your runs: skylib status DIR")
    if (runs_dir / "status").is_dir():
        rows = [{"run": name, **_row(runs_dir, {name: r}, own=True)} for name, r in _records(runs_dir).items()]
    else:
        folders = {path.parent.parent for depth in ("*", "*/*") for path in runs_dir.glob(f"{depth}/status/*.json")}
        found = {folder: _records(folder) for folder in sorted(folders)}
        rows = [{"run": str(f.relative_to(runs_dir)), **_row(f, records)} for f, records in found.items() if records]
    if not rows:
        raise FileNotFoundError(f"{runs_dir}: holds no run (no folder with status/*.json)")
    return rows


def format_status(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what `read_status` found as a table, with the errors below it."""
    table: list[tuple[str, ...]] = [_COLUMNS]
    for row in rows:
        step = f"{row['step'] or 0:.0f}/{row['steps']}" if row["steps"] else row["step"]
        cells = [row["run"], row["state"], row["notebook"], step]
        for name, style in (("loss", ".4f"), ("probe", ".3f"), ("images_per_s", ".0f")):
            cells.append(None if row[name] is None else f"{row[name]:{style}}")
        cells += [row["restarts"], _ago(row["silent_for"]), row["where"]]
        table.append(tuple("-" if cell is None else str(cell) for cell in cells))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    errors = [f"{row['run']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join([*lines, *(["", *errors] if errors else [])])


def _records(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a run folder by name, each with ``seen``, the time of its last heartbeat."""
    records = {}
    for path in sorted((run_dir / "status").glob("*.json")):
        try:
            record = read_record(path) | {"seen": path.stat().st_mtime}
        except FileNotFoundError:  # removed while we look
            continue
        except (OSError, ValueError) as error:
            log.warning("%s; it is left out", error)
            continue
        with suppress(FileNotFoundError):  # no longer at work
            record["seen"] = path.with_suffix(".lock").stat().st_mtime
        if record["state"] == "running" and time.time() - record["seen"] > SILENT:
            record["state"] = "silent"
        records[path.stem] = record
    return records


def _row(run_dir: Path, records: Mapping[str, Mapping[str, Any]], *, own: bool = False) -> dict[str, Any]:
    """Return one line of the table; with `own`, without the numbers of a training that another notebook did."""
    state = next(s for s in _ORDER if any(record["state"] == s for record in records.values()))
    name, record = max(((n, r) for n, r in records.items() if r["state"] == state), key=lambda item: item[1]["seen"])
    if record.get("task") and len(records) > 1:
        name = record["notebook"].removesuffix(".ipynb")
        tasks = [r["state"] for r in records.values() if r.get("task") and r["notebook"] == record["notebook"]]
        name += f" ({tasks.count('done')}/{len(tasks)} tasks)"
    metrics: dict[str, float] = {}
    steps = None
    if not own or _trained(run_dir, record):
        for line in read_log(run_dir / "metrics.jsonl", last=_TAIL)[0]:  # the last value of each quantity
            metrics |= {name: value for name, value in line.items() if isinstance(value, int | float)}
        with suppress(OSError, ValueError, KeyError, TypeError):
            steps = int(json.loads((run_dir / "config.json").read_text())["pretrain"]["steps"])
    where = f"in cell [{record['cell']}]: " if record.get("cell") else ""
    return {
        "state": state,
        "notebook": name,
        "step": metrics.get("step"),
        "steps": steps,
        "loss": metrics.get("loss"),
        "probe": next((value for key, value in metrics.items() if key.startswith("probe_")), None),
        "images_per_s": metrics.get("images_per_s"),
        "restarts": sum(r["restarts"] for r in records.values()),
        "silent_for": time.time() - record["seen"],
        "where": record["host"] + (f" job {record['job']}" if record.get("job") else ""),
        "error": f"{name} {state} {where}{record['error']}" if record.get("error") else None,
    }


def _trained(run_dir: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the log of the training last grew while this notebook ran."""
    try:
        grew = (run_dir / "metrics.jsonl").stat().st_mtime
        return datetime.fromisoformat(record["started"]).timestamp() <= grew <= record["seen"] + BEAT
    except (OSError, ValueError):
        return False


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
