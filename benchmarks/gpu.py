"""What a GPU does: its tests, then training, embedding and search, beside Hugging Face's ViTMAE where it is installed.

Each job is a process of its own, which a failure, or the end of its time, takes with it alone. Jobs get ready, which is
mostly compiling, side by side, but measure one at a time. What they find is written as it comes, to ``gpu.jsonl``; at the
end ``gpu.json`` and ``gpu.md`` hold all of it, and ``gpu.log`` what the jobs printed. Jobs come in the order of their
value: with few minutes, the last are not begun.

The share of the peak is the FLOPs that the matrix products of a step need, by their shapes, over those of one large bf16
product. A GPU is busy while a kernel or a copy runs, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "training", "embedding", "search", "profile")
JOBS = (
    "tests",
    "training base simmim",
    "training base mae",
    "embedding base",
    "search",
    "profile",
    "training nano mae 256",
    "training base simmim 1024 narrow",
    "training base mae 2048",
    "training small mae",
    "training small simmim",
    "training nano simmim",
    "training tiny mae",
    "training tiny simmim",
    "training nano mae",
)
QUICK = ("tests", "training nano mae", "embedding nano", "search", "profile")
BATCH = {"nano": 1024, "tiny": 2048, "small": 2048, "base": 1024}  # images per step, on a GPU of 80 GB
Row = dict[str, Any]


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
    at_once = given.side_by_side or min(5, max(1, cores // 3))
    jobs = [job for job in (QUICK if given.quick else JOBS) if job.split()[0] in given.parts.split(",")]
    try:
        with tempfile.TemporaryDirectory() as data:
            run_all(jobs, given, Path(data), at_once=at_once, threads=max(1, cores // at_once))
    finally:
        print(write_report(given.out))


def run_all(jobs: list[str], given: argparse.Namespace, data: Path, *, at_once: int, threads: int) -> None:
    """Run jobs, some at a time, until all are done or the time is up."""
    end, waiting = time.monotonic() + 60 * given.minutes, list(jobs)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    options = ["--out", str(given.out), "--data", str(data)] + ["--quick"] * given.quick
    options += ["--batch", str(given.batch)] if given.batch else []
    environ = {
        **os.environ,
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    environ.setdefault("OMP_NUM_THREADS", str(threads))
    with open(given.out / "gpu.log", "ab") as log:
        try:
            while (waiting or running) and time.monotonic() < end:
                while waiting and len(running) < at_once:
                    name = waiting.pop(0)
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


def keep(out: Path, part: str, name: str, row: Mapping[str, Any]) -> None:
    """Write down what was found, at once."""
    with open(out / "gpu.jsonl", "a") as file:
        file.write(json.dumps({"part": part, "name": name, **row}, default=float) + "\n")


class Job:
    """One job, in this process."""

    def __init__(self, name: str, out: Path, data: Path, *, quick: bool, batch: int | None) -> None:
        self.name, self.out, self.data, self.quick, self.batch = name, out, data, quick, batch
        self.seconds = 0.0 if quick else 1.0  # to measure a case

    def run(self) -> None:
        part, *words = self.name.split()
        try:
            getattr(self, part)(*words)
        except Exception:
            keep(self.out, "errors", self.name, {"error": traceback.format_exc()})
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other job measures, and keep others from it."""
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
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    def tests(self) -> None:
        """Run the tests marked `gpu`; warnings of other versions of libraries than the tested ones are no failures."""
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            "tests/test_gpu.py",
        ]
        done = subprocess.run([*command, "--durations=10"], cwd=ROOT, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        found = {
            kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])
        }
        row = {"seconds": time.perf_counter() - start, "exit status": done.returncode, **found}
        keep(self.out, "tests", "tests/test_gpu.py", row | ({"output": done.stdout[-6000:]} if done.returncode else {}))

    def training(self, size: str, objective: str, images: str = "", stream: str = "") -> None:
        """Steps on one batch, on tiles that are on the device, and from a file; compiled, eager, and Hugging Face's."""
        import harness
        import torch
        import training
        from harness import DEVICE

        from skylib import CutoutFile, CutoutLoader, ModelConfig, TileLoader, find_tiles, pretrain

        shape: dict[str, Any] = {"image_size": 32, "patch_size": 4} if size == "nano" else {}
        shape |= {"patch_size": 8, "decoder_width": 32, "decoder_depth": 1} if self.quick else {}
        config = ModelConfig(size=size, objective=objective, **shape)
        batch = self.batch or (4 if self.quick else int(images or fitting(BATCH[size])))
        name, cuda = " ".join([size, objective, images, stream]).rstrip(), DEVICE.type == "cuda"
        work = training.gflop(config, batch=2 if self.quick else 8)
        case = training.Ours(config, training.settings(batch, compile=cuda and not self.quick))
        if stream == "narrow":  # what passes from block to block in bf16
            for blocks in (case.model.encoder.blocks, getattr(case.model.decoder, "blocks", [])):
                for block in list(blocks)[:1]:
                    block.register_forward_pre_hook(lambda _, given: (given[0].bfloat16(), *given[1:]))
        data: dict[str, Any] = {"batch_size": batch, "size": config.image_size, "augment": True, "device": DEVICE}
        start = time.perf_counter()
        step = partial(case, training.same_batch(config, batch))
        for _ in range(4):
            step()
        wait()
        ready = time.perf_counter() - start
        base = {"batch": batch, "GFLOP/image": work}

        def row(found: list[float], **more: Any) -> Row:
            rate = median(found)
            return (
                {"images/s": rate, "TFLOP/s": 1e-3 * work * rate, "share of peak": 1e9 * work * rate / peak}
                | base
                | more
            )

        def tell(label: str, found: list[float], **more: Any) -> None:
            keep(self.out, "training", f"{name}, {label}", row(found, **more))

        tiles = find_tiles(self.tiles(), bands="grizy")
        from_tiles = partial(case, iter(TileLoader(tiles, **data)))
        file = CutoutFile(self.file())
        from_file = partial(case, training.endless(CutoutLoader(file, **data)))
        in_blocks = partial(case, training.endless(CutoutLoader(file, memory=2**29, **data)))
        for _ in range(3):
            from_tiles(), from_file(), in_blocks()
        with self.alone():
            peak = harness.peak(quick=self.quick)
            torch.cuda.reset_peak_memory_stats() if cuda else None
            tell("a batch in memory", rates(step, batch, self.seconds), **memory(), **{"s to compile": ready})
            tell("from tiles", rates(from_tiles, batch, self.seconds), **self.busy(f"{name}, from tiles", from_tiles))
            tell("from a file", rates(from_file, batch, self.seconds), **self.busy(f"{name}, from a file", from_file))
            tell("from a file, in blocks", rates(in_blocks, batch, self.seconds))
        if size == "nano":
            with tempfile.TemporaryDirectory() as folder:
                steps = 4 if self.quick else 600
                settings = replace(case.run, steps=steps, warmup_steps=1, log_every=max(1, steps // 12))
                result = pretrain(config, settings, train=CutoutLoader(file, **data), run_dir=folder, device=DEVICE)
            tell("pretrain, from a file", result.metrics["images_per_s"].tolist()[-6:])
        eager = training.Ours(config, training.settings(batch, compile=False))
        plain = partial(eager, training.same_batch(config, batch))
        plain()
        with self.alone():
            tell("a batch in memory, not compiled", rates(plain, batch, self.seconds))
        del eager, plain
        try:
            import transformers  # noqa: F401
        except ImportError:
            return
        with training.hugging_face(config, case.run) as other:
            other()
            with self.alone():
                torch.cuda.reset_peak_memory_stats() if cuda else None
                for _ in range(2):  # in turns
                    ours = rates(step, batch, self.seconds)
                    theirs = rates(other, batch, self.seconds)
                tell("Hugging Face, eager", theirs, **memory(), **{"x Hugging Face": 1.0})
                keep(
                    self.out,
                    "training",
                    f"{name}, a batch in memory, again",
                    row(ours, **{"x Hugging Face": median(ours) / median(theirs)}),
                )

    def embedding(self, size: str) -> None:
        """From a file to vectors."""
        import embedding
        import harness
        import numpy as np
        from harness import DEVICE

        from skylib import CutoutFile, ModelConfig, build_model, embed

        file = CutoutFile(self.file())
        rows = np.tile(np.arange(len(file)), 1 if self.quick else 4)
        batch = 8 if self.quick else fitting(1024)
        model = build_model(ModelConfig(size=size)).to(DEVICE).eval()
        work, cuda = embedding.gflop(model.config), DEVICE.type == "cuda"
        cases: dict[str, Callable[[], Any]] = {
            "embed, not compiled": lambda: embed(model, file, rows=rows, batch_size=batch, compile=False),
            "embed": lambda: embed(model, file, rows=rows, batch_size=batch, compile=cuda and not self.quick),
        }
        start = time.perf_counter()
        embed(model, file, rows=rows[: 2 * batch], batch_size=batch, compile=cuda and not self.quick)
        wait()
        ready = {"s to compile": time.perf_counter() - start}
        with suppress(ImportError):
            cases["Hugging Face, eager"] = embedding.hugging_face(model.config, self.file(), rows, batch=batch)
        for name, run in cases.items():
            with self.alone():
                peak = harness.peak(quick=self.quick)
                rate = median(rates(run, len(rows), self.seconds, rounds=2))
                more = (
                    (ready if name == "embed" else {}) | memory() | self.busy(f"embedding {size}, {name}", run, steps=1)
                )
                keep(
                    self.out,
                    "embedding",
                    f"{size}, {name}",
                    {
                        "images/s": rate,
                        "TFLOP/s": 1e-3 * work * rate,
                        "share of peak": 1e9 * work * rate / peak,
                        "batch": batch,
                        "GFLOP/image": work,
                        **more,
                    },
                )

    def search(self) -> None:
        """Exact search, beside the plain product and `topk` in float32."""
        import numpy as np
        import torch
        from harness import DEVICE

        from skylib import Embeddings, SearchIndex

        n, width, n_queries, k = (5_000, 64, 64, 100) if self.quick else (1_000_000, 768, 64, 100)
        generator = torch.Generator(DEVICE).manual_seed(0)
        draw = partial(torch.randn, generator=generator, device=DEVICE)
        hidden = torch.tanh(draw(n, 20) @ draw(20, width) / 4)  # near a curved surface of 20 dimensions, with noise
        vectors = (hidden + 0.1 * draw(n, width)).cpu().numpy()
        del hidden
        start = time.perf_counter()
        index = SearchIndex(Embeddings(vectors, ra=np.zeros(n), dec=np.zeros(n)), device=DEVICE)
        wait()
        ready = time.perf_counter() - start
        queries = vectors[:: n // n_queries][:n_queries]
        unit = torch.nn.functional.normalize(index.vectors, dim=1)
        asked = unit[:: n // n_queries][:n_queries]
        cases: dict[str, tuple[int, Callable[[], Any]]] = {
            f"{n_queries} queries": (n_queries, lambda: index.nearest(queries, k=k)),
            "1 query": (1, lambda: index.nearest(queries[:1], k=k)),
            f"{n_queries} queries, plain product and topk": (n_queries, lambda: (asked @ unit.T).topk(k).indices.cpu()),
            "1 query, plain product and topk": (1, lambda: (asked[:1] @ unit.T).topk(k).indices.cpu()),
        }
        same = np.mean(
            [
                len(set(a) & set(b)) / k
                for a, b in zip(index.nearest(queries, k=k)[1], (asked @ unit.T).topk(k).indices.tolist(), strict=True)
            ]
        )
        for name, (asks, run) in cases.items():
            with self.alone():
                run()
                rate = median(rates(run, asks, self.seconds / 2))
                row = {
                    "ms a query": 1e3 / rate,
                    "n": n,
                    "width": width,
                    "k": k,
                    **memory(),
                    **self.busy(f"search, {name}", run, steps=3),
                }
                keep(
                    self.out,
                    "search",
                    name,
                    row | ({"same answers": float(same)} if "plain" in name else {"s to make ready": ready}),
                )

    def profile(self) -> None:
        """Single operations at the shapes of ViT-B: what they reach alone, which bounds what a model can."""
        import harness
        import torch
        import torch.nn.functional as F
        from harness import DEVICE
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch, tokens, width, heads = (2, 65, 128, 4) if self.quick else (1024, 65, 768, 12)
        draw = partial(torch.randn, device=DEVICE, dtype=torch.bfloat16)
        x = draw(batch * tokens, width)
        for name, out in (("qkv", 3 * width), ("proj", width), ("fc1", 4 * width)):
            w = draw(out, width)
            with self.alone():
                rate = median(rates(partial(torch.mm, x, w.T), 1, self.seconds / 3))
            flops = 2 * len(x) * width * out * rate
            keep(
                self.out,
                "profile",
                f"{name}: {len(x)} x {width} x {out}",
                {"TFLOP/s": 1e-12 * flops, "share of peak": flops / harness.peak(quick=self.quick), "ms": 1e3 / rate},
            )

        def attend(backend: SDPBackend, *qkv: torch.Tensor, mask: torch.Tensor | None = None) -> None:
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(*qkv, attn_mask=mask).sum().backward()

        def tell(label: str, run: Callable[[], Any]) -> None:
            try:
                run()
                with self.alone():
                    keep(self.out, "profile", label, {"ms": 1e3 / median(rates(run, 1, self.seconds / 3))})
            except RuntimeError as error:
                keep(self.out, "profile", label, {"not there": str(error).splitlines()[0][:60]})

        backends = (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        )
        for n, d in ((tokens, width // heads), (tokens, 32), (17, width // heads)):
            shape = batch, heads * (width // heads) // d, n, d
            qkv = [draw(*shape).requires_grad_() for _ in range(3)]
            for backend in backends:
                tell(
                    f"attention of {n} tokens, heads {d} wide, forward and backward, {backend.name.lower()}",
                    partial(attend, backend, *qkv),
                )
        # Several images of few tokens as one sequence, each of which sees only itself.
        together = 3  # 51 of the 64 rows that kernels compute at a time
        qkv = (
            [draw(batch // together, heads, 17 * together, width // heads).requires_grad_() for _ in range(3)]
            if batch >= together
            else []
        )
        own = torch.arange(17 * together, device=DEVICE) // 17
        mask = torch.zeros(len(own), len(own), device=DEVICE, dtype=torch.bfloat16).masked_fill(
            own[:, None] != own, -torch.inf
        )
        for backend in backends[1:] if qkv else ():
            tell(
                f"attention of {together} x 17 tokens, forward and backward, {backend.name.lower()}",
                partial(attend, backend, *qkv, mask=mask),
            )

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
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                for _ in range(steps):
                    run()
                torch.cuda.synchronize()
            profiler.export_chrome_trace(str(trace))
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
