from dataclasses import fields

import pytest
import torch

from skylib import ModelConfig, build_model, random_orientation
from skylib.device import attend, keyed_generator
from skylib.model.patches import (
    mask_to_pixels,
    patchify,
    random_band_mask,
    random_token_mask,
    standardise,
    uniform_draws,
    unpatchify,
)
from skylib.model.pooling import central_patches

SMALL = {
    "size": "nano",
    "image_size": 32,
    "patch_size": 8,
    "decoder_width": 64,
    "decoder_depth": 1,
    "norm_pix": "band",
    "hide_bands": 0.0,
    "flux_weight": 0.0,
}


@pytest.fixture
def flux():
    return torch.randn(6, 5, 32, 32, generator=keyed_generator(1)).abs()


def model_for(**values):
    return build_model(ModelConfig(**(SMALL | values)))


def test_patchify_and_back_and_the_order_of_patches():
    images = torch.randn(2, 3, 12, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 9, 3, 16)
    torch.testing.assert_close(patches[1, 5], images[1, :, 4:8, 8:12].flatten(1))
    torch.testing.assert_close(unpatchify(patches, 4), images)


def test_token_masks_hide_the_exact_number_and_any_patch_equally():
    mask = random_token_mask(uniform_draws(keyed_generator(0)), 4000, 16, 4)
    assert (mask.sum(dim=1) == 12).all()  # True is hidden
    torch.testing.assert_close(mask.float().mean(dim=0), torch.full((16,), 0.75), atol=0.03, rtol=0)


def test_band_masks_differ_between_bands_and_vary_in_ratio():
    mask = random_band_mask(uniform_draws(keyed_generator(0)), 2000, 5, 64, 0.9)
    ratio = mask.float().mean(dim=(1, 2))
    assert 0.43 < ratio.mean() < 0.47
    assert ratio.max() < 0.97
    assert (mask[:, 0] != mask[:, 1]).any(dim=1).float().mean() > 0.95


def test_mask_of_pixels_covers_its_patches():
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[0, 1, 2] = True  # second band, lower left
    pixels = mask_to_pixels(mask, 3)
    assert pixels.sum() == 9
    assert pixels[0, 1, 3:, :3].all()


