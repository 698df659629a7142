"""With what and where a run is made, so that a figure can be traced."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from skylib.lock import node, now

_SHOWN = "skylib torch numpy scipy scikit-learn pandas h5py astropy galsim umap-learn matplotlib papermill ipykernel"


def environment() -> dict[str, Any]:
    """Return with what and where a run is made: versions, git revision, device, node and job, command."""
    import torch

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
        "slurm": {k: v for k, v in os.environ.items() if k.startswith(("SLURM_JOB_", "SLURM_ARRAY_", "SLURM_CLUSTER"))},
        "packages": dict(sorted((found.name.lower(), found.version) for found in distributions())),
        "git": _git_revision(),
    }


def data_checksums(values: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return what identifies the files and folders among some values, by path.

    A file of up to a GiB has its size and SHA-256. A larger one, and a folder, has the number and size of its files,
    and a SHA-256 of their names, sizes and times of change. Run folders are left out: they have records of their own.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (Path(v) for v in values if isinstance(v, str | Path) and str(v) and os.path.exists(v)):
        if path.is_file() and (size := path.stat().st_size) <= 2**30:
            with open(path, "rb") as file:
                found[str(path)] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        elif not (path / "status").is_dir():
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            stats = [(file.relative_to(path), file.stat()) for file in files]
            listing = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
            found[str(path)] = {
                "files": len(stats),
                "bytes": sum(stat.st_size for _, stat in stats),
                "sha256_of_listing": hashlib.sha256(listing.encode()).hexdigest(),
            }
    return found


def describe(environment: Mapping[str, Any], *, notebook: str, parameters: Mapping[str, Any], restarts: int = 0) -> str:
    """Return the facts of `environment` as a table in Markdown, to open an executed notebook.

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
    slurm, git = environment["slurm"], environment["git"]
    nodes, task = slurm.get("SLURM_JOB_NODELIST"), slurm.get("SLURM_ARRAY_TASK_ID")
    place = [f"job {environment['job']}"] if environment["job"] else []
    place += [f"task {task} of array {slurm.get('SLURM_ARRAY_JOB_ID')}"] if task else []
    place += [f"node {environment['host']}" + (f" (of {nodes})" if nodes not in (None, environment["host"]) else "")]
    again = f", started again {restarts} time{'s' * (restarts > 1)}" if restarts else ""
    cuda = f", CUDA {environment['cuda']}" if environment["cuda"] else ""
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in _SHOWN.split() if name in packages]
    rows = {
        "run": f"{notebook}, {environment['time']}{again}",
        "where": ", ".join(place),
        "device": f"{environment['device']}, {environment['cpus']} CPU cores{cuda}",
        "git revision": f"`{git['revision']}`{', with changes' * git['dirty']}" if git else "unknown",
        "versions": f"Python {environment['python']}, {', '.join(versions)}",
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
