import pytest
import torch

from skylib import ModelConfig, build_model
from skylib.config import VIT_SIZES
from skylib.device import keyed_generator
from skylib.model.patches import patchify, random_whole_bands, uniform_draws
from skylib.model.terms import FluxHead

SMALL = {
    "size": "nano",
    "image_size": 32,
    "patch_size": 8,
    "decoder_width": 64,
    "decoder_depth": 2,
    "hide_bands": 0.0,
    "flux_weight": 0.0,
}
TERMS = {"hide_bands": 0.7, "flux_weight": 0.3}


@pytest.fixture
def flux():
    return torch.randn(8, 5, 32, 32, generator=keyed_generator(1)).abs()


def model_for(**values):
    return build_model(ModelConfig(**(SMALL | values)))


def test_a_setting_of_the_loss_leaves_the_first_weights_alone():
    plain, all_terms = model_for(), model_for(**TERMS)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, all_terms.state_dict()[name]), name


@pytest.mark.parametrize("name", ["hide_bands", "flux_weight"])
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
    n_pixels = torch.tensor(
        [sum((x - 15.5) ** 2 + (y - 15.5) ** 2 <= r**2 for x in range(32) for y in range(32)) for r in (2, 4, 8)]
    )
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
    hidden = random_whole_bands(uniform_draws(keyed_generator(0)), 9000, 4, 0.5)
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


def test_all_terms_together_reach_all_parameters(flux):
    model = model_for(**TERMS)
    flux[0], flux[1, 2:] = torch.nan, torch.nan
    out = model(flux, generator=keyed_generator(0))
    assert set(out.parts) == {"pixels", "flux"}
    out.loss.backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_a_batch_sum_to_the_whole(flux, weighted):
    model = model_for(**TERMS)
    flux[0], flux[1, 2:] = torch.nan, torch.nan
    weight = torch.rand(flux.shape, generator=keyed_generator(5)) if weighted else None
    mask = model.draw_mask(8, generator=keyed_generator(0))
    whole = model.compare(flux, mask, weight=weight)
    parts = [
        model.compare(flux[s], mask[s], weight=None if weight is None else weight[s])
        for s in (slice(0, 5), slice(5, 8))
    ]
    torch.testing.assert_close(sum(p.n_pixels for p in parts), whole.n_pixels)
    for name in ("pixels", "flux"):
        total = sum(p.parts[name] * p.n_pixels for p in parts) / whole.n_pixels
        torch.testing.assert_close(total, whole.parts[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_step_compiles_as_one_graph(flux, monkeypatch):
    monkeypatch.setitem(VIT_SIZES, "nano", (128, 2, 4))  # of fewer blocks, which the compiler takes less time for
    model = model_for(**TERMS)
    mask = model.draw_mask(8, generator=keyed_generator(0))

    def loss(flux, mask):
        with torch.autocast("cpu", torch.bfloat16):
            return model.compare(flux, mask).loss

    plain = loss(flux, mask)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)(flux, mask)
    compiled.backward()
    torch.testing.assert_close(compiled, plain, rtol=0.02, atol=0.02)
