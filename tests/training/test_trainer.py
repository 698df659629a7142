"""That what a user sets, and what the data carry, reaches the training."""

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skylib import (
    CutoutLoader,
    Interrupted,
    PretrainConfig,
    Probe,
    TileLoader,
    build_model,
    embed,
    load_model,
    pretrain,
    write_cutouts,
)
from skylib.data.loading import Batch
from skylib.device import keyed_generator
from skylib.model.checkpoint import load_checkpoint, save_checkpoint
from skylib.training.distributed import World
from skylib.training.optimise import Optimiser, Step, learning_rate_at
from tests.training.test_pretrain import MODEL, config, same, weights


@pytest.fixture(scope="module")
def base(cutouts, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("base")
    return pretrain(MODEL, config(steps=5), train=cutouts, run_dir=run_dir)


# Another value of each setting that changes the weights, and of each that does not.
CHANGES = {
    "learning_rate": 2e-3,
    "weight_decay": 10.0,
    "warmup_steps": 0,
    "clip_grad": 1e-3,
    "seed": 1,
    "precision": "bf16",
    "final_learning_rate": 1e-3,
    "betas": (0.5, 0.5),
    "batch_size": 16,
    "schedule": "wsd",
    "steps": 4,
}
CHANGES_NOT = {
    "log_every": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "checkpoint_minutes": 0.0,
    "tensorboard": True,
    "ema": 0.5,
    "tf32": False,
    "cooldown": 0.1,
}
ELSEWHERE = {"accumulate", "max_bad_steps", "compile", "start"}  # test_pretrain.py, test_training_terms.py


def test_no_setting_is_forgotten_here():
    assert {field.name for field in fields(PretrainConfig)} == set(CHANGES) | set(CHANGES_NOT) | ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_what_shapes_the_weights_does(base, cutouts, tmp_path, name):
    pretrain(MODEL, config(**({"steps": 5} | {name: CHANGES[name]})), train=cutouts, run_dir=tmp_path)
    assert not same(weights(base.run_dir), weights(tmp_path))


@pytest.mark.parametrize("name", CHANGES_NOT)
def test_what_only_watches_leaves_the_weights_alone(base, cutouts, tmp_path, name, monkeypatch):
    saved, products = [], []

    def save(path, content, **values):
        saved.append(content["step"])
        save_checkpoint(path, content, **values)

    def seen(self, *arguments):
        products.append(torch.get_float32_matmul_precision())
        return call(self, *arguments)

    call = Step.__call__
    monkeypatch.setattr(Step, "__call__", seen)
    monkeypatch.setattr("skylib.training.pretrain.save_checkpoint", save)
    quiet = {"steps": 5, "log_every": 2, "validate_every": 9, "checkpoint_every": 9}
    result = pretrain(
        MODEL, config(**(quiet | {name: CHANGES_NOT[name]})), train=cutouts, validation=cutouts, run_dir=tmp_path
    )
    assert same(weights(base.run_dir), weights(tmp_path))
    assert result.metrics["step"].tolist() == (
        [1, 2, 3, 4, 5] if name in ("log_every", "validate_every") else [2, 4, 5]
    )
    assert result.metrics["validation_loss"].notna().sum() == (5 if name == "validate_every" else 1)
    each = {"checkpoint_every": {1, 2, 3, 4, 5}, "validate_every": {1, 2, 3, 4, 5}, "checkpoint_minutes": {2, 4, 5}}
    assert set(saved) == each.get(name, {5})
    assert set(products) == {"highest" if name == "tf32" else "high"}
    assert ("average" in load_checkpoint(tmp_path / "checkpoints" / "last.pt")["optimiser"]) == (name == "ema")
    assert (tmp_path / "tensorboard").is_dir() == (name == "tensorboard")


def test_the_cooldown_is_where_the_rate_falls():
    rates = [learning_rate_at(s, config(steps=100, schedule="wsd", cooldown=c)) for c in (0.1, 0.5) for s in (80, 95)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.4e-3, 0.1e-3])


