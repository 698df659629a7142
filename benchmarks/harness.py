"""What all benchmarks share: repeats in turn, medians and ratios of one run, and where they were measured."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import skylib
from skylib.device import pick_device

DEVICE = pick_device()
T = TypeVar("T")
Case = Callable[[], Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not to measure")
    options.add_argument("--repeats", type=int, default=5)
    return options


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(cases: Mapping[str, Case], *, repeats: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each case, repeat by repeat.

    The cases take turns, so that whatever else the machine does falls on all of them alike.
    """
    for run in cases.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            seconds[name].append(_timed(run))
    return seconds


def measure_apart(
    builders: Mapping[str, Callable[[], AbstractContextManager[Case]]],
    *,
    first: Callable[[Case], T],
    repeats: int,
    runs: int = 1,
    apart: bool = True,
) -> tuple[dict[str, T], dict[str, list[float]]]:
    """Measure cases of which each has a process of its own, so that none profits from what another set up.

    On CUDA, whose memory processes would fight for, and without `apart`, they share this one, and a case is run once a
    turn; `peak_memory` then holds the weights of all.

    Parameters
    ----------
    builders : mapping of str to callable
        That can be pickled; each gives a context in which its case can be run.
    first : callable
        What is done with a case first; it can be pickled, and warms up, too.
    repeats, runs : int
        Turns, and how often a case is run in each; the seconds are those of one run.

    Returns
    -------
    dict, dict
        What `first` gave, and the seconds, of each case.
    """
    if torch.cuda.is_available() or not apart:
        with ExitStack() as stack:
            cases = {name: stack.enter_context(build()) for name, build in builders.items()}
            found = {name: first(case) for name, case in cases.items()}
            return found, measure(cases, repeats=repeats, warm_up=0)
    context = multiprocessing.get_context("spawn")
    pipes, processes, found = {}, [], {}
    for name, build in builders.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, build, first), daemon=True))
        processes[-1].start()
        theirs.close()
        found[name] = pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in builders}
    for _ in range(repeats):
        for name, pipe in pipes.items():
            pipe.send(runs)
            seconds[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(0)
        process.join()
    return found, seconds


def _serve(pipe: Connection, build: Callable[[], AbstractContextManager[Case]], first: Callable[[Case], Any]) -> None:
    with build() as case:
        pipe.send(first(case))
        while runs := pipe.recv():
            pipe.send(sum(_timed(case) for _ in range(runs)) / runs)


def _timed(run: Case) -> float:
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def peak_memory(run: Case) -> float | None:
    """Return the MB that a case takes at most: on CUDA of tensors, else by which the process grows (Linux only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file() or not reset.exists():
        run()
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # gives what was freed back to the system
    reset.write_text("5")  # sets the peak, VmHWM, to what is used now
    before = _kilobytes(status, "VmRSS")
    run()
    return (_kilobytes(status, "VmHWM") - before) / 1e3


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times faster `fast` was than `slow`: the median over the turns that they took together."""
    return float(np.median(np.array(seconds[slow]) / np.array(seconds[fast])))


def matmul_peak(*, dtype: torch.dtype, device: str | torch.device = "cpu", side: int | None = None) -> float:
    """Return the FLOP/s of a large square matrix product on this device: the roof for everything else."""
    side = side or (8192 if torch.device(device).type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = measure({"matmul": lambda: a @ b}, repeats=10, warm_up=3)["matmul"]
    return 2 * side**3 / min(seconds)


def peak(precision: str = "bf16", *, quick: bool = False) -> float:
    """Return `matmul_peak` of a precision, "bf16" or "fp32", on the device of the benchmarks."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return matmul_peak(dtype=dtype, device=DEVICE, side=512 if quick else None)


def where() -> dict[str, Any]:
    """Return device, versions, revision and date."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    described = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "skylib": skylib.__version__,
        "revision": described or None,
        "date": datetime.now(UTC).date().isoformat(),
    }


def report(title: str, rows: Mapping[str, Mapping[str, Any]], *, json_file: Path | None = None) -> None:
    """Print a table, one case a row, and write it as JSON if asked: ``{"case": {"quantity": value}, "_where": …}``."""
    place = where()
    device = f"{place['cpu']}, {place['threads']} threads, GPU: {place['gpu']}"
    print(f"\n## {title}\n{device}, torch {place['torch']}, {place['revision']}, {place['date']}\n")
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows), default=4)
    print(f"| {'case':{width}} | " + " | ".join(columns) + " |")
    print(f"|{'-' * (width + 2)}|" + "|".join("-" * (len(c) + 2) for c in columns) + "|")
    for name, row in rows.items():
        print(f"| {name:{width}} | " + " | ".join(f"{_text(row.get(c)):>{len(c)}}" for c in columns) + " |")
    if json_file is not None:
        json_file.write_text(json.dumps({**rows, "_where": place}, indent=2) + "\n")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
