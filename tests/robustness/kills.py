"""Kills long work at random moments, starts it again, and compares the result with that of work that nobody disturbed.

    python tests/robustness/kills.py --trials 350 --seed 0 --out kills.json

Each trial runs one kind of work in a process of its own, which gets SIGKILL or, every other time, SIGTERM once or twice;
then it runs to its end. The outcome of each is ``same``, ``different`` (also where temporary files stay), ``failed`` (the
restart raised an error) or ``slow`` (no end within 10 minutes).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import nbformat
import numpy as np
import pandas as pd
import torch
from astropy.io import fits
from astropy.table import Table
from tqdm.auto import tqdm

import skylib
from skylib import CutoutFile, Embeddings, ModelConfig, PretrainConfig
from skylib.config import ProbeConfig

warnings.simplefilter("ignore")
torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own is shared by all forks, and one that is killed never gives it back
MODEL = ModelConfig(bands=("g", "i"), size="nano", image_size=16, patch_size=8, decoder_width=32, decoder_depth=1)
CELL = """
import time
from pathlib import Path
import numpy as np
from skylib import write_cutouts
flux = np.random.default_rng(0).normal(size=(20, 2, 8, 8)).astype("f4")
write_cutouts(Path(run_dir) / "c.h5", flux, ra=np.arange(20.0), dec=np.zeros(20), bands="gi")
"""


def name_of(*values) -> str:
    """Return a short name: the same values, the same name."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else str(value).encode())
    return digest.hexdigest()[:16]


def of_cutouts(path: Path) -> str:
    file = CutoutFile(path)
    return name_of(file.flux(), file.ra, file.dec, *(file.column(name) for name in file.columns if name != "file"))


