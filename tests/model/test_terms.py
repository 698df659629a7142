from copy import deepcopy

import pytest
import torch

from skylib import ModelConfig, build_model
from skylib.device import keyed_generator
from skylib.model.patches import cut, patchify, random_whole_bands, standardise
from skylib.model.terms import FluxHead, sigreg

SMALL = {
    "size": "nano",
    "image_size": 32,
    "patch_size": 8,
    "decoder_width": 64,
    "decoder_depth": 2,
    "hide_bands": 0.0,
    "flux_weight": 0.0,
}
TERMS = {"hide_bands": 0.7, "flux_weight": 0.3, "latent_weight": 1.0, "consistency_weight": 0.1, "norm_pix": "noise"}


@pytest.fixture
def flux():
    return torch.randn(8, 5, 32, 32, generator=keyed_generator(1)).abs()


def model_for(**values):
    return build_model(ModelConfig(**(SMALL | values)))


def test_a_setting_of_the_loss_leaves_the_first_weights_alone():
    plain, all_terms = model_for(), model_for(**TERMS)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, all_terms.state_dict()[name]), name


@pytest.mark.parametrize("name", ["hide_bands", "flux_weight", "latent_weight", "consistency_weight"])
def test_terms_belong_to_mae(name):
    with pytest.raises(ValueError, match=f"{name}=0.5: only with objective='mae', not 'simmim'"):
        ModelConfig(objective="simmim", **{name: 0.5})
    with pytest.raises(ValueError, match=f"{name}=-1"):
        ModelConfig(**{name: -1})


def test_fluxes_of_an_even_image_are_those_of_its_apertures():
    head = FluxHead(ModelConfig(bands=("g", "r"), **SMALL))
    flux = torch.full((2, 2, 32, 32), 6.0)
    flux[1, 0] = torch.nan  # a band without data
    flux[1, 1, 16:] = torch.nan  # half of one: the noise is that of the pixels left
    found, known = head.measure(flux, torch.tensor([2.0, 3.0]))
    n_pixels = torch.tensor([sum((x - 15.5) ** 2 + (y - 15.5) ** 2 <= r**2 for x in range(32) for y in range(32)) for r in (2, 4, 8)])  # fmt: skip
    assert n_pixels.tolist() == [12, 52, 208]
    expected = (torch.asinh(torch.tensor([[3.0], [2.0]]) * n_pixels.sqrt()) - 3) / 2
    torch.testing.assert_close(found[0], expected)
    assert known.tolist() == [[[True] * 3, [True] * 3], [[False] * 3, [False] * 3]]
    flux[1, 1, :18] = 6.0
    found, known = head.measure(flux, torch.tensor([2.0, 3.0]))
    assert known[1, 1].all()
    torch.testing.assert_close(found[1, 1, 2], (torch.asinh(2 * head.inside[2, :18].sum().sqrt()) - 3) / 2)


def test_the_flux_head_learns_colours_and_is_blind_where_there_is_no_data(flux):
    model = model_for(flux_weight=1.0)
    flux[:, 1] = torch.nan
    out = model(flux, generator=keyed_generator(0))
    torch.testing.assert_close(out.loss, out.parts["pixels"] + out.parts["flux"])
    out.parts["flux"].backward()
    gradient = model.flux_head.layers[1].bias.grad.view(5, 3)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2, 3, 4]] != 0).all()


