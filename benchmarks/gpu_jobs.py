"""The jobs of `gpu.py`, each in a process of its own."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpu_bench import Bench, Row, fitting, keep, median, memory, rates, wait

ROOT = Path(__file__).parents[1]
BATCH = {"nano": 1024, "tiny": 2048, "small": 2048, "base": 1024}  # images per step, on a GPU of 80 GB


class Job(Bench):
    """One job, in this process: its name says which, such as ``training base mae``."""

    def run(self) -> None:
        part, *words = self.name.split()
        try:
            getattr(self, part)(*words)
        except Exception:
            keep(self.out, "errors", self.name, {"error": traceback.format_exc()})
            raise

    def tests(self) -> None:
        """Run the tests marked `gpu`, each kept as it ends; warnings of versions other than the tested are no failures."""
        import pytest

        def pytest_runtest_logreport(report: Any) -> None:
            if report.when == "call" or not report.passed:
                row = {"outcome": report.outcome, "seconds": report.duration}
                row |= {"output": report.longreprtext[-3000:]} if report.failed else {}
                keep(self.out, "tests", report.nodeid.split("::")[-1], row)

        options = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-p", "no:timeout", "--durations=10"]
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        with self.alone(seconds=240):  # while the others compile
            code = pytest.main(
                [*options, "--continue-on-collection-errors", *files],
                plugins=[SimpleNamespace(pytest_runtest_logreport=pytest_runtest_logreport)],
            )
        if code:
            raise SystemExit(int(code))

    def training(self, size: str, objective: str, images: str = "", variant: str = "") -> None:
        """Steps on one batch, on tiles that are on the device, and from a file; compiled, eager, and Hugging Face's.

        With a number of images, only ours, compiled; then, as a variant, `narrow` passes bf16 from block to block, and
        the name of a kernel has attention computed by it, not by torch's choice.
        """
        import harness
        import torch
        import training
        from harness import DEVICE

        from skylib import CutoutFile, CutoutLoader, ModelConfig, TileLoader, find_tiles, pretrain

        kernels = ("flash", "mem_efficient", "cudnn")
        shape: dict[str, Any] = {"image_size": 32, "patch_size": 4} if size == "nano" else {}
        shape |= {"patch_size": 8, "decoder_width": 32, "decoder_depth": 1} if self.quick else {}
        config = ModelConfig(size=size, objective=objective, **shape)
        batch = self.batch or (4 if self.quick else int(images or fitting(BATCH[size])))
        name, cuda = " ".join([size, objective, images, variant]).rstrip(), DEVICE.type == "cuda"
        work = training.gflop(config, batch=2 if self.quick else 8)
        case = training.Ours(config, training.settings(batch, compile=cuda and not self.quick))
        if variant == "narrow":  # what passes from block to block in bf16
            for blocks in (case.model.encoder.blocks, getattr(case.model.decoder, "blocks", [])):
                for block in list(blocks)[:1]:
                    block.register_forward_pre_hook(lambda _, given: (given[0].bfloat16(), *given[1:]))
        if variant in kernels:
            for kernel in kernels:
                getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel == variant)
        data: dict[str, Any] = {"batch_size": batch, "size": config.image_size, "augment": True, "device": DEVICE}
        start = time.perf_counter()
        step = partial(case, training.same_batch(config, batch))
        for _ in range(4):
            step()
        wait()
        ready = time.perf_counter() - start
        skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] if case.step.graph else 0
        recorded = "no" if not case.step.graph else f"skipped {skipped} times" if skipped else "yes"
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
            tell(
                "a batch in memory",
                rates(step, batch, self.seconds),
                **memory(),
                **{"s to compile": ready, "CUDA graph": recorded},
            )
            tell("from tiles", rates(from_tiles, batch, self.seconds), **self.busy(f"{name}, from tiles", from_tiles))
            tell("from a file", rates(from_file, batch, self.seconds), **self.busy(f"{name}, from a file", from_file))
            tell("from a file, in blocks", rates(in_blocks, batch, self.seconds))
        if size == "nano":
            with tempfile.TemporaryDirectory() as folder:
                steps = 4 if self.quick else 600
                settings = replace(case.run, steps=steps, warmup_steps=1, log_every=max(1, steps // 12))
                result = pretrain(config, settings, train=CutoutLoader(file, **data), run_dir=folder, device=DEVICE)
            tell("pretrain, from a file", result.metrics["images_per_s"].tolist()[-6:])
        if images:
            return
        with self.alone():
            plain = partial(
                training.Ours(config, training.settings(batch, compile=False)), training.same_batch(config, batch)
            )
            tell("a batch in memory, not compiled", rates(plain, batch, self.seconds))
            del plain
        try:
            import transformers  # noqa: F401
        except ImportError:
            return
        with self.alone(), training.hugging_face(config, case.run) as other:
            other()
            torch.cuda.reset_peak_memory_stats() if cuda else None
            for _ in range(2):  # in turns
                ours = rates(step, batch, self.seconds)
                theirs = rates(other, batch, self.seconds)
            tell("Hugging Face, eager", theirs, **memory(), **{"x Hugging Face": 1.0})
            tell("a batch in memory, again", ours, **{"x Hugging Face": median(ours) / median(theirs)})

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

        @partial(torch.compile, dynamic=False)
        def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1) @ v

        def attend_plainly(*qkv: torch.Tensor) -> None:
            plain(*qkv).sum().backward()

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
            if n < tokens and DEVICE.type == "cuda":
                label = f"attention of {n} tokens, heads {d} wide, forward and backward, plain products, compiled"
                tell(label, partial(attend_plainly, *qkv))
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
