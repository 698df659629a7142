"""Real images of four surveys, each from its files to cutouts with the right pixels."""

import bz2
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table

from skylib import CutoutFile, CutoutLoader, Survey, TileLoader, find_tiles, flux_to_mag, make_cutouts, read_tile


def centroids(flux):
    """Return row and column offsets from the centre of flux-weighted centroids (n, C, 2), by iterated Gaussian weights."""
    n, c, s, _ = flux.shape
    y, x = np.mgrid[:s, :s] - s // 2
    place = np.zeros((n, c, 2))
    for _ in range(20):
        weight = np.exp(-((y - place[..., :1, None]) ** 2 + (x - place[..., 1:, None]) ** 2) / (2 * 2.0**2))
        light = np.nan_to_num(flux) * weight
        total = light.sum((-2, -1))
        place += (
            2
            * np.stack(
                [
                    ((y - place[..., :1, None]) * light).sum((-2, -1)),
                    ((x - place[..., 1:, None]) * light).sum((-2, -1)),
                ],
                -1,
            )
            / total[..., None]
        )
        place = place.clip(-4, 4)
    return place


@pytest.fixture(scope="module")
def stripe(tmp_path_factory):
    source, folder = Path(__file__).parents[3] / "shared" / "data" / "sdss_stripe82", tmp_path_factory.mktemp("sdss")
    if not source.is_dir():
        pytest.skip("needs ../shared data, which is not beside the project")
    for path in source.glob("frame-[gri]-*.bz2"):  # decompressed once; the other two stay as they come
        (folder / path.stem).write_bytes(bz2.decompress(path.read_bytes()))
    for path in source.glob("frame-[uz]-*.bz2"):
        shutil.copy(path, folder)
    table = Table.read(source / "catalogue.fits")
    tiles = find_tiles(folder, survey="sdss")
    return tiles, table, make_cutouts(tiles, table[table["leaf"]], folder / "sdss.h5", size=32)


def test_bands_of_stripe_82_are_brought_to_one_grid(stripe):
    tiles, _, cutouts = stripe
    assert [(tile.name, tile.bands) for tile in tiles] == [("000094-1-0012", tuple("ugriz"))]
    with pytest.raises(ValueError, match=r"pixels off the sky position of .*frame-u.*align=True"):
        read_tile(tiles[0], align=False)
    star = (cutouts.column("class") == 2) & (cutouts.column("mag_r") < 20.5) & (cutouts.column("mag_r") > 16)
    flux = cutouts.flux(star)[:, 1:4]  # g r i, where stars of all colours are bright
    good = np.isfinite(flux).all(axis=(1, 2, 3))
    place = centroids(flux[good])
    isolated = (np.abs(place).max(axis=(1, 2)) < 2) & (np.ptp(place, axis=1).max(axis=1) < 1)
    assert isolated.sum() >= 60
    apart = place[isolated] - place[isolated].mean(axis=1, keepdims=True)
    assert np.abs(np.median(apart, axis=0)).max() < 0.1
    assert np.median(np.hypot(*apart.transpose(2, 0, 1))) < 0.1


def test_magnitudes_of_stripe_82_are_those_of_the_catalogue(stripe):
    _, _, cutouts = stripe
    assert cutouts.pixel_scale == pytest.approx(0.396, abs=0.001)
    star = (cutouts.column("class") == 2) & (cutouts.column("mag_r") < 19) & (cutouts.column("mag_r") > 15)
    flux = cutouts.flux(star)
    y, x = np.mgrid[:32, :32] - 16
    total = flux[:, 1:4, np.hypot(y, x) < 9].sum(-1)
    for c, band in enumerate("gri"):
        error = flux_to_mag(total[:, c]) - cutouts.column(f"mag_{band}")[star]
        assert abs(np.nanmedian(error)) < 0.07, band


def test_stripe_82_streams_to_a_network(stripe):
    tiles, _, _ = stripe
    (tile,) = find_tiles(tiles[0].first.parent, survey="sdss", bands="gr")
    batch = next(iter(TileLoader([tile], batch_size=8, size=32)))
    assert batch.flux.shape == (8, 2, 32, 32)
    assert batch.ra.numpy() == pytest.approx(336.7, abs=0.3)


