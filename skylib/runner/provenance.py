"""With what and where a run is made, so that a figure can be traced."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skylib.lock import node, now

PACKAGES = (
    "skylib", "torch", "numpy", "scipy", "scikit-learn", "pandas", "h5py", "astropy", "galsim", "umap-learn", "matplotlib",
    "papermill", "ipykernel",
)  # fmt: skip
_END = 64 * 2**20  # bytes
_SLURM = {
    "cluster": "SLURM_CLUSTER_NAME", "partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT",
    "nodes": "SLURM_JOB_NODELIST", "array": "SLURM_ARRAY_JOB_ID", "task": "SLURM_ARRAY_TASK_ID",
    "restarts": "SLURM_RESTART_COUNT",
}  # fmt: skip


def environment() -> dict[str, Any]:
    """Return with what and where a run is made: versions, git revision, device, node and job, command."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    slurm = {name: os.environ[variable] for name, variable in _SLURM.items() if os.environ.get(variable)}
    return {
        "time": now(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": node(),
        "device": _device(),
        "cuda": torch.version.cuda,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "slurm": slurm,
        "packages": packages,
        "git": _git_revision(),
    }


def data_checksums(values: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return what identifies the files and folders among some values, by path.

    A file has its size and a SHA-256, of its two ends alone if it is larger than a GiB; a folder the number and size of its
    files, and a SHA-256 of their names, sizes and times.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (
        Path(value) for value in values if isinstance(value, str | Path) and str(value) and os.path.exists(value)
    ):
        if path.is_file():
            found[str(path)] = _file_checksum(path)
        elif path.is_dir() and (path / "status").is_dir():
            continue  # a run, which keeps account of itself
        elif path.is_dir():
            stats = [(file.relative_to(path), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
            listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
            found[str(path)] = {
                "files": len(stats), "bytes": sum(stat.st_size for _, stat in stats),
                "sha256_of_listing": hashlib.sha256(listing.encode()).hexdigest(),
            }  # fmt: skip
    return found


def _file_checksum(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= 2**30:
            return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        digest = hashlib.sha256(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read(_END))
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()}


def describe(environment: Mapping[str, Any], *, notebook: str, parameters: Mapping[str, Any], restarts: int = 0) -> str:
    """Return the facts of `environment` as a paragraph and a table in Markdown, to open an executed notebook.

    Parameters
    ----------
    environment : mapping
        As `environment` returns it.
    notebook : str
    parameters : mapping
        The values given to this run.
    restarts : int
        How often it was started before.
    """
    slurm, git, packages = environment["slurm"], environment["git"], environment["packages"]
    place = f"node {environment['host']}"
    if environment["job"]:
        task = f", task {slurm['task']} of array {slurm['array']}" if "task" in slurm else ""
        place = f"job {environment['job']}{task}, {place}"
        if slurm.get("nodes", environment["host"]) != environment["host"]:
            place += f" (of {slurm['nodes']})"
    revision = f"`{git['revision']}`" + (", with changes" if git["dirty"] else "") if git else "unknown"
    cuda = f", CUDA {environment['cuda']}" if environment["cuda"] else ""
    installed = [f"{name} {number}" for name, number in packages.items() if number != "not installed"]
    again = f", started again {restarts} time{'s' * (restarts > 1)}" if restarts else ""
    rows = {
        "run": f"{notebook}, {environment['time']}{again}",
        "where": place,
        "device": f"{environment['device']}, {environment['cpus']} CPU cores{cuda}",
        "git revision": revision,
        "versions": f"Python {environment['python']}, {', '.join(installed)}",
        **{f"`{name}`": f"`{value!r}`" for name, value in parameters.items()},
    }
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["**Where and with what this was run**", "", "| | |", "|---|---|", *lines])


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        number = torch.cuda.device_count()
        return (f"{number} x " if number > 1 else "") + torch.cuda.get_device_name()
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
