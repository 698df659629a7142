"""How fast images come: from tiles and from files of cutouts, beside a plain PyTorch DataLoader and Cutout2D.

Files are in the page cache. The plain loader does what the published code does: a file opened for each item, and its
mask made on the CPU. `share_of_raw_read` is the share of the speed at which the same bytes are read from the file in
order, and nothing else is done. `cutouts_per_tile` is in the names of the cases: at 1024 a tile of 350 MB serves 84 MB.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from harness import measure, parser, report

from skylib import CutoutFile, CutoutLoader, TileLoader, find_tiles, make_cutouts, read_tile
from skylib.data.cutouts.write import create, prepare_columns, put
from skylib.model.patches import random_band_mask, uniform_draws

BANDS = ("g", "r", "i", "z", "y", "NB0387", "NB0816", "NB0921", "NB1010")
SIZE, BATCH = 64, 1024


def main() -> None:
    options = parser(__doc__).parse_args()
    side, n_cutouts, n_objects, seconds = (600, 2_000, 100, 0.3) if options.quick else (4200, 16_384, 2_500, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        rows = tiles(Path(folder), side=side, seconds=seconds)
        rows |= cutouts(Path(folder), n=n_cutouts, repeats=options.repeats)
        rows |= cutting(Path(folder), n=n_objects, side=side, repeats=min(3, options.repeats))
    report("loading", rows, json_file=options.json)


def tiles(folder: Path, *, side: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Stream crops with masks from eight tiles, which are one set of files under eight names."""
    rng = np.random.default_rng(0)
    header = wcs_header(side)
    for kind in ("plain", "compressed"):
        for band in BANDS:
            image = rng.normal(0, 0.05, (side, side)).astype(np.float32)
            name = band if band.startswith("NB") else f"HSC-{band.upper()}"
            ending = "fits" if kind == "plain" else "fits.fz"
            first = folder / kind / f"calexp-{name}-9813-0,0.{ending}"
            first.parent.mkdir(exist_ok=True)
            hdu = (
                fits.ImageHDU(image, header, name="IMAGE")
                if kind == "plain"
                else fits.CompImageHDU(image, header, name="IMAGE")
            )
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(first)
            for other in range(1, 8):
                first.with_name(first.name.replace("-0,0", f"-0,{other}")).symlink_to(first)
    raw = read_speed(sorted((folder / "plain").glob("*-0,0.fits")))
    rows = {}
    for kind, n_bands, per_tile in (
        ("plain", 5, None),
        ("plain", 5, 8192),
        ("plain", 5, 1024),
        ("plain", 9, None),
        ("plain", 9, 8192),
        ("compressed", 5, 8192),
        ("compressed", 9, 8192),
    ):
        found = find_tiles(folder / kind, bands=BANDS[:n_bands])
        found = found[:3] if per_tile is None else found  # all resident: what crops and masks alone cost
        loader = TileLoader(found, batch_size=BATCH, size=SIZE, cutouts_per_tile=per_tile or 1024, seed=0, resident=3)
        rate, memory = stream(iter(loader), seconds=seconds)
        name = f"TileLoader, {n_bands} bands, {kind}, " + (f"{per_tile} a tile" if per_tile else "all resident")
        share = rate / per_tile * n_bands * side**2 * 4 / raw if per_tile else None
        rows[name] = {"images_per_s": rate, "share_of_raw_read": share, "memory_growth_MB": memory}
    return rows


def stream(batches: Iterator[Any], *, seconds: float) -> tuple[float, float]:
    """Return images per second, masks included, and by how many MB the process has grown meanwhile."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 2:  # until memory for tiles has been used again
        next(batches)
    before, start, n = resident_memory(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        random_band_mask(uniform_draws(generator), len(batch.flux), batch.flux.shape[1], 64, 0.9)
        n += len(batch.flux)
    return n / (time.perf_counter() - start), (resident_memory() - before) / 1e6


def cutouts(folder: Path, *, n: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Read a file of cutouts, shuffled and in order, beside the plain loader."""
    path = folder / "cutouts.h5"
    zeros = np.zeros(n)
    columns, rng = prepare_columns({"ra": zeros, "dec": zeros}, n), np.random.default_rng(0)
    create(path, n=n, bands=BANDS[:5], size=SIZE, columns=columns, attributes={"zero_point": 27.0})
    with h5py.File(path, "r+") as written:
        for start in range(0, n, 1024):
            images = rng.standard_normal((min(1024, n - start), 5, SIZE, SIZE), dtype=np.float32)
            put(written, "cutouts", slice(start, start + len(images)), images)
    file = CutoutFile(path)
    block = 64 * 2**20
    kept = CutoutLoader(file, batch_size=BATCH, shuffle=True)
    loaders = {
        "CutoutLoader, shuffled, kept in memory": kept,
        "CutoutLoader, shuffled, read in blocks": CutoutLoader(file, batch_size=BATCH, shuffle=True, memory=2 * block),
        "CutoutLoader, in order, read in blocks": CutoutLoader(file, batch_size=BATCH, shuffle=False, memory=2 * block),
        "CutoutLoader, shuffled, kept, turned": CutoutLoader(file, batch_size=BATCH, shuffle=True, augment=True),
    }
    generator = torch.Generator().manual_seed(0)

    def once(loader: CutoutLoader) -> Callable[[], None]:
        def run() -> None:
            for batch in loader:
                random_band_mask(uniform_draws(generator), len(batch.flux), batch.flux.shape[1], 64, 0.9)

        return run

    cases: dict[str, Callable[[], Any]] = {name: once(loader) for name, loader in loaders.items()}
    first = "CutoutLoader, shuffled, read in blocks, first pass: checksums are compared"
    cases[first] = lambda: once(CutoutLoader(CutoutFile(path), batch_size=BATCH, memory=2 * block))()
    cases["raw"] = lambda: read_all(path)
    seconds = measure(cases, repeats=repeats)
    n_plain = min(n, 512)
    plain = {f"plain DataLoader, {w} workers": plain_loader(path, n_plain, workers=w) for w in (0, 1, 2)}
    plain_seconds = measure(plain, repeats=2, warm_up=0)
    speed = {name: n_plain / float(np.median(s)) for name, s in plain_seconds.items()}
    rows: dict[str, dict[str, Any]] = {name: {"images_per_s": rate} for name, rate in speed.items()}
    for name, loader in {**loaders, first: kept}.items():
        rate = len(loader) * BATCH / float(np.median(seconds[name]))
        share = float(np.median(np.array(seconds["raw"]) / np.array(seconds[name]))) * len(loader) * BATCH / n
        rows[name] = {"images_per_s": rate, "ratio_to_plain": rate / max(speed.values()), "share_of_raw_read": share}
    return rows