def test_hsc_images_without_sky_coordinates_by_pixel(shared_data, tmp_path):
    folder = shared_data / "hsc_gri_labelled"
    survey = Survey(name="gri", bands="gri", file_names="{band}-{tile}", zero_point=27.0, pixel_scale=0.168, sky=False)
    tiles = find_tiles(folder, survey=survey)
    objects = json.loads((folder / "single_test.json").read_text())[0]["annotations"]
    x, y, w, h = np.array([o["bbox"] for o in objects], float).T
    table = Table({"x": x + w / 2, "y": y + h / 2, "imag": [o["imag"] for o in objects]})
    table["class"] = np.where([o["category_id"] == 0 for o in objects], "star", "galaxy")
    table["hsc_oid"] = np.array([o["hsc_oid"] for o in objects]).astype(np.int64)
    made = make_cutouts(tiles, table, tmp_path / "gri.h5", size=48)
    assert len(made) > 430
    assert np.isnan(made.ra).all()
    assert made.survey == "gri"
    assert set(made.column("class")) == {0, 2}
    assert made.column("hsc_oid")[0] == int(objects[0]["hsc_oid"]) or made.column("hsc_oid").dtype == np.int64
    bright = made.column("imag") < 22
    total = np.nansum(made.flux(bright)[:, 2, 12:37, 12:37], axis=(1, 2))
    assert abs(np.median(flux_to_mag(total) - made.column("imag")[bright])) < 0.3
    with pytest.raises(ValueError, match=r"10054.*no sky coordinates"):
        make_cutouts(tiles, Table({"ra": [1.0], "dec": [1.0]}), tmp_path / "no.h5", size=48)


def test_all_nine_bands_of_kids_and_viking(shared_data, tmp_path):
    folder = shared_data / "kids_viking"
    tiles = find_tiles(folder, bands="ugrizyJHKs")
    assert [tile.name for tile in tiles] == ["1-0,0", "1-0,1", "1-1,0", "1-1,1"]
    made = make_cutouts(tiles, folder / "catalogue.fits", tmp_path / "kids.h5", size=32, bad_planes=["SUSPECT"])
    assert made.bands == ("u", "g", "r", "i", "z", "y", "J", "H", "Ks")
    assert len(made) > 3000
    assert made.pixel_scale == pytest.approx(0.339, abs=0.001)
    bright = (made.column("snr_i") > 100) & (made.column("half_light_radius_pix") < 3)
    y, x = np.mgrid[:32, :32] - 16
    for band in ("g", "i", "Ks"):
        aperture = made.flux(bright)[:, made.bands.index(band), np.hypot(y, x) < 4.2].sum(-1)
        error = flux_to_mag(aperture) - made.column(f"mag_{band.lower()}")[bright]
        assert abs(np.nanmedian(error)) < 0.1, band


def test_quasars_in_nanomaggies_and_in_counts_are_the_same(shared_data, tmp_path):
    path = shared_data / "sdss_qso_z" / "sdss_qso_z.h5"
    quasars = CutoutFile(path, zero_point=22.5, pixel_scale=0.396)
    assert (len(quasars), quasars.bands, quasars.file_zero_point, quasars.zero_point) == (
        1470,
        tuple("ugriz"),
        22.5,
        27,
    )
    with h5py.File(path) as file:
        raw = file["cutouts"][5:6]
    np.testing.assert_allclose(quasars.flux([5]), raw * 10 ** (0.4 * 4.5), rtol=1e-5)
    np.testing.assert_array_equal(CutoutFile(path).flux([5]), quasars.flux([5]))  # by the unit that the file states
    y, x = np.mgrid[:32, :32] - 16
    bright = quasars.column("sdss_imag") < 20
    error = (
        flux_to_mag(np.nansum(quasars.flux(bright)[:, 3, np.hypot(y, x) < 8], -1)) - quasars.column("sdss_imag")[bright]
    )
    assert abs(np.nanmedian(error)) < 0.25
    batch = next(iter(CutoutLoader(quasars, batch_size=4, columns=["z", "fold"], device="cpu")))
    assert batch.columns["z"].min() > 2.7
