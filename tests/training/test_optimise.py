import pytest
import torch

from skylib import ModelConfig, PretrainConfig, build_model
from skylib.device import keyed_generator
from skylib.training.optimise import Optimiser

SMALL = ModelConfig(size="nano", image_size=16, patch_size=8, decoder_width=32, decoder_depth=1, mask_ratio=0.5)


def optimiser(**values):
    model = build_model(SMALL)
    config = PretrainConfig(**({"steps": 10, "batch_size": 4, "warmup_steps": 0, "learning_rate": 0.01} | values))
    return model, Optimiser(model, config)


def give_gradients(model, *, scale=1.0, seed=0):
    generator = keyed_generator(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def state(model):
    return [p.detach().clone() for p in model.parameters()]


def test_a_step_is_adamw_with_clipped_mean_gradients():
    model, ours = optimiser(clip_grad=0.5)
    twin = build_model(SMALL)
    give_gradients(model, scale=7.0)
    give_gradients(twin)
    norm = ours.step(0, torch.tensor(7.0))  # a sum over 7 pixels
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    torch.testing.assert_close(norm, expected)
    matrices = [m.weight for m in twin.modules() if isinstance(m, torch.nn.Linear)]
    others = [p for p in twin.parameters() if not any(p is m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95)).step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(poison):
    model, ours = optimiser(ema=0.9)
    give_gradients(model)
    ours.step(0, torch.tensor(1.0))
    weights, averages = state(model), state(ours.average)
    moments = [s["exp_avg"].clone() for s in ours.adamw.state.values()]
    for number in range(2):
        give_gradients(model)
        model.encoder.cls.grad[:] = poison
        ours.step(1 + number, torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(weights, state(model), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, ours.adamw.state.values(), strict=True))
    moved = max((a - b).abs().max() for a, b in zip(averages, state(ours.average), strict=True))
    assert moved < 0.05  # the average goes on towards the same weights
    assert ours.bad_steps() == (2, 2)
    give_gradients(model)
    ours.step(3, torch.tensor(1.0))
    assert ours.bad_steps() == (2, 2)  # the row lasted until the last look
    assert ours.bad_steps() == (0, 2)
    assert not all(torch.equal(a, b) for a, b in zip(weights, state(model), strict=True))


def test_the_average_follows_the_weights():
    model, ours = optimiser(ema=0.5)
    expected = state(model)
    for step in range(6):
        give_gradients(model, seed=step)
        ours.step(step, torch.tensor(1.0))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, state(model), strict=True)]
    for mine, theirs in zip(state(ours.average), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not any(p.requires_grad for p in ours.average.parameters())
