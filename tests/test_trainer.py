"""That what a user sets, and what the data carry, reaches the training."""

import logging
from dataclasses import fields

import numpy as np
import pytest
import torch

from skylib import CutoutLoader, Interrupted, PretrainConfig, pretrain, trainer, write_cutouts
from skylib.checkpoint import load_checkpoint, save_checkpoint
from skylib.distributed import World
from skylib.loading import Batch
from skylib.mim import build_model
from skylib.optimise import Optimiser, learning_rate_at
from skylib.step import Step
from tests.test_pretrain import MODEL, config, same, weights


@pytest.fixture(scope="module")
def base(cutouts, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("base")
    return pretrain(MODEL, config(steps=5), train=cutouts, run_dir=run_dir)


# Another value of each setting that changes the weights, and of each that does not.
CHANGES = {"learning_rate": 2e-3, "weight_decay": 10.0, "warmup_steps": 0, "clip_grad": 1e-3, "seed": 1, "precision": "bf16",
           "final_learning_rate": 1e-3, "betas": (0.5, 0.5), "batch_size": 16, "schedule": "wsd", "steps": 4}  # fmt: skip
CHANGES_NOT = {"log_every": 1, "validate_every": 1, "checkpoint_every": 1, "checkpoint_minutes": 0.0, "tensorboard": True,
               "ema": 0.5, "tf32": False, "cooldown": 0.1}  # fmt: skip
ELSEWHERE = {"accumulate", "max_bad_steps", "compile"}  # test_pretrain.py


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
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    quiet = {"steps": 5, "log_every": 2, "validate_every": 9, "checkpoint_every": 9}
    result = pretrain(MODEL, config(**(quiet | {name: CHANGES_NOT[name]})), train=cutouts, validation=cutouts, run_dir=tmp_path)  # fmt: skip
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


class Weighted(CutoutLoader):
    """Batches that carry an inverse variance, as those of tiles may."""

    left = 1.0  # of the left half of the image

    def _batch(self, chosen, number):
        batch = super()._batch(chosen, number)
        weight = torch.full_like(batch.flux, 4.0)
        weight[..., :16] *= self.left
        return batch._replace(weight=weight)


def test_the_weight_of_a_pixel_reaches_the_loss(base, cutouts, tmp_path):
    def losses(name, left, **values):
        Weighted.left = left
        loader = Weighted(cutouts, batch_size=32, augment=True)
        run = pretrain(MODEL, config(steps=5, **values), train=loader, validation=loader, run_dir=tmp_path / name)
        return run.metrics["loss"].to_numpy(), run.metrics["validation_loss"].dropna().to_numpy()

    half = losses("half", 0.0)
    assert np.abs(half[0] / base.metrics["loss"] - 1).max() > 1e-3
    assert np.abs(half[1] / losses("even", 1.0)[1] - 1).max() > 1e-3
    np.testing.assert_allclose(losses("parts", 0.0, accumulate=4)[0], half[0], rtol=1e-4)


def test_weights_are_relative_to_the_sky_of_their_band_and_zero_leaves_a_pixel_out():
    model = build_model(MODEL)
    model.set_sky_noise(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert model.relative_weight(None) is None
    sky = 1 / model.sky_sigma.square()[:, None, None].expand(2, 5, 32, 32)
    torch.testing.assert_close(model.relative_weight(sky), torch.ones(2, 5, 32, 32))
    # A step on images whose right half has no weight is the step on images that have no right half.
    flux = torch.randn(2, 5, 32, 32)
    weight = torch.where(torch.arange(32) < 16, sky, 0.0)
    place, mask = torch.zeros(2), model.draw_mask(2)
    step = Step(model, config(), World(0, 1, torch.device("cpu")))
    sums = step(Batch(flux, place, place, {}, weight), mask)
    whole = model.compare(flux, mask, weight=(weight > 0).float())
    torch.testing.assert_close(sums[0], (whole.loss * whole.n_pixels).detach())
    torch.testing.assert_close(sums[1], whole.n_pixels)


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
    assert "goes on with other settings: steps: 5 -> 6, learning_rate: 0.001 -> 0.002" in caplog.text
