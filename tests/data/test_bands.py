from dataclasses import replace

import numpy as np
import pytest
import torch

from skylib import ModelConfig, build_model, canonical_band, flux_to_mag, measure_sky_noise, sort_bands
from skylib.bands import mag_to_flux
from skylib.model.stretch import stretch, unstretch


@pytest.mark.parametrize(
    ("given", "band"), [("HSC-Y", "y"), ("G", "g"), ("nb0921", "NB0921"), ("HSC-I2", "i"), ("KS", "Ks")]
)
def test_band_names_in_any_case_and_with_a_survey(given, band):
    assert canonical_band(given) == band


def test_unknown_band_names_those_known():
    with pytest.raises(ValueError, match=r"'q'.*known bands are u, g, r"):
        canonical_band("q")


def test_bands_are_sorted_by_wavelength_broad_first():
    assert sort_bands("NB0816, y g") == ("g", "y", "NB0816")
    with pytest.raises(ValueError, match="twice: g"):
        sort_bands(["g", "HSC-G"])
    with pytest.raises(ValueError, match="no band"):
        sort_bands([])


def test_magnitudes_round_trip():
    flux = np.array([0.1, 1.0, 1e5])
    np.testing.assert_allclose(mag_to_flux(flux_to_mag(flux)), flux)


@pytest.mark.parametrize("kind", ["asinh", "linear"])
def test_stretch_and_back(kind):
    flux = torch.tensor([-2.0, 0.0, 0.05, 3.0, 1e4]).reshape(1, 1, 1, 5)
    sigma = torch.tensor([0.05])
    torch.testing.assert_close(unstretch(stretch(flux, sigma, kind=kind), sigma, kind=kind), flux)


def test_stretch_is_the_inverse_sine_from_1e_30_to_1e37():
    sizes = torch.logspace(-30, 37, 4000)
    flux = torch.cat([sizes, -sizes, torch.zeros(1)])[None, None, None]
    found, exact = stretch(flux, torch.ones(1)), torch.asinh(flux.double())
    torch.testing.assert_close(found.double(), exact, rtol=3e-7, atol=0)
    flux.requires_grad_()
    torch.testing.assert_close(stretch(flux, torch.ones(1)).double(), exact, rtol=3e-7, atol=0)
    (gradient,) = torch.autograd.grad(stretch(flux, torch.ones(1)).sum(), flux)
    torch.testing.assert_close(gradient[0, 0, 0, -1], torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["asinh", "linear"])
def test_what_cannot_be_stretched_counts_as_no_data(kind):
    flux = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1.0])[None, None, None]
    found = stretch(flux, torch.full((1,), 1.0), kind=kind)
    assert found.isnan().flatten().tolist() == [True, True, True, False, False, False]
    assert found.nan_to_num(0.0).isfinite().all()
    assert stretch(flux, torch.full((1,), 0.1)).isnan().flatten().tolist() == [True] * 5 + [False]  # 3e39 is too large


def test_stretch_keeps_nan_and_clips_only_in_linear():
    flux, sigma = torch.tensor([-100.0, torch.nan]).reshape(1, 1, 1, 2), torch.ones(1)
    assert stretch(flux, sigma, kind="linear")[0, 0, 0, 0] == -3
    assert stretch(flux, sigma)[0, 0, 0, 0] < -5
    assert stretch(flux, sigma).isnan().sum() == 1
    with pytest.raises(ValueError, match="'sqrt'.*'asinh', 'linear'"):
        stretch(flux, sigma, kind="sqrt")


def test_sky_noise_is_not_moved_by_objects():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 16
    flux = rng.normal(0, [[[0.1]], [[0.5]]], (200, 2, 32, 32)) + 5 * np.exp(-(x**2 + y**2) / 12)
    np.testing.assert_allclose(measure_sky_noise(flux), [0.1, 0.5], rtol=0.15)
    flux[:, 1] = np.nan
    assert np.isnan(measure_sky_noise(flux)[1])


def test_the_model_is_not_moved_by_pixels_that_are_no_numbers():
    config = ModelConfig(size="nano", image_size=16, patch_size=4, decoder_width=32, decoder_depth=1)
    for kind in ("asinh", "linear"):
        model = build_model(replace(config, stretch=kind))
        flux = torch.randn(4, 5, 16, 16, generator=torch.Generator().manual_seed(0))
        flux[0, 1, 3, 3], flux[1, 2, 0, 0], flux[2, 3] = torch.inf, -torch.inf, torch.nan
        flux[3] = 0.7  # no variance at all
        loss = model(flux, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        missing = torch.where(flux.isfinite(), flux, torch.nan)
        assert torch.equal(model.embed(flux), model.embed(missing))
    assert measure_sky_noise(np.full((3, 2, 8, 8), 0.7)).tolist() == [0, 0]