class Work:
    """Every kind of work, as a method that takes a folder and returns a name for what it left there."""

    def __init__(self, place: Path) -> None:
        sky = skylib.simulate_sky(place / "sky", n_tiles=3, tile_size=96, bands="gi", n_objects=90, seed=2)
        self.catalogue, self.tiles = sky.catalogue, skylib.find_tiles(sky.tiles, bands="gi", min_bands=1)
        rng, n = np.random.default_rng(0), 120
        flux = rng.normal(size=(n, 2, 16, 16)).astype("f4")
        labels = {"class": np.arange(n) % 3, "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-60, 60, n)}
        flux += labels["class"][:, None, None, None]
        self.cutouts = skylib.write_cutouts(place / "c.h5", flux, bands="gi", **labels)
        torch.manual_seed(0)
        self.model = skylib.build_model(MODEL).eval()
        self.notebook = place / "n.ipynb"
        new = nbformat.v4
        first = new.new_code_cell('run_dir: str = "x"  # folder', metadata={"tags": ["parameters"]})
        book = new.new_notebook(cells=[first, new.new_code_cell(CELL)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.notebook)

    def simulate(self, folder: Path) -> str:
        sky = skylib.simulate_sky(folder, n_tiles=2, tile_size=96, bands="gi", n_objects=40, seed=3)
        images = [fits.getdata(path, hdu) for path in sorted(sky.tiles.glob("*.fits")) for hdu in (1, 2, 3)]
        return name_of(*images, *(np.asarray(c) for c in Table.read(sky.catalogue).itercols()))

    def make_cutouts(self, folder: Path) -> str:
        return of_cutouts(skylib.make_cutouts(self.tiles, self.catalogue, folder / "c.h5", size=24, workers=1).path)

    def pretrain(self, folder: Path) -> str:
        config = PretrainConfig(
            steps=12, batch_size=16, checkpoint_every=2, log_every=4, validate_every=100, precision="fp32"
        )
        skylib.pretrain(MODEL, config, train=self.cutouts, run_dir=folder, device="cpu")
        state = skylib.load_model(folder, device="cpu").state_dict()
        return name_of(*state, *(value.numpy() for value in state.values()))

    def embed(self, folder: Path) -> str:
        path = folder / "embeddings.h5"
        if not path.exists():
            skylib.embed(self.model, self.cutouts, batch_size=8, precision="fp32").save(path)
        return name_of(Embeddings.load(path).vectors)

    def label_study(self, folder: Path) -> str:
        config = ProbeConfig(epochs=1, min_steps=2, evaluations=1, precision="fp32", batch_size=16)
        skylib.label_efficiency(
            self.model,
            self.cutouts,
            "class",
            methods=("linear",),
            n_labels=(24, 48),
            seeds=(0, 1),
            run_dir=folder,
            config=config,
        )
        table = pd.read_csv(folder / "label_efficiency.csv").drop(columns=["seconds", "trials"], errors="ignore")
        return name_of(table.sort_values(["method", "n_labels", "seed"]).to_csv(index=False))

    def sky_search(self, folder: Path) -> str:
        found = skylib.search_tiles(
            self.model,
            self.cutouts.flux(slice(0, 3)),
            self.tiles,
            k=9,
            min_separation=1.0,
            run_dir=folder,
            batch_size=16,
        )
        return name_of(*(np.asarray(found[name]) for name in ("rank", "score", "ra", "dec")))

    def notebook_run(self, folder: Path) -> str:
        skylib.run_notebook(self.notebook, folder)
        status = json.loads((folder / "status" / "n.json").read_text())
        return name_of(of_cutouts(folder / "c.h5"), status["state"])


def start(work: Callable[[Path], str], folder: Path) -> int:
    """Start work in a process of its own, which leaves its result in a file beside the folder."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        folder.mkdir(exist_ok=True)
        folder.with_suffix(".result").write_text(work(folder))
        os._exit(0)
    except BaseException as error:
        folder.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def wait(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; return whether it came in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    return False


def trial(
    work: Callable[[Path], str], folder: Path, right: str, length: float, rng: np.random.Generator, number: int
) -> str:
    """Disturb work once or twice, let it end, and say what came of it."""
    for _ in range(rng.integers(1, 3)):
        pid = start(work, folder)
        if wait(pid, rng.uniform(0, length)):
            continue
        os.kill(pid, signal.SIGKILL if number % 2 else signal.SIGTERM)
        if not wait(pid, 60):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "slow"
    for name in (".result", ".error"):
        folder.with_suffix(name).unlink(missing_ok=True)
    pid = start(work, folder)
    if not wait(pid, 600):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "slow"
    result = folder.with_suffix(".result")
    if not result.exists():
        return "failed"
    left = [path for path in folder.rglob("*") if ".partial" in path.name]
    return "same" if result.read_text() == right and not left else "different"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("simulate", "make_cutouts", "pretrain", "embed", "label_study", "sky_search", "notebook_run")
    parser.add_argument("--trials", type=int, default=len(kinds), help="in all, shared among the kinds of work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        place = Path(name)
        work = Work(place)
        for kind in options.only:
            do, began = getattr(work, kind), time.monotonic()
            if not wait(start(do, place / kind), 600) or not (place / f"{kind}.result").exists():
                error = place / f"{kind}.error"
                raise SystemExit(f"{kind} fails undisturbed: {error.read_text() if error.exists() else 'no end'}")
            length, right = time.monotonic() - began, (place / f"{kind}.result").read_text()
            counts: Counter[str] = Counter()
            bad = []
            for number in range(-(-options.trials // len(options.only))):
                rng = np.random.default_rng([options.seed, kinds.index(kind), number])
                folder = place / f"{kind}-{number}"
                outcome = trial(do, folder, right, length, rng, number)
                counts[outcome] += 1
                if outcome != "same":
                    error = folder.with_suffix(".error")
                    left = [str(p.relative_to(folder)) for p in folder.rglob("*") if ".partial" in p.name]
                    bad.append([number, outcome, error.read_text()[:300] if error.exists() else str(left)])
            found[kind] = {
                "tried": sum(counts.values()),
                **counts,
                "seconds": round(time.monotonic() - began),
                "bad": bad,
            }
            print(kind, json.dumps(found[kind]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(result["tried"] != result.get("same", 0) for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
