"""What the jobs of `gpu.py` share: where results are kept, data that are made once, turns, and what is measured."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def keep(out: Path, part: str, name: str, row: Mapping[str, Any]) -> None:
    """Write down what was found, at once."""
    with open(out / "gpu.jsonl", "a") as file:
        file.write(json.dumps({"part": part, "name": name, **row}, default=float) + "\n")


class Bench:
    """Where a job keeps what it finds, and finds its data.

    Parameters
    ----------
    name : str
        Of the job.
    out, data : Path
        Folders of the results, and of data that jobs share.
    quick : bool
        Small sizes, and one run of each case.
    batch : int, optional
        Images per training step.
    """

    def __init__(self, name: str, out: Path, data: Path, *, quick: bool, batch: int | None) -> None:
        self.name, self.out, self.data, self.quick, self.batch = name, out, data, quick, batch
        self.seconds = 0.0 if quick else 1.0  # to measure a case

    @contextmanager
    def alone(self, *, seconds: int = 150) -> Iterator[None]:
        """Wait until no other job measures, and keep others from it; a signal ends a job that takes longer than that."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        with open(self.data / "measuring", "w") as file:
            try:
                import fcntl
            except ModuleNotFoundError:  # not Unix: jobs are not run side by side
                yield
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            signal.alarm(seconds)
            try:
                yield
            finally:
                signal.alarm(0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    def tiles(self) -> Path:
        """Return a folder of two tiles; the first job that needs them makes them."""
        import numpy as np
        from astropy.io import fits
        from loading import wcs_header

        folder, side = self.data / "tiles", 300 if self.quick else 2048
        with self.making("tiles") as missing:
            if missing:
                folder.mkdir()
                rng, header = np.random.default_rng(0), wcs_header(side)
                for band in "GRIZY":
                    image = rng.normal(0, 0.05, (side, side)).astype(np.float32)
                    for patch in ("0,0", "0,1"):
                        hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, header, name="IMAGE")])
                        hdus.writeto(folder / f"calexp-HSC-{band}-9813-{patch}.fits")
        return folder

    def file(self) -> Path:
        """Return a file of cutouts; the first job that needs it makes it."""
        import numpy as np

        from skylib import write_cutouts

        path, n = self.data / "cutouts.h5", 64 if self.quick else 16_384
        with self.making("file") as missing:
            if missing:
                flux = np.random.default_rng(0).standard_normal((n // 16, 5, 64, 64), dtype=np.float32)
                flux = np.concatenate([flux * (1 + i / 16) for i in range(16)])
                write_cutouts(path, flux, ra=np.zeros(n), dec=np.zeros(n), bands="grizy")
        return path

    @contextmanager
    def making(self, what: str) -> Iterator[bool]:
        """Tell whether data must be made, while other jobs that need it wait."""
        done = self.data / f"{what} made"
        with open(self.data / f"making {what}", "w") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            except ModuleNotFoundError:
                pass
            yield not done.exists()
            done.touch()

    def busy(self, name: str, run: Callable[[], Any], *, steps: int = 5) -> Row:
        """Profile some runs: which share of the time the GPU computes, and in which kernels."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        if not torch.cuda.is_available():
            return {}
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            try:
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    for _ in range(steps):
                        run()
                    torch.cuda.synchronize()
                profiler.export_chrome_trace(str(trace))
            except RuntimeError as error:  # a profiler that fails must not cost the rates
                return {"busy": f"not measured: {error}"[:60]}
            share, kernels = read_trace(json.loads(trace.read_text())["traceEvents"])
        keep(
            self.out,
            "kernels",
            name,
            {"busy": share, "kernels": [(k, n // steps, t / steps, s) for k, n, t, s in kernels[:14]]},
        )
        return {"busy": share}


def read_trace(events: Iterable[Mapping[str, Any]]) -> tuple[float, list[tuple[str, int, float, float]]]:
    """Return the share of the time in which kernels or copies run, and name, number, ms and share of each, the longest first."""
    spans, by_name = [], defaultdict(list)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            spans.append((float(event["ts"]), float(event["ts"]) + float(event["dur"])))
            by_name[event["name"]].append(float(event["dur"]))
    if not spans:
        return 0.0, []
    covered, end = 0.0, 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = sum(map(sum, by_name.values()))
    rows = [(name, len(times), sum(times) / 1e3, sum(times) / total) for name, times in by_name.items()]
    return covered / (end - min(spans)[0]), sorted(rows, key=lambda row: -row[2])


def rates(run: Callable[[], Any], items: int, seconds: float, *, rounds: int = 3) -> list[float]:
    """Return the items a second of some rounds, which together take about so many seconds; with 0, of one run."""
    start = time.perf_counter()
    run()
    wait()
    if not seconds:
        return [items / (time.perf_counter() - start)]
    start = time.perf_counter()
    run()
    wait()
    runs = max(1, min(200, round(seconds / rounds / (time.perf_counter() - start))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wait()
        found.append(items * runs / (time.perf_counter() - start))
    return found


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def wait() -> None:
    from harness import synchronise

    synchronise()


def memory() -> Row:
    """Return the most memory of the GPU that tensors of this process took."""
    import torch

    return {"memory GB": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}


def fitting(batch: int) -> int:
    """Return a batch for this device: on a GPU with less memory than 80 GB a smaller one."""
    import torch

    if not torch.cuda.is_available():
        return 64
    share = torch.cuda.get_device_properties(0).total_memory / 80e9
    return batch if share > 0.9 else max(64, int(batch * share) // 64 * 64)