class PlainDataset(torch.utils.data.Dataset[Any]):
    """Opens the file for each item, and makes its mask on the CPU."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n

    def __len__(self) -> int:
        with h5py.File(self.path) as file:
            return min(self.n, len(file["cutouts"]))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with h5py.File(self.path) as file:
            flux = torch.from_numpy(file["cutouts"][index]).nan_to_num().clamp(min=-3)
        masks = [(torch.rand(64) < torch.rand(1) * 0.9).view(8, 8) for _ in range(len(flux))]
        return flux, torch.stack(masks).repeat_interleave(8, 1).repeat_interleave(8, 2)


def plain_loader(path: Path, n: int, *, workers: int) -> Callable[[], None]:
    def run() -> None:
        dataset = PlainDataset(path, n)
        for _ in torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True, num_workers=workers):
            pass

    return run


def cutting(folder: Path, *, n: int, side: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Cut objects out of a tile of five bands and write them, beside Cutout2D and a row written for each."""
    found = find_tiles(folder / "plain", bands=BANDS[:5])[:1]
    tile = read_tile(found[0])
    rng = np.random.default_rng(0)
    ra, dec = tile.sky_at(rng.uniform(40, side - 40, n), rng.uniform(40, side - 40, n))
    table = Table({"ra": ra, "dec": dec})
    n_plain = max(1, n // 10)

    def plain() -> None:
        tile = read_tile(found[0])
        cols, rows = tile.wcs.all_world2pix(ra[:n_plain], dec[:n_plain], 0)
        with h5py.File(folder / "plain.h5", "w") as file:
            out = file.create_dataset("cutouts", (n_plain, 5, SIZE, SIZE), "f4")
            for i in range(n_plain):
                for band in range(5):
                    out[i, band] = Cutout2D(
                        tile.flux[band], (cols[i], rows[i]), SIZE, wcs=tile.wcs, mode="partial"
                    ).data
        with open(folder / "plain.h5", "rb+") as written:
            os.fsync(written.fileno())  # as ours is

    def made() -> None:
        (folder / "made.h5").unlink(missing_ok=True)  # else it would be found finished
        make_cutouts(found, table, folder / "made.h5", size=SIZE, workers=1)

    cases = {
        "read_tile": lambda: read_tile(found[0]),
        "make_cutouts": made,
        "Cutout2D": plain,
    }
    seconds = measure(cases, repeats=repeats)
    reading = np.array(seconds["read_tile"])
    ours = float(np.median(np.array(seconds["make_cutouts"]) - reading)) / n
    theirs = float(np.median(np.array(seconds["Cutout2D"]) - reading)) / n_plain
    whole = float(np.median(seconds["make_cutouts"]))
    return {
        "Cutout2D, tile read before": {"images_per_s": 1 / theirs},
        "make_cutouts, tile read before": {"images_per_s": 1 / ours, "ratio_to_plain": theirs / ours},
        "make_cutouts, whole": {"images_per_s": n / whole, "seconds_a_tile": whole},
    }


def wcs_header(side: int) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.2], [side / 2, side / 2]
    wcs.wcs.cdelt = [-4.6667e-5, 4.6667e-5]
    return wcs.to_header()


def read_all(path: Path) -> None:
    buffer = bytearray(16 * 2**20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_speed(paths: list[Path]) -> float:
    seconds = measure({"raw": lambda: [read_all(path) for path in paths]}, repeats=3)["raw"]
    return sum(path.stat().st_size for path in paths) / float(np.median(seconds))


def resident_memory() -> int:
    """Return the bytes that the process holds by itself: pages of mapped files can be given up at any time."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0])


if __name__ == "__main__":
    main()
