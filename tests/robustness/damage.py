"""Damages files of every kind that the library reads, and counts what becomes of each.

    python tests/robustness/damage.py --trials 10000 --seed 0 --out damage.json

A child process reads one damaged copy after another. The outcome of each is one of

- ``right``: read, and equal to what the whole file holds;
- ``named``: an OSError or ValueError that names the file;
- ``changed``: read, and different, in a format without checksums (or as FITS's cannot tell): it may be another file;
- ``wrong``: read, and different, although the format has checksums;
- ``unnamed``: another error, or one that does not name the file;
- ``crash``, ``slow`` (over 10 s), ``large`` (over 1 GB).
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import h5py
import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table

import skylib
from skylib import get_survey, save_weights
from skylib.browse.state import BrowserState, Question
from skylib.config import to_dict
from skylib.data.cutouts.catalogue import read_catalogue
from skylib.data.simulate import tile_wcs
from skylib.data.tiles import TilePaths
from skylib.model.checkpoint import save_checkpoint
from skylib.runner.status import read_record, read_status
from skylib.search.maps import EmbeddingMap
from skylib.training.monitor import read_metrics

BAD = ("wrong", "unnamed", "crash", "slow", "large")
SECONDS, BYTES = 10, 2**30
WORDS = (
    b"",
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\0",
    b"\xff\xfe",
    b"%s%n",
    b"../../x",
    b"'",
    b"\n",
    b"END",
    b"true",
)
N = 24  # objects


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with one to three faults such as disks, transfers and people make."""
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        n = max(1, len(raw))
        at, length = int(rng.integers(n)), int(min(n, 2 ** rng.uniform(0, 12)))
        if rng.random() < 0.3:  # the beginning holds most of the structure
            at = int(rng.integers(min(n, 4096)))
        kind = rng.integers(9)
        if not raw or kind == 0:
            raw = raw[:at]
        elif kind <= 2:
            raw[at] ^= 1 << rng.integers(8)
        elif kind == 3:
            raw[at : at + length] = bytes(len(raw[at : at + length]))
        elif kind == 4:
            raw[at : at + length] = rng.bytes(len(raw[at : at + length]))
        elif kind == 5:
            del raw[at : at + length]
        elif kind == 6:
            raw[at:at] = raw[at : at + length]
        elif kind == 7:
            raw[at : at + int(rng.integers(9))] = WORDS[rng.integers(len(WORDS))]
        else:
            raw[at : at + 8] = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1])).to_bytes(8, "little")
    return bytes(raw)