def test_scalars_are_there_for_tensorboard_and_a_resumed_run_drops_none(base, cutouts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "STOP").touch()  # ends after the first step
    with pytest.raises(Interrupted):
        pretrain(MODEL, config(steps=5, tensorboard=True), train=cutouts, validation=cutouts, run_dir=tmp_path)
    result = pretrain(MODEL, config(steps=5, tensorboard=True), train=cutouts, validation=cutouts, run_dir=tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "validation_loss", "learning_rate", "gradient_norm", "images_per_s"} <= set(board.Tags()["scalars"])
    loss = result.metrics[["step", "loss"]].dropna()
    assert [scalar.step for scalar in board.Scalars("loss")] == loss["step"].tolist() == [2, 4, 5]
    np.testing.assert_allclose([scalar.value for scalar in board.Scalars("loss")], loss["loss"], rtol=1e-6)
    np.testing.assert_array_equal(loss["loss"], base.metrics["loss"])


def test_the_weight_of_a_pixel_reaches_the_loss(base, cutouts, tmp_path):
    flux = cutouts.flux()

    def losses(name, left, **values):
        weight = np.full_like(flux, 100.0)
        weight[..., :16] = left
        place = {"ra": cutouts.ra, "dec": cutouts.dec, "bands": cutouts.bands}
        file = write_cutouts(tmp_path / f"{name}.h5", flux, weight=weight, **place)
        data = CutoutLoader(file, batch_size=32, weight=True, augment=True)
        check = CutoutLoader(file, batch_size=32, weight=True, shuffle=False)
        run = pretrain(MODEL, config(steps=5, **values), train=data, validation=check, run_dir=tmp_path / name)
        return run.metrics["loss"].to_numpy(), run.metrics["validation_loss"].dropna().to_numpy()

    even, right = losses("even", 100.0), losses("right", 0.0)
    np.testing.assert_allclose(even[0], base.metrics["loss"], rtol=1e-5)
    assert np.abs(right[0] / even[0] - 1).max() > 1e-3
    assert np.abs(right[1] / even[1] - 1).max() > 1e-3
    np.testing.assert_allclose(losses("parts", 0.0, accumulate=4)[0], right[0], rtol=1e-4)


def test_the_variance_of_tiles_reaches_the_loss(tiles, tmp_path):
    def losses(variance):
        loader = TileLoader(tiles, batch_size=32, size=32, variance=variance)
        return pretrain(MODEL, config(steps=4), train=loader, run_dir=tmp_path / str(variance)).metrics["loss"]

    weighted, plain = losses(True), losses(False)
    assert weighted.notna().all()
    assert (weighted / plain - 1).abs().max() > 1e-4


def test_a_step_counts_pixels_by_their_weight():
    model = build_model(MODEL)
    flux, place, mask = torch.randn(4, 5, 32, 32), torch.zeros(4), model.draw_mask(4)
    weight = torch.where(torch.arange(32) < 16, 3.0, 0.0).expand(4, 5, 32, 32)
    for parts in (1, 2):
        step = Step(model, config(accumulate=parts), World(0, 1, torch.device("cpu")))
        sums = step(Batch(flux, place, place, {}, weight), mask)
        whole = model.compare(flux, mask, weight=weight)
        torch.testing.assert_close(sums, torch.stack([whole.loss * whole.n_pixels, whole.n_pixels]).detach())
        assert whole.n_pixels < 3 * mask.sum() * 64