def test_orientations_are_the_eight_and_drawn_for_each_sample():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(4000, -1, -1, -1)
    turned = random_orientation(image, generator=keyed_generator(0))
    kinds, counts = turned.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 400
    assert (turned[:, 0, 1, 1] == 4).all()


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_eight_images_can_be_learnt_by_heart(objective):
    draw = keyed_generator(1)
    place = 8 + 16 * torch.rand(8, 2, 1, 1, generator=draw)
    distance = (torch.arange(32)[:, None] - place[:, :1]) ** 2 + (torch.arange(32) - place[:, 1:]) ** 2
    flux = (1 + 5 * torch.rand(8, 5, 1, 1, generator=draw)) * torch.exp(-distance / 50)
    model = model_for(objective=objective, norm_pix=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 8, 16, 8)
    first = model(flux, mask=mask).loss.item()
    for _ in range(120):
        loss = model(flux, mask=mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15 * first


@pytest.mark.parametrize("objective", ["mae", "simmim"])
@pytest.mark.parametrize("norm_pix", [None, "band", "patch"])
@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_training_lowers_the_loss_on_a_few_images(flux, objective, norm_pix, loss):
    model = model_for(objective=objective, norm_pix=norm_pix, loss=loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 6, 16, 8)
    losses = []
    for _ in range(15):
        value = model(flux, mask=mask).loss
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_the_loss_sees_only_hidden_pixels_that_have_data(flux, objective):
    model = model_for(objective=objective, norm_pix=None)
    flux[:, 1, :10] = torch.nan
    flux[0] = torch.nan
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 6, 16, 8)
    out = model(flux, mask=mask)
    assert out.loss.isfinite()
    (gradient,) = torch.autograd.grad(out.loss, out.prediction)
    use = out.mask.transpose(1, 2)[..., None] & patchify(flux, 8).isfinite()
    assert (gradient[~use] == 0).all()
    assert (gradient[use] != 0).float().mean() > 0.99
    error = (out.prediction - patchify(torch.asinh(flux), 8))[use]
    torch.testing.assert_close(out.loss, error.square().mean())


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_weights_count_in_the_loss(flux, objective):
    model = model_for(objective=objective, norm_pix=None)
    weight = torch.rand(flux.shape, generator=keyed_generator(5))
    weight[:, 2] = 0
    weight[:, 3, :4] = torch.nan
    weight[:, 4, :4], weight[:, 4, 4:8] = torch.inf, -1.0
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 6, 16, 8)
    out = model(flux, mask=mask, weight=weight)
    (gradient,) = torch.autograd.grad(out.loss, out.prediction, retain_graph=True)
    known = torch.where(weight.isfinite() & (weight > 0), weight, 0.0)
    patches = patchify(known, 8) * out.mask.transpose(1, 2)[..., None]
    assert (gradient[patches == 0] == 0).all()
    error = (out.prediction - patchify(torch.asinh(flux), 8)).square()
    torch.testing.assert_close(out.loss, (patches * error).sum() / patches.sum())
    torch.testing.assert_close(out.n_pixels, patches.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_attend_agree(dtype):
    q, k, v = torch.randn(3, 2, 4, 65, 32, generator=keyed_generator(0)).to(dtype)
    plain = [t.clone().requires_grad_() for t in (q, k, v)]
    fused = [t.clone().requires_grad_() for t in (q, k, v)]
    close = {"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    one, two = attend(*plain), torch.nn.functional.scaled_dot_product_attention(*fused)
    torch.testing.assert_close(one, two, **close)
    torch.testing.assert_close(attend(q, k, v), two, **close)
    one.square().sum().backward()
    two.square().sum().backward()
    for mine, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **close)


def test_a_decoder_that_leaves_out_what_is_visible_decodes_the_rest_alike(flux):
    model = model_for(decoder_depth=3)
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 6, 16, 10)
    out = model(flux, mask=mask)
    out.loss.backward()
    lean = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    # All tokens, at their places, through all of the decoder, as in the paper.
    decoder, n_prefix = model.decoder, model.encoder.n_prefix
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    encoded = model.encoder(model._fill(model._patches(flux)), keep=order[:, :10])
    x = decoder.mask_token.expand(6, 16, -1).clone()
    for i in range(6):
        x[i, order[i, :10]] = decoder.embed(encoded[i, n_prefix:])
    x = torch.cat([decoder.embed(encoded[:, :n_prefix]), x + decoder.positions], dim=1)
    for block in decoder.blocks:
        x = block(x)
    prediction = decoder.head(decoder.norm(x[:, n_prefix:])).view_as(out.prediction)
    torch.testing.assert_close(out.prediction[mask], prediction[mask], rtol=1e-4, atol=1e-5)
    assert (out.prediction[~mask] == 0).all()

    target = standardise(model._patches(flux), model.config.norm_pix)[0]
    loss = (prediction - target)[mask].square().mean()
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            lean[name], p.grad, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_a_mask_that_hides_nothing_leaves_nothing_to_learn(flux, objective):
    out = model_for(objective=objective)(flux, mask=torch.zeros(6, 16, dtype=torch.bool))
    assert out.loss == 0
    assert out.n_pixels == 0


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_what_is_hidden_does_not_reach_the_prediction(flux, objective):
    model = model_for(objective=objective, norm_pix=None)
    mask = random_token_mask(uniform_draws(keyed_generator(3)), 6, 16, 8)
    changed = torch.where(mask_to_pixels(mask[:, None].expand(-1, 5, -1), 8), flux + 7, flux)
    torch.testing.assert_close(model(flux, mask=mask).prediction, model(changed, mask=mask).prediction)
    visible = torch.where(mask_to_pixels(mask[:, None].expand(-1, 5, -1), 8), flux, flux + 7)
    assert (model(flux, mask=mask).prediction - model(visible, mask=mask).prediction).abs().max() > 1e-3


@pytest.mark.parametrize("norm_pix", [None, "band", "patch"])
def test_reconstruction_keeps_what_is_visible_and_is_in_counts(flux, norm_pix):
    model = model_for(norm_pix=norm_pix)
    model.set_sky_noise(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    reconstruction, hidden = model.reconstruct(flux, generator=keyed_generator(0))
    assert reconstruction.shape == hidden.shape == flux.shape
    assert hidden.float().mean() == 0.75
    torch.testing.assert_close(reconstruction[~hidden], flux[~hidden])
    assert reconstruction.isfinite().all()


def test_a_perfect_prediction_reconstructs_the_image(flux, monkeypatch):
    for norm_pix, stretch in [(None, "asinh"), ("band", "asinh"), ("patch", "asinh"), ("patch", "linear")]:
        model = model_for(norm_pix=norm_pix, stretch=stretch)
        model.set_sky_noise(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
        target = standardise(model._patches(flux), norm_pix)[0]
        monkeypatch.setattr(model, "_decode", lambda *_, t=target: t)
        torch.testing.assert_close(model.reconstruct(flux)[0], flux, rtol=1e-3, atol=1e-4)


def test_missing_bands_and_empty_images_embed(flux):
    model = model_for()
    flux[:, 4] = torch.nan
    flux[1] = torch.nan
    assert model.embed(flux).isfinite().all()
    reconstruction, hidden = model.reconstruct(flux)
    assert reconstruction[0, 4][hidden[0, 4]].isnan().all()  # norm_pix: nothing is known of a band without data


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        ("mean", (6, 128)),
        ("cls", (6, 128)),
        ("max", (6, 128)),
        ("central", (6, 128)),
        ("central16", (6, 128)),
        ("tokens", (6, 16, 128)),
    ],
)
def test_pools(flux, pool, shape):
    assert model_for().embed(flux, pool=pool).shape == shape


