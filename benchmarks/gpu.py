"""What a GPU does: its tests, then training, embedding and search, beside Hugging Face's ViTMAE where it is installed.

Each job is a process of its own, which a failure, or the end of its time, takes with it alone. Jobs get ready, which is
mostly compiling, side by side, as many as the memory of the GPU holds, but measure one at a time; the tests count as one
measurement. What they find is written as it comes, to ``gpu.jsonl``; at the end, also after SIGTERM, ``gpu.json`` and
``gpu.md`` hold all of it, and ``gpu.log`` what the jobs printed. Jobs come in the order of their value: with few minutes,
the last are not begun.

The share of the peak is the FLOPs that the matrix products of a step need, by their shapes, over those of one large bf16
product. A GPU is busy while a kernel or a copy runs, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_bench import Row, keep
from gpu_jobs import BATCH, ROOT, Job

PARTS = ("tests", "training", "embedding", "search", "profile")
JOBS = (
    "tests",
    "training base simmim",
    "training base mae",
    "embedding base",
    "search",
    "profile",
    "training base mae 1024 mem_efficient",
    "training base mae 1024 flash",
    "training base simmim 1024 narrow",
    "training nano mae 256",
    "training base mae 2048",
    "training small mae",
    "training small simmim",
    "training nano simmim",
    "training tiny mae",
    "training tiny simmim",
    "training nano mae",
)
QUICK = ("tests", "training nano mae", "embedding nano", "search", "profile")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small sizes: to see that it works, on a CPU too")
    options.add_argument("--out", type=Path, default=ROOT / "test-artifacts" / "gpu", help="folder for what is found")
    options.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between")
    options.add_argument("--minutes", type=float, default=8.0, help="for everything")
    options.add_argument("--side-by-side", type=int, help="jobs that get ready at once; by default one for 3 cores")
    options.add_argument("--batch", type=int, help="images a training step")
    options.add_argument("--job", help=argparse.SUPPRESS)
    options.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if unknown := set(given.parts.split(",")) - set(PARTS):
        options.error(f"--parts {','.join(sorted(unknown))}: they are {','.join(PARTS)}")
    if given.job:
        Job(given.job, given.out, given.data, quick=given.quick, batch=given.batch).run()
        return
    given.out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.jsonl", "gpu.json", "gpu.md", "gpu.log"):
        (given.out / name).unlink(missing_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    at_once = given.side_by_side or min(5, max(1, cores // 3))
    jobs = [job for job in (QUICK if given.quick else JOBS) if job.split()[0] in given.parts.split(",")]
    try:
        with tempfile.TemporaryDirectory() as data:
            run_all(jobs, given, Path(data), at_once=at_once, threads=max(1, cores // at_once))
    finally:
        print(write_report(given.out))


def run_all(jobs: list[str], given: argparse.Namespace, data: Path, *, at_once: int, threads: int) -> None:
    """Run jobs, some at a time, until all are done or the time is up."""
    end, waiting, room = time.monotonic() + 60 * given.minutes, list(jobs), memory_of_gpu()
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    options = ["--out", str(given.out), "--data", str(data)] + ["--quick"] * given.quick
    options += ["--batch", str(given.batch)] if given.batch else []
    environ = {
        **os.environ,
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }
    environ.setdefault("OMP_NUM_THREADS", str(threads))
    with open(given.out / "gpu.log", "ab") as log:
        try:
            while (waiting or running) and time.monotonic() < end:
                while len(running) < at_once:
                    free = room - sum(map(needs, running))
                    name = next((name for name in waiting if not running or needs(name) <= free), None)
                    if name is None:
                        break
                    waiting.remove(name)
                    print(f"{given.minutes * 60 - end + time.monotonic():6.1f} s  {name}", flush=True)
                    command = [sys.executable, str(Path(__file__)), "--job", name, *options]
                    process = subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                        cwd=ROOT,
                        env=environ,
                        start_new_session=True,
                    )
                    running[name] = process, time.monotonic()
                for name, (process, start) in list(running.items()):
                    if process.poll() is not None:
                        row = {"seconds": time.monotonic() - start, "exit status": process.returncode}
                        keep(given.out, "jobs", name, row)
                        del running[name]
                time.sleep(0.1)
        finally:
            for name, (process, start) in running.items():
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
                keep(given.out, "jobs", name, {"seconds": time.monotonic() - start, "ended": "the time was up"})
    for name in waiting:
        keep(given.out, "jobs", name, {"ended": "not begun: the time was up"})


def needs(job: str) -> float:
    """Return about how many GB a job takes of a GPU of 80 GB; on a smaller one, whose batches are smaller, it is less."""
    part, *words = job.split()
    if part != "training":
        return {"embedding": 12, "search": 16}.get(part, 4)
    whole = {"nano": 8, "tiny": 32}.get(words[0], 64) / (2 if "mae" in words else 1)
    return whole * int(words[2]) / BATCH[words[0]] / 2 if len(words) > 2 else whole  # half without the comparison


def memory_of_gpu() -> float:
    """Return the GB of the GPU, at least 80; without one there is no limit."""
    if not shutil.which("nvidia-smi"):
        return float("inf")
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return max(80.0, int(found[0]) * 2**20 / 1e9) if found and found[0].isdigit() else 80.0


def write_report(out: Path) -> str:
    """Write ``gpu.json`` and ``gpu.md`` from what was kept; return the latter without the kernels."""
    from harness import where

    parts: dict[str, dict[str, Row]] = defaultdict(dict)
    lines = (out / "gpu.jsonl").read_text().splitlines() if (out / "gpu.jsonl").is_file() else []
    for line in map(json.loads, lines):
        parts[line.pop("part")][line.pop("name")] = line
    place = where()
    (out / "gpu.json").write_text(json.dumps({**parts, "_where": place}, indent=1) + "\n")
    text = [f"# {place['gpu'] or place['cpu']}, torch {place['torch']}, {place['revision']}, {place['date']}"]
    for part in ("tests", "training", "embedding", "search", "profile", "jobs"):
        if part in parts:
            text += ["", f"## {part.capitalize()}", "", *table(parts[part])]
    for name, row in parts.get("errors", {}).items():
        text += ["", f"## Failed: {name}", "", "```", row["error"].rstrip(), "```"]
    kernels = []
    for name, row in parts.get("kernels", {}).items():
        kernels += ["", f"## Kernels: {name}", "", f"The GPU is busy {row['busy']:.1%} of the time.", ""]
        kernels += ["| kernel | a step | ms a step | share |", "|---|---|---|---|"]
        kernels += [f"| `{kernel[:100]}` | {n} | {ms:.3g} | {share:.1%} |" for kernel, n, ms, share in row["kernels"]]
    (out / "gpu.md").write_text("\n".join([*text, *kernels]) + "\n")
    return "\n".join(text)


def table(rows: Mapping[str, Row]) -> list[str]:
    """Return lines of Markdown."""
    columns = [c for c in dict.fromkeys(name for row in rows.values() for name in row) if c != "output"]
    text = [f"| case | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    text += [f"| {name} | {' | '.join(cell(row.get(c)) for c in columns)} |" for name, row in rows.items()]
    for row in rows.values():
        text += ["", "```", row["output"], "```"] if "output" in row else []
    return text


def cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
