"""That the terms of the loss beside the pixels keep what a training promises."""

from dataclasses import replace

import numpy as np
import pytest

from skylib import Interrupted, load_model, pretrain
from skylib.model.checkpoint import load_checkpoint
from tests.training.test_pretrain import MODEL, config, same, weights

SUMMED = replace(MODEL, hide_bands=0.5, flux_weight=0.3)
RUN = config(steps=6, log_every=1, checkpoint_every=4, validate_every=6)


@pytest.fixture(scope="module")
def whole_run(cutouts, tmp_path_factory):
    return pretrain(SUMMED, RUN, train=cutouts, validation=cutouts, run_dir=tmp_path_factory.mktemp("whole"))


def test_resumed_with_averaged_weights_equals_uninterrupted(cutouts, tmp_path):
    model, run = SUMMED, replace(RUN, ema=0.9)
    pretrain(model, run, train=cutouts, validation=cutouts, run_dir=tmp_path / "whole")
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "STOP").touch()
    with pytest.raises(Interrupted):
        pretrain(model, run, train=cutouts, validation=cutouts, run_dir=tmp_path / "halves")
    pretrain(model, run, train=cutouts, validation=cutouts, run_dir=tmp_path / "halves")
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "halves"))
    assert same(one["model"], two["model"])
    average = one["optimiser"]["average"]
    assert same(average, two["optimiser"]["average"])
    assert not same(average, one["model"])
    assert same(load_model(tmp_path / "halves").state_dict(), average)


def test_parts_give_the_same_as_the_whole(whole_run, cutouts, tmp_path):
    parts = pretrain(SUMMED, replace(RUN, accumulate=4), train=cutouts, run_dir=tmp_path / "parts")
    np.testing.assert_allclose(parts.metrics["loss"], whole_run.metrics["loss"], rtol=1e-4)


def test_a_training_starts_from_another_model(whole_run, cutouts, tmp_path):
    still = replace(RUN, steps=1, learning_rate=0.0, warmup_steps=0, start=str(whole_run.run_dir))
    first = pretrain(SUMMED, still, train=cutouts, run_dir=tmp_path / "same").model.state_dict()
    assert same(first, weights(whole_run.run_dir))
    pretrain(SUMMED, replace(RUN, steps=3, start=str(whole_run.run_dir)), train=cutouts, run_dir=tmp_path / "on")
    assert not same(first, weights(tmp_path / "on"))
    with pytest.raises(ValueError, match="start: that model has size='nano', this one 'tiny'"):
        pretrain(replace(SUMMED, size="tiny"), still, train=cutouts, run_dir=tmp_path / "tiny")
