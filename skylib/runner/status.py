"""How runs stand: a record for each notebook in the run folder, and a table of many runs, also while they go on."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from skylib.files import write_json
from skylib.runner.provenance import node

log = logging.getLogger(__name__)

BEAT = 15.0  # seconds between signs of life
SILENT = 120.0  # seconds without one, after which a run that says it is running is doubted
_ORDER = ("running", "silent", "failed", "interrupted", "done")  # what a run is that has notebooks of several states
_TAIL = 1 << 18  # bytes at the end of a log in which the newest values are looked for


class Record:
    """What is known of a notebook's run in a folder, ``status/NAME.json``; the newest of them is ``status.json``, too.

    Parameters
    ----------
    run_dir : path
    notebook : str
        File name.
    task : str, optional
        Tells apart the tasks of an array that run at the same time in the same folder; they leave ``status.json`` alone.

    Attributes
    ----------
    content : dict
        As it was when it was read; empty if there was none.
    """

    def __init__(self, run_dir: Path, notebook: str, task: str | None = None) -> None:
        name = Path(notebook).stem + (f".{task}" if task else "")
        self.run_dir, self.path, self._task = run_dir, run_dir / "status" / f"{name}.json", task
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self._beaten = time.monotonic()

    def write(self, content: Mapping[str, Any]) -> None:
        """Write what is known now; many processes may do so."""
        self.content = dict(content)
        write_json(self.path, content)
        if self._task is None:
            write_json(self.run_dir / "status.json", content)

    def beat(self) -> None:
        """Give a sign of life, now and then."""
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            try:
                os.utime(self.path)
            except OSError as error:  # a disk that is away for a while must not end the run
                log.warning("%s: no sign of life could be given: %s", self.path, error)

    def runs_elsewhere(self) -> str | None:
        """Return where another process is at it, or None; a killed one has the same job, or is known to be gone."""
        if self.content.get("state") != "running":
            return None
        job, host, pid = (self.content.get(key) for key in ("job", "host", "pid"))
        if job and job == os.environ.get("SLURM_JOB_ID"):  # requeued after its node had failed
            return None
        if host == node() and (pid == os.getpid() or not _is_alive(pid)):
            return None
        if (age := time.time() - self.path.stat().st_mtime) > SILENT:
            return None
        return f"on {host} ({f'job {job}, ' if job else ''}process {pid}, last sign of life {age:.0f} s ago)"


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, TypeError):
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().rpartition(")")[2].split()[0] not in "ZX"


def read_status(runs_dir: str | Path) -> pd.DataFrame:
    """Return how the runs below a folder stand.

    Parameters
    ----------
    runs_dir : path
        A folder of run folders, two levels deep at most; or one run folder.

    Returns
    -------
    DataFrame
        A row a run folder, or, of one run folder, a row a notebook: ``run``, ``state``, ``notebook``, ``step``, ``steps``,
        ``loss``, ``probe``, ``images_per_s``, ``restarts``, ``silent_for`` (seconds since the last sign of life),
        ``where``, ``error``. The state ``silent`` is of a run that never said that it ended, but gave no sign of life for
        two minutes.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no run in it.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        raise FileNotFoundError(f"{runs_dir}: no such folder")
    if (runs_dir / "status").is_dir():
        records = _records(runs_dir)
        rows = [{"run": name, **_row(runs_dir, {name: record})} for name, record in records.items()]
        for row, record in zip(rows, records.values(), strict=True):
            if not _trained(runs_dir, record):
                row.update(dict.fromkeys(("step", "steps", "loss", "probe", "images_per_s")))
    else:
        folders = {path.parent.parent for depth in ("*", "*/*") for path in runs_dir.glob(f"{depth}/status/*.json")}
        known = {folder: _records(folder) for folder in sorted(folders)}
        rows = [{"run": str(f.relative_to(runs_dir)), **_row(f, records)} for f, records in known.items() if records]
    if not rows:
        raise FileNotFoundError(f"{runs_dir}: holds no run (no folder with status/*.json)")
    return pd.DataFrame(rows)


