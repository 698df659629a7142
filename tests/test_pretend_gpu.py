"""What a GPU would compute, and where the host would wait for it, on machines without one."""

import numpy as np
import pytest
import torch
from pretend_gpu import pretend_gpu
from test_gpu import MODEL, config, sky_images, tiles  # noqa: F401

from skylib import (
    Embeddings,
    ModelConfig,
    ProbeConfig,
    SearchIndex,
    TileLoader,
    build_model,
    feedback_scores,
    pretrain,
    rank_anomalies,
    search_files,
    train_head,
    trustworthiness,
    write_cutouts,
)
from skylib.data.augment import Augmentation
from skylib.data.loading import CutoutLoader
from skylib.data.tiles import read_tile
from skylib.model.embed import encode
from skylib.model.pooling import POOLS
from skylib.search.windows import WindowScan

pytestmark = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning")


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("cutouts") / "cutouts.h5", np.random.default_rng(0)
    place = {"ra": rng.uniform(0, 360, 96), "dec": rng.uniform(-9, 9, 96)}
    return write_cutouts(path, sky_images(96, 32), bands="grizy", kind=np.arange(96) % 3, **place)


def on_both(compute):
    """Return what a function of the device gives on both, and how often the host waited, by function."""
    here = compute("cpu")
    with pretend_gpu() as waits:
        return here, compute("cuda"), dict(waits)


def functions(waits):
    """Return in which functions the host waited."""
    return {place.split(" in ")[1].split(".<locals>")[0] for place in waits}


def test_a_tensor_of_the_gpu_refuses_what_one_of_a_gpu_refuses():
    with pretend_gpu() as waits:
        x = torch.arange(4.0, device="cuda")
        assert (x * 2).device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(4)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert not waits
        assert x[x > 1].cpu().tolist() == [2, 3]
        assert float(x[torch.tensor([1])]) == 1
    assert sum(waits.values()) == 4  # the mask, the copy, the index of the CPU, the value


@pytest.mark.parametrize(("objective", "memory"), [("mae", 2**20), ("simmim", 2**31)])
def test_a_training_is_that_of_the_cpu_and_no_step_waits(cutouts, tmp_path, objective, memory):
    defaults = {"hide_bands": None, "flux_weight": None}
    model = ModelConfig(**{**MODEL.__dict__, "objective": objective, "ra_dec": True, **defaults})
    run = config(steps=4, log_every=4, batch_size=16, compile=False, ema=0.9)
    augment = Augmentation(brightness=0.1, noise=0.1, band_dropout=0.1)
    validation = cutouts if objective == "mae" else None

    def train(device):
        data = CutoutLoader(cutouts, batch_size=16, augment=augment, device=device, memory=memory)
        return pretrain(model, run, train=data, validation=validation, run_dir=tmp_path / device, device=device).metrics

    here, there, waits = on_both(train)
    for name in {"loss", "validation_loss", "gradient_norm"} & {*here}:
        np.testing.assert_allclose(here[name], there[name], rtol=1e-5)
    once = {"Trainer.__init__", "Trainer._log", "Trainer._save", "Optimiser.bad_steps", "Optimiser.state_dict"}
    once |= {"measure", "validation_loss", "draw_reconstruction", "load_model", "CutoutLoader._on_device"}
    assert functions(waits) <= once | {"CutoutLoader._batch"}, waits
    assert sum(count for place, count in waits.items() if "CutoutLoader._batch" in place) <= 1  # the noise of the sky


def test_crops_of_tiles_are_those_of_the_cpu(tiles):  # noqa: F811
    def batches(device):
        loader = iter(TileLoader(tiles, batch_size=32, size=32, device=device, variance=True))
        return [next(loader) for _ in range(3)]

    here, there, waits = on_both(batches)
    for one, two in zip(here, there, strict=True):
        for name in ("flux", "weight", "ra", "dec"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name).held, rtol=0, atol=0)
    assert not waits


def test_embeddings_are_those_of_the_cpu_and_no_batch_waits(cutouts):
    model, pools = build_model(MODEL).eval(), tuple(pool for pool in POOLS if pool != "tokens")
    how = {"rows": np.arange(96), "pools": pools, "layers": (-1,), "drop_bands": ("g",), "batch_size": 60}
    here, there, waits = on_both(lambda device: encode(model.to(device), cutouts, all_orientations=True, **how))
    for key, vectors in here.items():
        np.testing.assert_allclose(vectors, there[key], rtol=1e-4, atol=1e-5)
    assert functions(waits) <= {"on_both", "encode", "?"}, waits


def test_windows_of_a_tile_are_those_of_the_cpu_and_no_batch_waits(tiles):  # noqa: F811
    tile, model = read_tile(tiles[0]), build_model(MODEL).eval()
    corners = WindowScan(model=model, stride=64).corners(tile)

    def scan(device):
        return WindowScan(model=model.to(device), stride=64, batch_size=4).embed(tile, corners, (100, 1000))

    here, there, waits = on_both(scan)
    assert 4 < len(here[0]) < len(corners) == 25
    for one, two in zip(here, there, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert sum(count for place, count in waits.items() if "WindowScan" in place) == 4  # image, noise, choice, S/N


def test_searches_are_those_of_the_cpu(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors[5] = np.nan
    objects = Embeddings(vectors, ra=np.arange(300.0), dec=np.zeros(300), columns={"kind": np.arange(300) % 3})
    objects.save(tmp_path / "objects.h5")
    good = objects[objects.finite]

    def answers(device):
        index, tokens = SearchIndex(objects, device=device), vectors.reshape(300, 2, 8)
        by_token = SearchIndex(objects, tokens=tokens, standardize="whiten", device=device)
        how = {"k": 9, "where": {"kind": [0, 1]}, "min_separation": 3.0}
        tables = [
            index.search([3, 4], metric=metric, weights=weights, combine=combine, **how)
            for metric in ("cosine", "mse", "mae")
            for weights, combine in ((None, "min"), ("inverse_variance", "mean"))
        ]
        tables += [by_token.search([3], k=9), rank_anomalies(index, min_separation=3.0)]
        tables.append(
            search_files([tmp_path / "objects.h5"], vectors[:2], k=9, where={"kind": 0}, rows=64, device=device)
        )
        other = [*index.nearest(vectors[:4], k=5), index.scores(vectors[:9], [1]), feedback_scores(index, [1], [2])]
        return (
            [t["score"] for t in tables] + other + [trustworthiness(good, good.vectors[:, :2], sample=9, device=device)]
        )

    here, there, _ = on_both(answers)
    for one, two in zip(here, there, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_a_head_is_that_of_the_cpu_and_no_step_waits(cutouts, method):
    model, split = build_model(MODEL).eval(), np.arange(96) // 3 % 3
    short = {"epochs": 1, "min_steps": 4, "evaluations": 1, "length_factors": (1,), "rate_factors": (1,)}
    how = {"split": split, "config": ProbeConfig(batch_size=16, precision="fp32", pool="central", **short)}
    here, there, waits = on_both(lambda device: train_head(model.to(device), cutouts, "kind", method=method, **how))
    assert here.prediction.tolist() == there.prediction.tolist()
    assert waits.pop("copy to cuda:0 in _fit") <= 10  # the head's own tensors, once
    del waits["copy to cpu in _fit"]  # torch's `clip_grad_norm_`, which asks the tensors where they are in C++
    assert not functions(waits) & {"_fit", "Head.forward", "send"}, waits