@pytest.mark.parametrize("at_once", [1, 3, 5])
def test_a_batch_too_large_for_a_cpu_gives_the_same_gradient_in_parts(at_once, monkeypatch):
    flux, place = torch.randn(11, 5, 32, 32, generator=keyed_generator(0)), torch.zeros(11)
    gradients, sums = [], []
    for most in (None, at_once):
        if most is not None:
            monkeypatch.setattr("skylib.device.CPU_PATCHES", most * MODEL.n_patches)
        model = build_model(MODEL)
        sizes = []
        monkeypatch.setattr(model, "compare", partial(_noted, model.compare, sizes))
        step = Step(model, config(), World(0, 1, torch.device("cpu")))
        sums.append(step(Batch(flux, place, place, {}), model.draw_mask(11, generator=keyed_generator(1))))
        gradients.append([p.grad for p in model.parameters()])
        assert sum(sizes) == 11
        assert max(sizes) <= (most or 11)
    torch.testing.assert_close(sums[0], sums[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


def _noted(compare, sizes, flux, *arguments, **values):
    sizes.append(len(flux))
    return compare(flux, *arguments, **values)


def test_the_order_of_the_planes_in_a_file_does_not_matter(base, cutouts, tmp_path):
    order = [0, 2, 1, 4, 3]
    flux = cutouts.flux(np.arange(len(cutouts)))
    bands = [cutouts.bands[c] for c in order]
    permuted = write_cutouts(tmp_path / "giryz.h5", flux[:, order], ra=cutouts.ra, dec=cutouts.dec, bands=bands)
    run = pretrain(MODEL, config(steps=5), train=permuted, run_dir=tmp_path / "run")
    assert same(weights(base.run_dir), weights(run.run_dir))


def test_averages_are_resumed_too(cutouts, tmp_path):
    whole = pretrain(MODEL, config(steps=6, ema=0.9), train=cutouts, run_dir=tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "STOP").touch()
    with pytest.raises(Interrupted):
        pretrain(MODEL, config(steps=6, ema=0.9), train=cutouts, run_dir=tmp_path / "parts")
    resumed = pretrain(MODEL, config(steps=6, ema=0.9), train=cutouts, run_dir=tmp_path / "parts")
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_without_a_limit_the_gradient_is_not_clipped():
    models = [build_model(MODEL) for _ in range(2)]
    for model, limit in zip(models, (0.0, 1e9), strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)
        Optimiser(model, config(clip_grad=limit)).step(3, torch.tensor(1.0))
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not same(models[0].state_dict(), build_model(MODEL).state_dict())


def test_changed_settings_are_told(base, cutouts, tmp_path, caplog):
    pretrain(MODEL, config(steps=5), train=cutouts, run_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        pretrain(MODEL, config(steps=6, learning_rate=2e-3), train=cutouts, run_dir=tmp_path)
    assert "is resumed with other settings: steps: 5 -> 6, learning_rate: 0.001 -> 0.002" in caplog.text


def test_changed_settings_are_followed(base, cutouts, tmp_path):
    pretrain(MODEL, config(steps=5), train=cutouts, run_dir=tmp_path)
    changed = config(steps=6, weight_decay=0.3, betas=(0.5, 0.6))
    pretrain(MODEL, changed, train=cutouts, run_dir=tmp_path)
    groups = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["optimiser"]["adamw"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.5, 0.6) for group in groups)
    assert json.loads((tmp_path / "config.json").read_text())["pretrain"]["steps"] == 6


def test_a_model_with_positions_is_validated_and_drawn(cutouts, tmp_path, figures):
    model = replace(MODEL, ra_dec=True, objective="simmim", hide_bands=None, flux_weight=None)
    result = pretrain(model, config(steps=3, validate_every=2), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert result.metrics["validation_loss"].notna().sum() == 2
    assert (tmp_path / "figures" / "reconstruction.png").is_file()


def test_a_probe_that_fails_costs_no_step(cutouts, tmp_path):
    probe = Probe("class", cutouts, "classification", np.zeros(len(cutouts), int))  # nothing to choose on
    with pytest.raises(ValueError, match="validation"):
        pretrain(MODEL, config(steps=9, validate_every=4), train=cutouts, probes=[probe], run_dir=tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


def test_loaders_that_do_not_fit_the_settings_are_refused(cutouts, tmp_path):
    loader = CutoutLoader(cutouts, batch_size=16)
    with pytest.raises(ValueError, match="batch_size=32: the loader of the training data gives batches of 16"):
        pretrain(MODEL, config(steps=5), train=loader, run_dir=tmp_path)
    other = CutoutLoader(cutouts, batch_size=16, shuffle=False, bands=("y", "z", "i", "r", "g"))
    with pytest.raises(ValueError, match="the validation data holds bands y z i r g, the model g r i z y"):
        pretrain(MODEL, config(steps=5), train=cutouts, validation=other, run_dir=tmp_path)


def test_a_model_knows_where_its_weights_come_from(cutouts, tmp_path):
    pretrain(MODEL, config(steps=5), train=cutouts, run_dir=tmp_path)
    meta = embed(load_model(tmp_path), cutouts, rows=np.array([3, 1])).meta
    assert meta["checkpoint"] == str(tmp_path / "checkpoints" / "last.pt")
    assert (meta["step"], meta["pretrain"]["learning_rate"]) == (5, 1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = "import sys; from skylib.training.distributed import launch; launch('signal:pause', {}, run_dir=sys.argv[1], processes=2)"
    mark = {"STARTED_FROM": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], env=os.environ | mark)

    def workers():
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"STARTED_FROM={tmp_path}\0" in path.read_text() and path.parent.name != str(parent.pid):
                    found.append(path)
        return found

    def wait_for(condition):
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        pytest.fail("not within a minute")

    try:
        wait_for(lambda: len(workers()) >= 4)  # two, the process that watches them, and its resource tracker
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not workers())
