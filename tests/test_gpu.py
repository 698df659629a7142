"""The path through a GPU, against the one through the CPU, on data made here: it needs neither GalSim nor notebooks."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS

from skylib import (
    CutoutLoader,
    Embeddings,
    ModelConfig,
    PretrainConfig,
    SearchIndex,
    TileLoader,
    build_model,
    embed,
    find_tiles,
    load_model,
    pretrain,
    write_cutouts,
)
from skylib.data.augment import Augmentation
from skylib.device import keyed_generator
from skylib.training.distributed import World
from skylib.training.optimise import Optimiser, Step

MODEL = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, mask_ratio=0.5)


def gpu(test):
    """Mark a test that needs a GPU."""
    test = pytest.mark.filterwarnings("ignore::DeprecationWarning")(test)  # torch's own, while it compiles
    test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test)
    return pytest.mark.gpu(test)


def config(steps=12, **values):
    return PretrainConfig(
        **(
            {
                "steps": steps,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "warmup_steps": 2,
                "precision": "fp32",
                "log_every": 2,
            }
            | values
        )
    )


def sky_images(n, side, seed=0):
    """Noise, and a round source of random width and brightness in the middle of each image, redder or bluer."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    width, light = rng.uniform(1, 4, (n, 1, 1, 1)), 10 ** rng.uniform(0, 2, (n, 1, 1, 1))
    colour = 1 + 0.5 * rng.normal(size=(n, 1, 1, 1)) * np.linspace(-1, 1, 5)[:, None, None]
    source = light * colour.clip(0.1) * np.exp(-(x**2 + y**2) / (2 * width**2))
    return (source + rng.normal(0, 0.1, (n, 5, side, side))).astype(np.float32)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("cutouts") / "cutouts.h5"
    rng = np.random.default_rng(0)
    return write_cutouts(
        path, sky_images(240, 32), ra=rng.uniform(0, 360, 240), dec=rng.uniform(-9, 9, 240), bands="grizy"
    )


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150.0, 2.2], [-4.6667e-5, 4.6667e-5]
    for number in range(2):
        images = sky_images(16, 64, seed=number).reshape(4, 4, 5, 64, 64).transpose(2, 0, 3, 1, 4).reshape(5, 256, 256)
        for band, image in zip("GRIZY", images, strict=True):
            planes = [
                fits.PrimaryHDU(),
                fits.ImageHDU(image, wcs.to_header()),
                fits.ImageHDU(np.zeros(image.shape, np.int32)),
                fits.ImageHDU(np.full_like(image, 0.01)),
            ]
            fits.HDUList(planes).writeto(folder / f"calexp-HSC-{band}-9813-0,{number}.fits")
    return find_tiles(folder, bands="grizy")


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread on the CPU: on busy cores many wait for each other at every small product."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same_directions(one, two):
    return ((one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).min()


@gpu
def test_a_run_on_tiles_resumes_on_a_gpu(tiles, tmp_path):
    for steps in (4, 8):
        loader = TileLoader(tiles, batch_size=16, size=32, device="cuda", variance=True)
        run = pretrain(
            MODEL, config(steps=steps, batch_size=16, compile=False), train=loader, run_dir=tmp_path, device="cuda"
        )
    assert run.metrics["step"].tolist() == [2, 4, 6, 8]
    assert run.metrics["loss"].notna().all()


@gpu
def test_a_loss_in_fp32_is_that_of_the_cpu(cutouts, tmp_path):
    settings = config(steps=4, compile=False, tf32=False, ema=0.5)
    runs = [
        pretrain(MODEL, settings, train=cutouts, run_dir=tmp_path / device, device=device) for device in ("cpu", "cuda")
    ]
    here, there = (run.metrics["loss"].iloc[0] for run in runs)
    assert there == pytest.approx(here, rel=0.3)  # other masks: each device draws its own


@gpu
@pytest.mark.parametrize("memory", [2**31, 2**20])
def test_cutouts_come_to_the_gpu_as_to_the_cpu(cutouts, memory):
    loaders = [
        CutoutLoader(cutouts, batch_size=64, augment=True, device=device, memory=memory) for device in ("cpu", "cuda")
    ]
    for here, there in zip(*loaders, strict=True):
        assert there.flux.is_contiguous()
        torch.testing.assert_close(here.flux, there.flux.cpu(), rtol=0, atol=0)
        torch.testing.assert_close(here.ra, there.ra.cpu(), rtol=0, atol=0)


@gpu
def test_crops_of_tiles_come_to_the_gpu_as_to_the_cpu(tiles):
    loaders = [
        iter(TileLoader(tiles, batch_size=32, size=32, device=device, variance=True)) for device in ("cpu", "cuda")
    ]
    for _ in range(3):
        here, there = (next(loader) for loader in loaders)
        assert there.flux.is_contiguous()
        for one, two in ((here.flux, there.flux), (here.weight, there.weight), (here.ra, there.ra)):
            torch.testing.assert_close(one, two.cpu(), rtol=0, atol=0)


@gpu
@pytest.mark.parametrize("objective", ["mae", "simmim"])
@pytest.mark.parametrize("source", ["tiles", "cutouts"])
def test_no_step_waits_for_the_gpu(tiles, cutouts, source, objective):
    device = torch.device("cuda")
    how = Augmentation(brightness=0.1, noise=0.1, band_dropout=0.1)
    if source == "tiles":
        batches = iter(TileLoader(tiles, batch_size=32, size=32, augment=how, device=device, variance=True))
    else:
        batches = iter(CutoutLoader(cutouts, batch_size=32, augment=how, device=device))
    model = (
        build_model(ModelConfig(**{**MODEL.__dict__, "objective": objective, "hide_bands": None, "flux_weight": None}))
        .to(device)
        .train()
    )
    run = config(precision="bf16", compile=False, ema=0.9)
    step, optimiser = Step(model, run, World(0, 1, device)), Optimiser(model, run)
    try:
        for number in range(6):
            torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
            batch = next(batches)
            mask = model.draw_mask(len(batch.flux), generator=keyed_generator(number, device=device), device=device)
            norm = optimiser.step(number, step(batch, mask)[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm.isfinite()


@gpu
def test_a_search_finds_on_a_gpu_what_it_finds_on_a_cpu():
    vectors = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    embeddings = Embeddings(vectors, ra=np.zeros(len(vectors)), dec=np.zeros(len(vectors)))
    for metric in ("cosine", "mse", "mae"):
        here, there = (
            SearchIndex(embeddings, device=device).nearest(vectors[:9], k=50, metric=metric)
            for device in ("cpu", "cuda")
        )
        np.testing.assert_array_equal(here[1], there[1])
        np.testing.assert_allclose(here[0], there[0], rtol=1e-5, atol=1e-7)


@gpu
@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_a_compiled_run_in_bf16_learns_and_its_embeddings_are_those_of_the_cpu(cutouts, tmp_path, objective):
    model = ModelConfig(**{**MODEL.__dict__, "objective": objective, "hide_bands": None, "flux_weight": None})
    # Larger than the memory given: a thread makes batches on the GPU while the step is recorded.
    how = {"train": CutoutLoader(cutouts, batch_size=32, augment=True, device="cuda", memory=2**20), "device": "cuda"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training is not")
        run = pretrain(model, config(precision="bf16"), validation=cutouts, run_dir=tmp_path / "a", **how)
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0]
    how["train"].load_state_dict({"epoch": 0, "next": 0})
    plain = pretrain(model, config(precision="bf16", compile=False), run_dir=tmp_path / "b", **how)
    np.testing.assert_allclose(run.metrics["loss"].dropna(), plain.metrics["loss"], rtol=0.05)
    here = embed(load_model(tmp_path / "a", device="cpu"), cutouts, precision="fp32").vectors
    model = load_model(tmp_path / "a", device="cuda")
    assert same_directions(here, embed(model, cutouts, precision="fp32", batch_size=50).vectors) > 0.9999
    assert same_directions(here, embed(model, cutouts, batch_size=50).vectors) > 0.99
    if objective == "mae":
        assert same_directions(here, embed(model, cutouts, batch_size=50, compile=True).vectors) > 0.99


ABSENT = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import numpy as np
from skylib import ModelConfig, PretrainConfig, SearchIndex, embed, load_model, pretrain, write_cutouts
import tests.test_gpu
rng = np.random.default_rng(0)
data = write_cutouts({folder!r} + "/cutouts.h5", rng.normal(size=(64, 5, 32, 32)).astype(np.float32), bands="grizy",
                     ra=rng.uniform(0, 360, 64), dec=rng.uniform(-9, 9, 64))
model = ModelConfig(size="nano", image_size=32, decoder_width=32, decoder_depth=1)
run = PretrainConfig(steps=2, batch_size=16, warmup_steps=1, log_every=1, compile=False, precision="fp32")
pretrain(model, run, train=data, validation=data, run_dir={folder!r} + "/run")
found = embed(load_model({folder!r} + "/run"), data)
print(len(SearchIndex(found).search([0], k=5)))
"""


def test_a_gpu_node_needs_no_notebooks(tmp_path):
    # What a bare machine with PyTorch has not; transformers and TensorBoard are not needed either.
    absent = {
        "papermill",
        "nbconvert",
        "nbformat",
        "nbclient",
        "ipykernel",
        "ipywidgets",
        "IPython",
        "jupyter_client",
        "jupyterlab",
        "jscatter",
        "umap",
        "pynndescent",
        "galsim",
        "pooch",
        "pyarrow",
        "requests",
        "transformers",
        "tensorboard",
        "faiss",
        "numba",
        "isal",
        "bleach",
        "torchvision",
        "astropy_healpix",
    }
    program = ABSENT.format(absent=absent, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "5"