def test_whole_bands_are_hidden_evenly_and_never_all():
    hidden = random_whole_bands(9000, 4, 0.5, generator=keyed_generator(0))
    number = hidden.sum(dim=1)
    share = torch.bincount(number, minlength=5) / len(hidden)
    torch.testing.assert_close(share, torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(hidden.float().mean(dim=0), torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_hidden_bands_do_not_reach_the_prediction_and_count_in_the_loss(flux):
    model = model_for(hide_bands=1.0, norm_pix=None)
    mask = model.draw_mask(8, generator=keyed_generator(0))
    dropped, bands = mask.all(dim=1), mask.all(dim=2)
    assert (dropped.sum(dim=1) == 12).all()
    assert (mask == (dropped[:, None] | bands[..., None])).all()
    out = model.compare(flux, mask)
    changed = torch.where(bands[:, :, None, None], 3 * flux + 1, flux)
    torch.testing.assert_close(model.compare(changed, mask).prediction, out.prediction)
    error = (out.prediction - patchify(torch.asinh(flux), 8)).square()
    torch.testing.assert_close(out.loss, error[mask.transpose(1, 2)].mean())
    missing = torch.where(bands[:, :, None, None], torch.nan, flux)  # to the network the same as a band without data
    torch.testing.assert_close(model.compare(missing, mask).prediction, out.prediction)
    torch.testing.assert_close(model(flux, mask=mask).loss, out.loss)
    assert model.reconstruct(flux, mask=mask)[0].isfinite().all()


def test_a_target_that_knows_the_noise_keeps_empty_sky_small():
    draw = torch.randn(1, 2, 16, 16, generator=keyed_generator(0))
    draw[:, 1] *= 100
    patches = cut(draw, 8)
    target, mean, scale = standardise(patches, "noise", noise=1.0)
    variance = patches.pixels.var(dim=3, keepdim=True)
    torch.testing.assert_close(scale, (variance + 1).sqrt())
    torch.testing.assert_close(target * scale + mean, patches.pixels)
    assert 0.6 < target[:, :, 0].std() < 0.8
    assert 0.95 < target[:, :, 1].std() < 1.05


def test_the_teacher_follows_the_encoder_and_the_term_comes_slowly(flux):
    model = model_for(latent_weight=1.0, latent_layers=3)
    assert model.latent.layers == [1, 3, 5]
    before = deepcopy(model.latent.teacher.state_dict())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 1
    model.after_step(500, 1000)  # the memory is 15 steps
    for name, value in model.latent.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 1 / 15)
    ramps = []
    for step in (0, 200, 300, 400, 1000):
        model.after_step(step, 1000)
        ramps.append(round(model.latent.ramp.item(), 6))
    assert ramps == [0.0, 0.0, 0.5, 1.0, 1.0]
    out = model(flux, generator=keyed_generator(0))
    torch.testing.assert_close(out.loss, out.parts["pixels"] + out.parts["latent"])
    out.loss.backward()
    assert all(p.grad is None for p in model.latent.teacher.parameters())
    assert model.latent.head.weight.grad.abs().max() > 0


def test_latents_that_are_predicted_are_those_of_the_hidden_patches(flux):
    model = model_for(latent_weight=1.0, latent_layers=6)
    model.latent.ramp.fill_(1.0)
    mask = model.draw_mask(8, generator=keyed_generator(0))
    out = model.compare(flux, mask)
    patches = model._patches(flux)
    encoded, order = model._encode(patches, mask, 4, None)
    decoded = model._decode(encoded, order, 4)[1]
    predicted = model.latent.head(decoded)
    errors = []
    for layer in range(6):
        tokens = model.tokens(flux, layer=layer)
        tokens = (tokens - tokens.mean(dim=2, keepdim=True)) / (tokens.var(dim=2, keepdim=True, correction=0) + 1e-5).sqrt()  # fmt: skip
        hidden = torch.stack([tokens[i, order[i, 4:]] for i in range(8)])
        errors.append(torch.nn.functional.smooth_l1_loss(predicted[:, :, 128 * layer : 128 * (layer + 1)], hidden))
    torch.testing.assert_close(out.parts["latent"], torch.stack(errors).mean())


def test_sigreg_is_small_for_a_gaussian_only():
    x = torch.randn(2000, 8, generator=keyed_generator(0))
    slices = torch.eye(8)
    good = sigreg(x, slices)
    for other in (0.5 * x, 2 * x, x + 0.3, x.sign(), 0 * x):
        assert sigreg(other, slices) > 20 * good
    t = torch.linspace(-3, 3, 20001, dtype=torch.float64)  # all in one point: characteristic function 1
    exact = 2000 * torch.trapezoid((1 - (-(t**2) / 2).exp()).square() * (-(t**2) / 2).exp(), t)
    torch.testing.assert_close(sigreg(0 * x, slices).double(), exact, rtol=1e-2, atol=0)


def test_views_that_agree_cost_nothing_but_their_spread(flux):
    model = model_for(consistency_weight=0.5)
    even = torch.ones_like(flux)
    out = model(even, generator=keyed_generator(0))
    torch.testing.assert_close(out.loss, out.parts["pixels"] + 0.5 * out.parts["consistency"])
    x = torch.randn(8, 128, generator=keyed_generator(2))
    distance, spread = model.consistency(x, x)
    assert (distance == 0).all()
    torch.testing.assert_close(spread, sigreg(model.consistency.projector(x), model.consistency.slices))
    distance, _ = model.consistency(x, x + 1)
    assert (distance > 0).all()


def test_all_terms_together_reach_all_parameters(flux):
    model = model_for(**TERMS)
    model.latent.ramp.fill_(1.0)
    flux[0], flux[1, 2:] = torch.nan, torch.nan
    out = model(flux, generator=keyed_generator(0))
    assert set(out.parts) == {"pixels", "flux", "latent", "consistency"}
    out.loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("latent.teacher"), name
        assert p.grad is None or p.grad.isfinite().all(), name


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_a_batch_sum_to_the_whole(flux, weighted):
    model = model_for(**TERMS)
    model.latent.ramp.fill_(1.0)
    flux[0], flux[1, 2:] = torch.nan, torch.nan
    weight = torch.rand(flux.shape, generator=keyed_generator(5)) if weighted else None
    mask = model.draw_mask(8, generator=keyed_generator(0))
    whole = model.compare(flux, mask, weight=weight)
    parts = [model.compare(flux[s], mask[s], weight=None if weight is None else weight[s]) for s in (slice(0, 5), slice(5, 8))]  # fmt: skip
    torch.testing.assert_close(sum(p.n_pixels for p in parts), whole.n_pixels)
    for name in ("pixels", "flux", "latent"):
        total = sum(p.parts[name] * p.n_pixels for p in parts) / whole.n_pixels
        torch.testing.assert_close(total, whole.parts[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_step_compiles_as_one_graph(flux):
    model = model_for(**TERMS)
    mask = model.draw_mask(8, generator=keyed_generator(0))

    def loss(flux, mask):
        with torch.autocast("cpu", torch.bfloat16):
            return model.compare(flux, mask).loss

    plain = loss(flux, mask)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)(flux, mask)
    compiled.backward()
    torch.testing.assert_close(compiled, plain, rtol=0.02, atol=0.02)