def format_status(table: pd.DataFrame) -> str:
    """Return the table of `read_status` as text, with the errors below it."""
    shown = pd.DataFrame(
        {
            "run": table["run"],
            "state": table["state"],
            "notebook": table["notebook"],
            "step": [_fraction(*pair) for pair in zip(table["step"], table["steps"], strict=True)],
            "loss": table["loss"].map("{:.4f}".format, na_action="ignore"),
            "probe": table["probe"].map("{:.3f}".format, na_action="ignore"),
            "images/s": table["images_per_s"].map("{:.0f}".format, na_action="ignore"),
            "restarts": table["restarts"],
            "sign of life": table["silent_for"].map(_ago),
            "where": table["where"],
        }
    )
    errors = [f"{row.run}: {row.error}" for row in table.itertuples() if isinstance(row.error, str)]
    text = shown.astype(object).where(shown.notna(), "-").to_string(index=False, justify="left")
    return "\n".join([text, *(["", *errors] if errors else [])])


def _records(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a run folder by name, each with ``seen``, the time of its last sign of life."""
    records = {}
    for path in sorted((run_dir / "status").glob("*.json")):
        try:
            record = json.loads(path.read_text()) | {"seen": path.stat().st_mtime}
        except (OSError, ValueError):  # taken away while we look
            continue
        if record["state"] == "running" and time.time() - record["seen"] > SILENT:
            record["state"] = "silent"
        records[path.stem] = record
    return records


def _row(run_dir: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    state = next(s for s in _ORDER if any(record["state"] == s for record in records.values()))
    name, record = max(((n, r) for n, r in records.items() if r["state"] == state), key=lambda item: item[1]["seen"])
    if record["task"] and len(records) > 1:
        name = record["notebook"].removesuffix(".ipynb")
        tasks = [r["state"] for r in records.values() if r["task"] and r["notebook"] == record["notebook"]]
        name += f" ({tasks.count('done')}/{len(tasks)} tasks)"
    metrics = _newest(run_dir / "metrics.jsonl")
    where = f"in cell [{record['cell']}]: " if record.get("cell") else ""
    return {
        "state": state,
        "notebook": name,
        "step": metrics.get("step"),
        "steps": _steps(run_dir),
        "loss": metrics.get("loss"),
        "probe": next((value for key, value in metrics.items() if key.startswith("probe_")), None),
        "images_per_s": metrics.get("images_per_s"),
        "restarts": sum(r["restarts"] for r in records.values()),
        "silent_for": time.time() - record["seen"],
        "where": record["host"] + (f" job {record['job']}" if record["job"] else ""),
        "error": f"{name} {state} {where}{record['error']}" if record.get("error") else None,
    }


def _trained(run_dir: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the log of the training last grew while this notebook ran."""
    log = run_dir / "metrics.jsonl"
    began = datetime.fromisoformat(record["started"]).timestamp()
    return log.is_file() and began <= log.stat().st_mtime <= record["seen"] + BEAT


def _newest(log: Path) -> dict[str, Any]:
    """Return the last value of each quantity that was logged."""
    if not log.is_file():
        return {}
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    newest: dict[str, Any] = {}
    for line in lines:
        try:
            newest |= json.loads(line)
        except ValueError:  # cut off at the start of the tail, or not written to its end
            continue
    return newest


def _steps(run_dir: Path) -> int | None:
    try:
        return json.loads((run_dir / "config.json").read_text())["pretrain"]["steps"]
    except (OSError, ValueError, KeyError):
        return None


def _fraction(step: float | None, steps: float | None) -> str | None:
    return None if step is None or pd.isna(step) else f"{step:.0f}" + ("" if pd.isna(steps) else f"/{steps:.0f}")


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