def test_pools_agree_with_the_tokens(flux):
    model = model_for().eval()
    tokens = model.tokens(flux, layer=2)
    torch.testing.assert_close(model.embed(flux, pool="mean", layer=2), tokens.mean(dim=1))
    torch.testing.assert_close(
        model.embed(flux, pool="central", layer=-4), model.tokens(flux, layer=-4)[:, [5, 6, 9, 10]].mean(dim=1)
    )
    assert central_patches(9) == [4]
    assert central_patches(9, reach=2) == list(range(9))
    torch.testing.assert_close(model.embed(flux, pool="central16"), model.embed(flux, pool="mean"))  # 16 in all
    with pytest.raises(ValueError, match="layer=6: must be -6 to 5"):
        model.embed(flux, layer=6)
    with pytest.raises(ValueError, match="pool='median'"):
        model.embed(flux, pool="median")


def test_embeddings_do_not_depend_on_the_batch(flux):
    model = model_for().eval()
    torch.testing.assert_close(model.embed(flux)[2:3], model.embed(flux[2:3]), rtol=1e-4, atol=1e-5)


def test_wrong_shapes_and_masks_are_explained(flux):
    model = model_for()
    with pytest.raises(
        ValueError, match=r"flux has shape \(6, 4, 32, 32\): must be \(B, 5, 32, 32\) for bands g r i z y"
    ):
        model(flux[:, :4])
    with pytest.raises(ValueError, match="must be bool"):
        model(flux, mask=torch.zeros(6, 16))
    mask = torch.zeros(6, 5, 16, dtype=torch.bool)
    mask[:, 0, :3] = True
    with pytest.raises(ValueError, match="drops whole tokens"):
        model(flux, mask=mask)
    with pytest.raises(ValueError, match="different numbers"):
        model(flux, mask=torch.arange(16) < torch.arange(1, 7)[:, None])
    with pytest.raises(ValueError, match="positive numbers"):
        model.set_sky_noise(torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1]))


def test_the_position_token_is_used_only_when_asked_for(flux):
    ra, dec = torch.full((6,), 150.0), torch.linspace(-10, 10, 6)
    blind, sighted = model_for(), model_for(ra_dec=True)
    torch.testing.assert_close(blind.embed(flux, ra=ra, dec=dec), blind.embed(flux))
    assert (sighted.embed(flux, ra=ra, dec=dec) - sighted.embed(flux, ra=ra, dec=-dec)).abs().max() > 1e-4
    assert sighted.embed(flux, ra=ra * torch.nan, dec=dec).isfinite().all()
    with pytest.raises(ValueError, match="ra_dec=True: give ra and dec"):
        sighted.embed(flux)


OTHER = {
    "bands": ("g", "r"),
    "size": "tiny",
    "image_size": 16,
    "patch_size": 4,
    "objective": "simmim",
    "mask_ratio": 0.5,
    "max_mask_ratio": 0.5,
    "norm_pix": None,
    "loss": "l1",
    "stretch": "linear",
    "ra_dec": True,
    "decoder_width": 32,
    "decoder_depth": 2,
    "hide_bands": 0.5,
    "flux_weight": 0.3,
}


@pytest.mark.parametrize("name", [field.name for field in fields(ModelConfig)])
def test_every_setting_reaches_the_model(flux, name):
    def outcome(**values):
        config = ModelConfig(**(SMALL | values))
        images = flux[:, : len(config.bands), : config.image_size, : config.image_size]
        model, place = build_model(config), torch.full((6,), 30.0)
        loss = model(images, ra=place, dec=place, generator=keyed_generator(0)).loss
        return loss.item(), sum(p.numel() for p in model.parameters())

    common = {"objective": "simmim"} if name == "max_mask_ratio" else {}
    assert outcome(**common) == outcome(**common)
    assert outcome(**common) != outcome(**common, **{name: OTHER[name]})


def test_the_seed_fixes_the_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (
        build_model(ModelConfig(**SMALL)),
        build_model(ModelConfig(**SMALL)),
        build_model(ModelConfig(**SMALL), seed=1),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.encoder.embed.weight, other.encoder.embed.weight)


def test_a_mask_that_hides_everything_leaves_nothing_to_see(flux):
    model = build_model(ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1))
    mask = torch.ones(len(flux), 16, dtype=torch.bool)
    one = model(flux, mask=mask).prediction
    assert torch.equal(one, model(flux.flip(0) * 3, mask=mask).prediction)