def digest(value) -> str:
    """Return a name for what was read: equal values, equal names."""
    told = hashlib.sha256()

    def add(x) -> None:
        if isinstance(x, dict):
            for key in sorted(x, key=str):
                add(str(key))
                add(x[key])
        elif isinstance(x, list | tuple):
            told.update(f"{len(x)}".encode())
            for one in x:
                add(one)
        elif isinstance(x, torch.Tensor):
            add(x.detach().cpu().float().numpy())
        elif isinstance(x, np.ndarray) and x.dtype.kind != "O":
            told.update(f"{x.dtype.str}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
        elif isinstance(x, np.ndarray):
            add(x.tolist())
        else:
            told.update(str(x).encode(errors="replace"))

    add(value)
    return told.hexdigest()


def read_tile(path):
    tile = skylib.read_tile(TilePaths("x", {"i": path}), bad_planes=["SAT"], variance=True)
    return tile.flux, tile.variance, tile.wcs.to_header_string()


def read_cutouts(path):
    file = skylib.CutoutFile(path)
    weight = file.weight() if file.has_weight else None
    names = file.class_names() if "class" in file.columns else None
    return file.flux(), weight, file.ra, file.dec, file.bands, {c: file.column(c) for c in file.columns}, names


def read_embeddings(path):
    e = skylib.Embeddings.load(path)
    return e.vectors, e.ra, e.dec, e.columns, e.meta


def read_table(path):
    table = read_catalogue(path)
    return {name: np.ma.filled(np.ma.asarray(table[name]), 0) for name in table.colnames}


def read_model(path):
    return skylib.load_model(path, device="cpu").state_dict()


def read_map(path):
    return EmbeddingMap.load(path).__dict__


def read_survey(path):
    return get_survey(path)


def read_browser(path):
    state = BrowserState.load(path, like=BrowserState(N, "x"))
    return state.question, state.marks, state.tags, state.settings


def read_run_record(path):
    record = read_record(path)
    os.makedirs(path.parent / "run/status", exist_ok=True)
    (path.parent / "run/status/t.json").write_bytes(path.read_bytes())
    read_status(path.parent / "run")
    return record


def read_log(path):  # a log is read as far as it goes
    (path.parent / "metrics.jsonl").write_bytes(path.read_bytes())
    return read_metrics(path.parent).to_dict()


def make_files(folder: Path) -> dict[str, tuple]:
    """Write one whole file of every kind: name -> (path, reader, whether checksums cover all of it)."""
    rng = np.random.default_rng(0)
    header, shape = tile_wcs(0, 48).to_header(), (48, 48)
    image, mask = rng.normal(size=shape).astype("f4"), np.zeros(shape, "i4")
    files: dict[str, tuple] = {}

    def tile(name, checksum, **compression):
        form = (lambda *a, **k: fits.CompImageHDU(*a, **k, **compression)) if compression else fits.ImageHDU
        hdus = fits.HDUList(
            [
                fits.PrimaryHDU(header=fits.Header({"FLUXMAG0": 10**10.8})),
                form(image, header, name="IMAGE"),
                form(mask, header + fits.Header({"MP_SAT": 1}), name="MASK"),
                form(np.ones(shape, "f4"), header, name="VARIANCE"),
            ]
        )
        hdus.writeto(folder / name, checksum=checksum)
        return folder / name

    files["FITS, checksums"] = tile("a.fits", True), read_tile, True
    files["FITS, none"] = tile("b.fits", False), read_tile, False
    files["FITS .fz, checksums"] = (
        tile("c.fits.fz", True, compression_type="RICE_1", quantize_level=16),
        read_tile,
        True,
    )
    files["FITS .fz, none"] = tile("d.fits.fz", False, compression_type="GZIP_1", quantize_level=0), read_tile, False
    for ending, module in (("gz", gzip), ("bz2", bz2)):
        (folder / f"e.fits.{ending}").write_bytes(module.compress((folder / "b.fits").read_bytes()))
        files[f"FITS .{ending}"] = folder / f"e.fits.{ending}", read_tile, True
    flux, weight = rng.normal(size=(N, 5, 12, 12)).astype("f4"), np.ones((N, 5, 12, 12), "f4")
    place = {"ra": 150 + np.arange(N) * 0.01, "dec": np.linspace(-1, 1, N)}
    labels = {
        "class": np.arange(N) % 3,
        "z_spec": rng.uniform(0, 1, N),
        "name": np.array([f"object {i}" for i in range(N)]),
    }
    cut = skylib.write_cutouts(folder / "a.h5", flux, **place, bands="grizy", weight=weight, **labels)
    files["HDF5, ours"] = cut.path, read_cutouts, True
    with h5py.File(folder / "b.h5", "w") as f:
        f["cutouts"], f["ra"], f["dec"], f["class"] = flux, *place.values(), labels["class"]
        f.attrs["bands"], f["name"] = list("grizy"), labels["name"].astype(object)
    files["HDF5, sky_embeddings"] = folder / "b.h5", read_cutouts, False
    with h5py.File(folder / "c.h5", "w") as f:
        f["image"], f["ra"], f["dec"], f["specz_redshift"] = flux, *place.values(), labels["z_spec"]
    files["HDF5, GalaxiesML"] = folder / "c.h5", read_cutouts, False
    with h5py.File(folder / "d.h5", "w") as f:
        f.create_dataset("image_array", data=flux, chunks=(4, 5, 12, 12), compression="gzip")
        f["image_ivar"], f["image_mask"] = weight, np.ones(flux.shape, bool)
        f["image_band"] = np.tile([b"hsc-g", b"hsc-r", b"hsc-i", b"hsc-z", b"hsc-y"], (N, 1))
        f["ra"], f["dec"] = place.values()
    files["HDF5, MultimodalUniverse"] = folder / "d.h5", read_cutouts, False
    e = skylib.Embeddings(rng.normal(size=(N, 16)), **place, columns=labels, meta={"model": {"size": "nano"}})
    e.save(folder / "e.h5")
    files["embeddings"] = folder / "e.h5", read_embeddings, True
    xy = rng.normal(size=(N, 2))
    EmbeddingMap(xy=xy, components=xy, mean=xy[0], scale=xy[0], directions=xy, n_neighbors=3).save(folder / "m.npz")
    files["map .npz"] = folder / "m.npz", read_map, True
    model = skylib.build_model(
        skylib.ModelConfig(size="nano", image_size=16, patch_size=8, decoder_width=32, decoder_depth=1)
    )
    payload = {"step": 1, "model": model.state_dict(), "model_config": to_dict(model.config)}
    save_checkpoint(folder / "last.pt", payload)
    files["checkpoint"] = folder / "last.pt", read_model, True
    model.origin = {"step": 1}
    files["weights .safetensors"] = save_weights(model, folder / "w.safetensors", card={"data": "x"}), read_model, True
    table = Table({**place, **labels})
    fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)]).writeto(folder / "u.fits", checksum=True)
    files["catalogue .fits, checksums"] = folder / "u.fits", read_table, True
    for ending, how in {"csv": {}, "ecsv": {}, "fits": {}, "vot": {"format": "votable"}, "parquet": {}}.items():
        table.write(folder / f"t.{ending}", **how)
        files[f"catalogue .{ending}"] = folder / f"t.{ending}", read_table, False
    (folder / "s.toml").write_text(
        'bands = {g = 475, r = 620}\nfile_names = "{tile}_{band}_sci"\nzero_point = 25.0\npixel_scale = 0.2\nbad_planes = ["SAT", 3]\n[mask_planes]\nSAT = 1\n'
    )
    files["survey .toml"] = folder / "s.toml", read_survey, False
    state = BrowserState(
        N, "x", Question("alike", (0, 3)), marks={1: "yes", 2: "no"}, tags={4: ["arc"]}, settings={"page": 2}
    )
    state.save(folder / "browser.json")
    files["browser.json"] = folder / "browser.json", read_browser, False
    record = {
        "state": "done",
        "notebook": "t.ipynb",
        "host": "a",
        "pid": 3,
        "job": None,
        "restarts": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "error": "",
    }
    (folder / "t.json").write_text(json.dumps(record))
    files["status .json"] = folder / "t.json", read_run_record, False
    lines = [{"step": i, "loss": 1 / i, "learning_rate": 1e-3, "time": 1.0 * i} for i in range(1, 40)]
    (folder / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files["metrics.jsonl"] = folder / "l.jsonl", read_log, False
    return files


def seen(path: Path) -> bool:
    """Whether the checksums of a file can tell; to those of FITS a word of ones is the same as one of zeros."""
    if ".fits" not in path.name or path.suffix in (".gz", ".bz2"):
        return True
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with fits.open(path, checksum=True) as hdus:
            len(hdus)
    return bool(found)


def peak() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def try_one(path: Path, read, right: str | None, checked: bool) -> tuple[str, str]:
    """Read one damaged file; return the outcome and what it said."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start, why, outcome = peak(), time.monotonic(), "", ""
    try:
        outcome = "right" if digest(read(path)) == right else "wrong" if checked and seen(path) else "changed"
    except (OSError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        outcome = "named" if path.name in str(error) or "metrics.jsonl" in str(error) else "unnamed"
    except BaseException as error:
        why, outcome = f"{type(error).__name__}: {error}", "unnamed"
    if time.monotonic() - start > SECONDS:
        outcome = "slow"
    elif peak() - before > BYTES:
        outcome = "large"
    return outcome, why


def child(name, files, folder, seeds, pipe) -> None:
    path, read, checked = files[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
    content, right = path.read_bytes(), digest(read(path))
    for seed in seeds:
        place = folder / f"{os.getpid()}"
        place.mkdir(exist_ok=True)
        bad = place / path.name
        bad.write_bytes(damaged(content, np.random.default_rng(seed)))
        os.write(pipe, f"{seed[1]}\tstarted\t\n".encode())
        outcome, why = try_one(bad, read, right, checked)
        os.write(pipe, f"{seed[1]}\t{outcome}\t{' '.join(why.split())[:300]}\n".encode())
        bad.unlink()


def run(name, files, folder: Path, n: int, seed: int, keep: Path | None) -> dict:
    """Read `n` damaged copies of one file, in as many processes as it takes."""
    counts: Counter[str] = Counter()
    bad, start, began = [], 0, time.monotonic()
    number = sorted(files).index(name)
    while start < n:
        source, pipe = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(source)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            if not os.environ.get("DEBUG_CHILD"):
                os.dup2(null, 2)
            try:
                child(name, files, folder, [(seed, i, number) for i in range(start, n)], pipe)
                os._exit(0)
            except BaseException:
                os._exit(99)
        os.close(pipe)
        text, current, ended = "", start, False
        while not ended:
            ready = select.select([source], [], [], 3 * SECONDS)[0]
            data = os.read(source, 65536) if ready else b""
            if not data:
                if not ready:
                    os.kill(pid, signal.SIGKILL)
                status, ended = os.waitpid(pid, 0)[1], True
                if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0):
                    what = "crash" if ready else "slow"
                    counts[what] += 1
                    bad.append((current, what, f"status {status}"))
                    current += 1
            text += data.decode(errors="replace")
            *lines, text = text.split("\n")
            for line in lines:
                i, outcome, why = line.split("\t", 2)
                current = int(i)
                if outcome != "started":
                    counts[outcome] += 1
                    current += 1
                    if outcome in BAD:
                        bad.append((int(i), outcome, why))
        os.close(source)
        start = current
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        path = files[name][0]
        for i, outcome, _ in bad[:20]:
            content = damaged(path.read_bytes(), np.random.default_rng((seed, i, number)))
            (keep / f"{outcome}-{i}-{path.name}").write_bytes(content)
    return {"tried": n, **counts, "seconds": round(time.monotonic() - began, 1), "bad": bad}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300, help="in all, shared among the kinds of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this text")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the files that were not read as they should")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        files = make_files(Path(place))
        names = [name for name in files if options.only.lower() in name.lower()]
        found = {}
        for name in names:
            found[name] = run(name, files, Path(place), -(-options.trials // len(names)), options.seed, options.keep)
            print(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'bad'})}", flush=True)
            for i, outcome, why in found[name]["bad"][:5]:
                print(f"    {i} {outcome}: {why[:200]}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(result.get(outcome) for result in found.values() for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
