"""Surveys by description: file names, units, noise, masks, grids and frames, each on small files in the survey's layout."""

import gzip
import re
from pathlib import Path

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import FK4, FK5, SkyCoord
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table
from astropy.wcs import WCS

import skylib
from skylib import (
    Survey,
    copy_cutouts,
    find_tiles,
    flux_to_mag,
    get_survey,
    make_cutouts,
    read_tile,
    register_band,
    register_survey,
    sort_bands,
    write_cutouts,
)
from skylib.bands import split_bands

N = 80


def grid(*, scale=0.2, ra=150.0, dec=2.2, shift=(0.0, 0.0), angle=0.0, ctype=("RA---TAN", "DEC--TAN"), n=N):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = list(ctype), [ra, dec]
    wcs.wcs.crpix = [(n + 1) / 2 + shift[1], (n + 1) / 2 + shift[0]]
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * scale / 3600
    return wcs


def noise(seed=0, n=N):
    return np.random.default_rng(seed).normal(0, 0.1, (n, n)).astype("f4")


def stars(wcs, places, *, flux=100.0, sigma=1.5, n=N):
    """Return an image (n, n) of Gaussian stars of the same flux at (ra, dec), whatever the grid; no noise."""
    y, x = np.mgrid[:n, :n]
    image = np.zeros((n, n))
    for col, row in zip(*wcs.all_world2pix(*np.transpose(places), 0), strict=True):
        image += flux * np.exp(-((x - col) ** 2 + (y - row) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    return image.astype("f4")


def write(path, image, wcs=None, *, hdu=0, name=None, primary=None, more=(), **cards):
    """Write an image in HDU 0 or 1."""
    header = (wcs or grid()).to_header()
    header.update(cards)
    path.parent.mkdir(parents=True, exist_ok=True)
    first = fits.PrimaryHDU(image, header) if hdu == 0 else fits.PrimaryHDU()
    first.header.update(primary or {})
    rest = [] if hdu == 0 else [fits.ImageHDU(image, header, name=name)]
    fits.HDUList([first, *rest, *more]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("survey", "names", "tile", "bands"),
    [
        ("hsc", ["calexp-HSC-I-9813-4,5.fits", "calexp-HSC-R2-9813-4,5.fits.fz"], "9813-4,5", "ri"),
        (
            "lsst",
            ["deep_coadd_5063_14_g_lsst_cells_v1_LSSTComCam.fits", "deep_coadd_5063_14_r_x.fits"],
            "5063_14",
            "gr",
        ),
        ("kids", ["KiDS_DR4.0_180.0_-0.5_g_sci.fits", "KiDS_DR4.0_180.0_-0.5_u_sci.fits"], "180.0_-0.5", "ug"),
        ("sdss", ["frame-g-000094-1-0012.fits.bz2", "frame-z-000094-1-0012.fits.bz2"], "000094-1-0012", "gz"),
        ("legacy", ["legacysurvey-0001m002-image-g.fits.fz"], "0001m002", "g"),
        ("des", ["DES2359-6331_r4575p01_Y.fits.fz", "DES2359-6331_r4575p01_g.fits.fz"], "DES2359-6331", "gy"),
        ("panstarrs", ["rings.v3.skycell.1234.012.stk.g.unconv.fits"], "1234.012", "g"),
        (
            "euclid",
            [
                "EUC_MER_BGSUB-MOSAIC-NIR-Y_TILE102018211-AB_2024.fits",
                "EUC_MER_BGSUB-MOSAIC-VIS_TILE102018211-CD_2024.fits.gz",
            ],
            "102018211",
            ["VIS", "YE"],
        ),
        (
            "hst",
            ["hst_10775_64_acs_wfc_f814w_drz.fits", "hst_10775_64_acs_wfc_f606w_drz.fits"],
            "hst_10775_64_acs_wfc",
            ["F606W", "F814W"],
        ),
        (
            "jwst",
            ["jw01345-o001_t021_nircam_clear-f200w_i2d.fits", "jw01345-o001_t021_nircam_clear-f444w_i2d.fits"],
            "jw01345-o001_t021",
            ["F200W", "F444W"],
        ),
    ],
)
def test_names_of_the_archives(tmp_path, survey, names, tile, bands):
    for name in [*names, "catalogue.fits", "readme.txt"]:
        (tmp_path / name).touch()
    (found,) = find_tiles(tmp_path, survey=survey, min_bands=1)
    assert (found.name, found.bands) == (tile, sort_bands(bands))


def test_bands_are_data_of_a_survey():
    assert (
        sort_bands("ugrizyJHKs") == sort_bands("u g r i z y J H Ks") == ("u", "g", "r", "i", "z", "y", "J", "H", "Ks")
    )
    assert split_bands("W1, VIS") == ["W1", "VIS"]
    survey = Survey(name="x", bands={"i-DES": 781, "U300": 299}, file_names="{tile}_{band}", zero_point=25)
    assert survey.bands == ("U300", "i-DES")
    assert sort_bands(["i-DES", "g", "U300"]) == ("U300", "g", "i-DES")
    with pytest.raises(ValueError, match="'I-des' is known at 781 nm, not 400 nm"):
        register_band("I-des", 400)
    with pytest.raises(ValueError, match="unknown band 'B7'.*register_band"):
        sort_bands(["B7"])


def test_bad_descriptions_are_named(tmp_path):
    good = {"name": "x", "bands": "gr", "file_names": "{tile}_{band}"}
    with pytest.raises(ValueError, match="survey='nowhere': one of 'des'.*'sdss'"):
        find_tiles(tmp_path, survey="nowhere")
    with pytest.raises(ValueError, match="variance_kind='noise': one of"):
        Survey(**good, variance_kind="noise")
    for field, value, why in (
        ("zero_point", float("nan"), "must be a number"),
        ("zero_point", float("inf"), "must be finite"),
        ("pixel_scale", -1.0, "must be positive"),
        ("no_data", "-99", "must be a number"),
        ("align", "yes", "must be true or false"),
        ("mask_planes", {"SAT": "3"}, "must be a mapping to a whole number"),
        ("file_names", {"z": "{tile}_z"}, "gives 'z', bands are g r"),
        ("bands", {"Q7": "500"}, "bands={'Q7': '500'}: must be text or a list of text or a mapping to a number"),
        ("bands", {"Q7": 0}, "band 'Q7': wavelength=0 must be a number from 1 to"),
    ):
        with pytest.raises(ValueError, match=why):
            Survey(**good | {field: value})
    assert Survey(**good, zero_point=np.float32(25), bad_planes="SAT").bad_planes == ("SAT",)
    with pytest.raises(ValueError, match="survey=5: must be text or a path or Survey"):
        get_survey(5)
    with pytest.raises(ValueError, match=r"file name .*may hold \{band\}, \{tile\} and \*"):
        Survey(**good | {"file_names": "{filter}_x"})
    (tmp_path / "a.toml").write_text('name = "a"\nbands = "gr"\nfile_names = "{tile}_{band}"\nzeropoint = 3\n')
    with pytest.raises(ValueError, match=r"a\.toml: .*unknown fields zeropoint; fields are name, bands"):
        get_survey(tmp_path / "a.toml")
    with pytest.raises(FileNotFoundError, match=r"b\.toml"):
        get_survey(tmp_path / "b.toml")
    (tmp_path / "m51_h_x.fits").touch()
    with pytest.raises(FileNotFoundError, match=r"names such as \{tile\}_\{band\} .*it holds a\.toml, m51_h_x\.fits"):
        find_tiles(tmp_path, survey=Survey(**good))
    with pytest.raises(ValueError, match="bands u: the survey 'x' has g, r"):
        find_tiles(tmp_path, survey=Survey(**good), bands="ug")


@pytest.mark.parametrize(
    ("cards", "zero_point"),
    [
        ({"BUNIT": "nJy"}, 31.4),
        ({"BUNIT": "uJy"}, 23.9),
        ({"BUNIT": "nanomaggy"}, 22.5),
        ({"BUNIT": "nanomaggies"}, 22.5),
        ({"BUNIT": "Jy"}, 8.9),
        ({"MAGZERO": 30.0}, 30.0),
        ({"PHOTZP": 25.5, "BUNIT": "counts"}, 25.5),
        ({"FLUXMAG0": 10**10}, 25.0),
        ({"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}, 25.948),
        ({"BUNIT": "ELECTRONS", "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0, "EXPTIME": 100.0}, 30.948),
        ({"BUNIT": "nmgy"}, 22.5),
        ({"BUNIT": "1e-9 maggies"}, 22.5),
        ({"BUNIT": "Jy/pixel"}, 8.9),
        ({"BUNIT": "UJY / PIX"}, 23.9),
        ({"BUNIT": "10*nJy"}, 28.9),
        ({"BUNIT": "W m-2 Hz-1"}, -56.1),
        ({"BUNIT": "1e-20 erg/s/cm2/Angstrom"}, 50 - 2.408 - 5 * np.log10(7710)),
        ({"PHOTFLAM": "7.0e-20", "PHOTPLAM": 8045.0}, 25.948),
        ({"BUNIT": "MJY/SR", "PIXAR_SR": 9.4e-13}, 8.9 - 2.5 * np.log10(0.94e-6)),
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 9.4e-13}, 8.9 - 2.5 * np.log10(0.94e-6)),
        ({"BUNIT": "MJy/sr"}, 8.9 - 2.5 * np.log10(1e6 * (0.2 * u.arcsec).to_value(u.rad) ** 2)),
    ],
)
def test_the_unit_of_a_file_is_applied(tmp_path, cards, zero_point):
    image = noise()
    image[40, 40] = 10 ** (-0.4 * (22.0 - zero_point))
    write(tmp_path / "a_i.fits", image, **cards)
    survey = Survey(name="x", bands="i", file_names="{tile}_{band}", zero_point=None)
    tile = read_tile(find_tiles(tmp_path, survey=survey)[0])
    assert flux_to_mag(tile.flux[0, 40, 40]) == pytest.approx(22.0, abs=0.01)
    assert tile.unit == "counts at AB zero-point 27"


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({}, "zero-point is missing"),
        ({"BUNIT": "adu"}, "zero-point is missing"),
        ({"BUNIT": "K"}, "BUNIT='K' is no unit of flux"),
        ({"BUNIT": "blobs"}, "BUNIT='blobs'"),
        ({"BUNIT": "nJy", "FLUXMAG0": 1e10}, "stated differently: FLUXMAG0 says 25.000"),
        ({"FLUXMAG0": -1.0}, "FLUXMAG0=-1.0: must be positive"),
        ({"FLUXMAG0": 1e300}, "zero-point of 750"),
        ({"MAGZERO": "x"}, "MAGZERO='x': must be a finite number"),
        ({"MAGZERO": True}, "MAGZERO=True: must be a finite number"),
        ({"MAGZERO": 25.0, "FLUXMAG0": 1e10 * 2}, "stated differently: FLUXMAG0 says 25.753, MAGZERO says 25.000"),
        ({"MAGZERO": 25.0, "MAGSYS": "Vega"}, "MAGZERO is in the system MAGSYS='Vega': must be AB"),
        ({"MAGZERO": 25.0, "MAGSYS": "STMAG"}, "MAGZERO is in the system MAGSYS='STMAG': must be AB"),
        ({"BUNIT": "Jy/beam"}, "BUNIT='Jy/beam' is no unit of flux"),
        ({"BUNIT": "mag"}, "BUNIT='mag' is no unit of flux"),
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 0.0}, "PIXAR_SR=0.0: must be positive"),
        ({"BUNIT": "ELECTRONS", "PHOTFLAM": 7e-20, "PHOTPLAM": 8e3, "EXPTIME": 0.0}, "EXPTIME=0.0: must be positive"),
    ],
)
def test_a_calibration_that_is_not_clear_is_asked_for(tmp_path, cards, message):
    write(tmp_path / "a_i.fits", noise(), **cards)
    survey = Survey(name="x", bands="i", file_names="{tile}_{band}")
    with pytest.raises((OSError, ValueError), match=rf"a_i\.fits.*{re.escape(message)}"):
        read_tile(find_tiles(tmp_path, survey=survey)[0])


def test_hsc_files_in_njy_keep_their_magnitudes(tmp_path):
    image = noise()
    image[40, 40] = 10 ** (-0.4 * (22.0 - 31.4))
    write(tmp_path / "HSC-I-9813-4,5.fits", image, hdu=1, name="IMAGE", BUNIT="nJy")
    assert flux_to_mag(read_tile(find_tiles(tmp_path, bands="i")[0]).flux[0, 40, 40]) == pytest.approx(22.0, abs=1e-3)


def test_pan_starrs_arcsinh_fluxes_and_exposure_time(tmp_path):
    linear = np.abs(noise()) * 1000
    offset, soft = 2.0, 50.0
    stored = (np.arcsinh((linear - offset) / (2 * soft)) * 2.5 / np.log(10)).astype("f4")
    write(tmp_path / "rings.v3.skycell.1.2.stk.i.unconv.fits", stored, BOFFSET=offset, BSOFTEN=soft, EXPTIME=100.0)
    tile = read_tile(find_tiles(tmp_path, survey="panstarrs", min_bands=1)[0])
    i = tile.bands.index("i")
    np.testing.assert_allclose(flux_to_mag(tile.flux[i]), 25 + 2.5 * np.log10(100) - 2.5 * np.log10(linear), rtol=1e-3)


@pytest.mark.parametrize(
    ("cards", "zero_point"),
    [
        ({"BUNIT": "counts"}, 30.0),
        ({"BUNIT": "counts/s"}, 25.0),
        ({"BUNIT": "cps"}, 25.0),
        ({"MAGZERO": 26.0}, 31.0),
        ({"MAGZERO": 26.0, "BUNIT": "ELECTRONS/S"}, 26.0),
        ({"BUNIT": "nJy"}, 31.4),
    ],
)
def test_the_exposure_counts_where_images_are_summed_over_it(tmp_path, cards, zero_point):
    image = noise()
    image[40, 40] = 1e4
    write(tmp_path / "a_i.fits", image, EXPTIME=100.0, **cards)
    survey = Survey(name="x", bands="i", file_names="{tile}_{band}", zero_point=25, exposure_keyword="EXPTIME")
    flux = read_tile(find_tiles(tmp_path, survey=survey)[0]).flux[0, 40, 40]
    assert flux_to_mag(flux) == pytest.approx(zero_point - 10, abs=0.001)


@pytest.mark.parametrize("kind", ["variance", "weight", "sigma"])
def test_noise_is_read_as_variance_whatever_is_stored(tmp_path, kind):
    stored = {"variance": 0.01, "weight": 100.0, "sigma": 0.1}[kind]
    write(tmp_path / "a_i_sci.fits", noise())
    write(tmp_path / "a_i_wht.fits", np.full((N, N), stored, "f4"))
    description = {
        "name": "x",
        "bands": "i",
        "file_names": "{tile}_{band}_sci",
        "zero_point": 24.5,
        "variance_file": ("_sci", "_wht"),
    }
    tile = read_tile(find_tiles(tmp_path, survey=Survey(**description, variance_kind=kind))[0], variance=True)
    np.testing.assert_allclose(tile.variance, 0.01 * 100, rtol=1e-5)  # 2.5 magnitudes: a factor 10 in flux
    bad = np.array([-1, 0, np.nan, np.inf, {"weight": 1e-40, "sigma": 1e30}.get(kind, 0)], "f4")
    with fits.open(tmp_path / "a_i_wht.fits", mode="update") as hdus:
        hdus[0].data[5, :5] = bad
    tile = read_tile(find_tiles(tmp_path, survey=Survey(**description, variance_kind=kind))[0], variance=True)
    assert np.isnan(tile.variance[0, 5, :5]).all()  # no variance, whatever the kind
    assert np.isfinite(tile.variance[0, 6:]).all()
    if kind == "variance":  # given as a standard deviation, it is a hundred times too small
        with pytest.raises(ValueError, match=r"a_i_sci\.fits: the sigma is 0\.01 .*variance_kind='variance'"):
            read_tile(find_tiles(tmp_path, survey=Survey(**description, variance_kind="sigma"))[0], variance=True)
    if kind != "sigma":
        wrong = Survey(**description, variance_kind="weight" if kind == "variance" else "variance")
        with pytest.raises(ValueError, match=rf"a_i_sci\.fits: .*variance_kind='{kind}'"):
            read_tile(find_tiles(tmp_path, survey=wrong)[0], variance=True)


@pytest.mark.parametrize(
    ("kind", "bit", "top"), [("i4", 31, True), ("i2", 15, True), ("u1", 7, True), ("i4", 5, False)]
)
def test_mask_planes_at_any_bit(tmp_path, kind, bit, top):
    mask = np.zeros((N, N), kind)
    mask[3, 4] = np.iinfo(kind).min if top and kind[0] == "i" else 1 << bit
    more = [fits.ImageHDU(mask, name="MASK")]
    more[0].header.update({"MP_BAD": 0, "MP_NEW": bit})
    write(tmp_path / "HSC-I-9813-4,5.fits", noise(), hdu=1, name="IMAGE", more=more)
    (paths,) = find_tiles(tmp_path, bands="i")
    for planes in (["NEW"], [bit], [np.int64(bit)]):
        assert np.argwhere(np.isnan(read_tile(paths, bad_planes=planes).flux[0])).tolist() == [[3, 4]]
    with pytest.raises(ValueError, match=r"HSC-I-9813-4,5\.fits: mask plane 77 is bit 77"):
        read_tile(paths, bad_planes=[77])


def test_zeros_are_no_data_in_areas_and_whole_bands(tmp_path):
    image = noise()
    image[:20], image[50, 50] = 0, 0
    write(tmp_path / "a_g.fits", image)
    write(tmp_path / "a_r.fits", np.zeros((N, N), "f4"))
    tile = read_tile(
        find_tiles(tmp_path, survey=Survey(name="x", bands="gr", file_names="{tile}_{band}", zero_point=27))[0]
    )
    assert np.isnan(tile.flux[0, :20]).all()
    assert np.isfinite(tile.flux[0, 20:]).all()  # a single zero is a value
    assert np.isnan(tile.flux[1]).all()


@pytest.mark.parametrize("filler", [-99.0, -32768.0, 1e30, -1e30])
def test_what_surveys_fill_empty_areas_with_is_no_data(tmp_path, filler):
    image = noise()
    image[:20], image[50, 50] = filler, -99
    write(tmp_path / "a_g.fits", image)
    survey = Survey(name="x", bands="g", file_names="{tile}_{band}", zero_point=22.5)
    flux = read_tile(find_tiles(tmp_path, survey=survey)[0]).flux[0]
    assert np.isnan(flux[:20]).all()
    assert np.isfinite(flux[20:]).all()  # a single -99 is a value


def test_cubes_of_several_bands(tmp_path):
    cube = np.stack([noise(s) for s in range(3)])
    write(tmp_path / "cutout_150.0_2.2.fits", cube, BANDS="grz")
    (paths,) = find_tiles(tmp_path, survey="legacy_cutout", min_bands=3)
    tile = read_tile(paths)
    assert paths.bands == ("g", "r", "z")
    np.testing.assert_allclose(tile.flux[tile.bands.index("z")], cube[2] * 10 ** (0.4 * 4.5), rtol=1e-5)
    assert np.isnan(tile.flux[tile.bands.index("i")]).all()


def two_bands(folder, one, other, **survey):
    place = [(150.0, 2.2), (150.001, 2.2008), (149.999, 2.1990), (150.0012, 2.1989)]
    for band, wcs in (("g", one), ("r", other)):
        write(folder / f"a_{band}.fits", stars(wcs, place) + noise() / 100, wcs)
    return find_tiles(
        folder, survey=Survey(name="two", bands="gr", file_names="{tile}_{band}", zero_point=27, **survey)
    )[0]


@pytest.mark.parametrize("other", [{"shift": (3.3, -5.7)}, {"angle": 30.0}, {"scale": 0.25}, {"scale": 0.17}])
def test_aligned_bands_have_stars_at_one_place_with_their_flux(tmp_path, other):
    paths = two_bands(tmp_path, grid(), grid(**other))
    with pytest.raises(ValueError, match=r"a_r\.fits: .* pixels off the sky position of .*a_g\.fits; align=True"):
        read_tile(paths)
    tile = read_tile(paths, align=True)
    y, x = np.mgrid[-8:9, -8:9]
    for ra, dec in [(150.0, 2.2), (150.001, 2.2008)]:
        row, col = (int(round(float(v))) for v in tile.pixel_at(ra, dec))
        boxes = tile.flux[:, row - 8 : row + 9, col - 8 : col + 9]
        total = boxes.sum((1, 2))
        place = np.stack([(boxes * y).sum((1, 2)), (boxes * x).sum((1, 2))]) / total
        np.testing.assert_allclose(place[:, 0], place[:, 1], atol=0.05)
        assert total[1] == pytest.approx(total[0], rel=0.02)


def test_grids_are_compared_at_their_corners_too(tmp_path):
    for name, other in (("twice", grid(scale=0.4)), ("turned", grid(angle=90))):
        with pytest.raises(ValueError, match=r"a_r\.fits: .* pixels off"):
            read_tile(two_bands(tmp_path / name, grid(), other))


@pytest.mark.parametrize("name", ["a_i.FITS", "a_i.fts", "a_i.fit", "a_i.fits.GZ"])
def test_endings_of_file_names(tmp_path, name):
    path = write(tmp_path / "x.fits", noise()[None, None])  # with two axes of one pixel
    content = path.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    path.unlink()
    if name.endswith("fts"):  # whose content is another than the name says
        (tmp_path / name).rename(tmp_path / "a_i.fits.bz2")
    elif name.endswith("fit"):
        (tmp_path / name).write_bytes(gzip.compress(content))
    mask = Survey(name="x", bands="i", file_names="{tile}_{band}", zero_point=27)
    np.testing.assert_array_equal(read_tile(find_tiles(tmp_path, survey=mask)[0]).flux[0], noise())


def test_masks_and_noise_may_have_axes_of_one_pixel(tmp_path):
    flags = (np.arange(N * N).reshape(1, N, N) == 7).astype("i2")
    more = [fits.ImageHDU(flags, name="MASK"), fits.ImageHDU(np.full((1, N, N), 0.01, "f4"), name="VARIANCE")]
    write(tmp_path / "HSC-I-9813-4,5.fits", noise(), hdu=1, name="IMAGE", more=more)
    tile = read_tile(find_tiles(tmp_path, bands="i")[0], bad_planes=[0], variance=True)
    assert np.argwhere(np.isnan(tile.flux[0])).tolist() == [[0, 7]]
    np.testing.assert_allclose(tile.variance, 0.01, rtol=1e-6)


FRAMES = ["galactic", "ecliptic", "fk4", "fk5", "fk5 of 1975", "swapped", "third axis", "sip", "scamp"]


@pytest.mark.parametrize("frame", FRAMES)
def test_positions_are_icrs_whatever_the_frame(tmp_path, frame):
    place = SkyCoord(150.0, 2.2, unit="deg")
    header = grid().to_header()
    if frame == "galactic":
        header = grid(ra=place.galactic.l.deg, dec=place.galactic.b.deg, ctype=("GLON-TAN", "GLAT-TAN")).to_header()
    elif frame == "ecliptic":
        old = place.barycentricmeanecliptic
        header = grid(ra=old.lon.deg, dec=old.lat.deg, ctype=("ELON-TAN", "ELAT-TAN")).to_header()
    elif frame == "fk4":
        old = place.transform_to(FK4(equinox="B1950"))
        header = grid(ra=old.ra.deg, dec=old.dec.deg).to_header()
        header.update({"RADESYS": "FK4", "EQUINOX": 1950.0})
    elif frame == "fk5":
        header.update({"RADESYS": "FK5", "EQUINOX": 2000.0})
    elif frame == "fk5 of 1975":
        old = place.transform_to(FK5(equinox="J1975"))
        header = grid(ra=old.ra.deg, dec=old.dec.deg).to_header()
        header.update({"RADESYS": "FK5", "EQUINOX": 1975.0})
    elif frame == "scamp":  # says TAN, and has the polynomial of TPV
        header.update({"PV1_0": 0.0, "PV1_1": 1.0, "PV1_4": 1e-4, "PV2_0": 0.0, "PV2_1": 1.0, "PV2_4": 1e-4})
    elif frame == "swapped":
        header = grid(ra=2.2, dec=150.0, ctype=("DEC--TAN", "RA---TAN")).to_header()
    elif frame == "third axis":
        header.update({"WCSAXES": 3, "CTYPE3": "FREQ", "CRPIX3": 1.0, "CRVAL3": 1.4e9, "CDELT3": 1e6})
    elif frame == "sip":
        header.update(
            {
                "CTYPE1": "RA---TAN-SIP",
                "CTYPE2": "DEC--TAN-SIP",
                "A_ORDER": 2,
                "B_ORDER": 2,
                "A_2_0": 1e-6,
                "B_0_2": 1e-6,
            }
        )
    fits.PrimaryHDU(noise(), header).writeto(tmp_path / "a_g.fits")
    (paths,) = find_tiles(tmp_path, survey=Survey(name="f", bands="g", file_names="{tile}_{band}", zero_point=27))
    tile = read_tile(paths)
    ra, dec = tile.sky_at(39.5, 39.5)
    assert SkyCoord(ra, dec, unit="deg").separation(place).arcsec < 0.1
    rows, cols = np.array([3.0, 60.0]), np.array([70.0, 11.0])
    np.testing.assert_allclose(tile.pixel_at(*tile.sky_at(rows, cols)), (rows, cols), atol=1e-3)
    ra, dec = tile.sky_at(np.array([30.0]), np.array([50.0]))
    made = make_cutouts([paths], Table({"ra": ra, "dec": dec}), tmp_path / "c.h5", size=8)
    np.testing.assert_array_equal(made.flux(0)[0, 0], tile.flux[0, 26:34, 46:54])
    batch = next(iter(skylib.TileLoader([paths], batch_size=4, size=16, augment=False)))
    rows, cols = (np.round(v).astype(int) for v in tile.pixel_at(batch.ra.numpy(), batch.dec.numpy()))
    for image, row, col in zip(batch.flux.numpy(), rows, cols, strict=True):
        np.testing.assert_array_equal(image[0], tile.flux[0, row - 8 : row + 8, col - 8 : col + 8])


def test_a_grid_without_pixel_scale_is_refused(tmp_path):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.2, "CRPIX1": 40.0})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(noise(), header, name="IMAGE")]
    fits.HDUList(hdus).writeto(tmp_path / "HSC-I-9813-4,5.fits")
    with pytest.raises(OSError, match=r"9813-4,5\.fits: .*the pixel scale is missing: .* but no CDELT or CD"):
        make_cutouts(find_tiles(tmp_path, bands="i"), Table({"ra": [150.0], "dec": [2.2]}), tmp_path / "c.h5", size=8)


def test_tiles_without_sky_coordinates_are_refused_by_name(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(noise(), name="IMAGE")]).writeto(tmp_path / "HSC-I-9813-4,5.fits")
    (paths,) = find_tiles(tmp_path, bands="i")
    with pytest.raises(ValueError, match=r"HSC-I-9813-4,5\.fits: no sky coordinates.*columns x and y"):
        read_tile(paths)
    with pytest.raises(ValueError, match=r"HSC-I-9813-4,5\.fits: no sky coordinates"):
        make_cutouts([paths], Table({"ra": [100.0], "dec": [85.0]}), tmp_path / "c.h5", size=8)
    made = make_cutouts([paths], Table({"x": [30.0], "y": [20.0]}), tmp_path / "c.h5", size=8)
    np.testing.assert_array_equal(made.flux(0)[0, 0], read_tile(paths, sky=False).flux[0, 16:24, 26:34])
    for table, message in (
        ({"x": [3.0] * u.mm, "y": [2.0] * u.mm}, "column 'x' is in 'mm': must be pixels"),
        ({"x": [3.0], "y": [2.0], "tile": ["a"]}, "column 'tile' holds 'a'; the tiles are 9813-4,5"),
    ):
        with pytest.raises(ValueError, match=message):
            make_cutouts([paths], Table(table), tmp_path / "d.h5", size=8)
    named = MaskedColumn(["9813-4,5 ", "9813-4,5"], mask=[False, True])  # of the second the tile is not known
    made = make_cutouts([paths], Table({"x": [30, 31], "y": [20, 20], "tile": named}), tmp_path / "e.h5", size=8)
    assert made.column("x").tolist() == [30]
    with pytest.raises(ValueError, match="has no sky coordinates: its positions are pixels"):
        read_tile(paths, sky=False).sky_at(1, 1)


GALACTIC = [[x] for x in (lambda c: (c.l.deg, c.b.deg))(SkyCoord(150.0005, 2.2, unit="deg").galactic)]

FK4_PLACE = [[x] for x in (lambda c: (c.ra.deg, c.dec.deg))(SkyCoord(150.0005, 2.2, unit="deg").fk4)]


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"}, "sky coordinates are 'HPLN': must be RA, GLON or ELON"),
        (
            {"WCSAXES": 3, "CTYPE1": "FREQ", "CUNIT1": "Hz", "CTYPE3": "RA---TAN"},
            "axes of the image are FREQ DEC--TAN RA---TAN",
        ),
        ({"CRVAL1": "150.0"}, "CRVAL1='150.0': must be a number"),
        ({"RADESYS": "WEIRD"}, "RADESYS='WEIRD': must be ICRS, FK5, FK4 or FK4-NO-E"),
        ({"CUNIT1": "m"}, "the sky coordinates are damaged: ERROR 6"),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, "the matrix CD is [[0.0, 0.0], [0.0, 0.0]]"),
    ],
)
def test_grids_that_cannot_be_used_are_named(tmp_path, cards, message):
    write(tmp_path / "a_g.fits", noise(), **cards)
    (paths,) = find_tiles(tmp_path, survey=Survey(name="f", bands="g", file_names="{tile}_{band}", zero_point=27))
    with pytest.raises((OSError, ValueError), match=rf"a_g\.fits.*{re.escape(message)}"):
        read_tile(paths)


def test_a_matrix_cd_goes_before_pc_and_a_lone_scale_is_refused(tmp_path):
    scale = 0.2 / 3600
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 40.5, "CRPIX2": 40.5})
    header.update({"CRVAL1": 150.0, "CRVAL2": 2.2, "CD1_1": -scale, "CD2_2": scale, "PC1_1": 1.0, "PC2_2": 1.0})
    fits.PrimaryHDU(noise(), header).writeto(tmp_path / "a_g.fits")
    survey = Survey(name="f", bands="g", file_names="{tile}_{band}", zero_point=27)
    assert read_tile(find_tiles(tmp_path, survey=survey)[0]).sky_at(49.5, 39.5)[1] == pytest.approx(2.2 + 10 * scale)
    for key in ("CD1_1", "CD2_2"):
        del header[key]
    header["CDELT1"] = -scale
    fits.PrimaryHDU(noise(), header).writeto(tmp_path / "a_g.fits", overwrite=True)
    with pytest.raises(OSError, match=r"a_g\.fits: .*scale of one axis is missing: CDELT1 or CDELT2"):
        read_tile(find_tiles(tmp_path, survey=survey)[0])


@pytest.fixture
def one_tile(tmp_path):
    write(tmp_path / "tiles" / "HSC-I-9813-4,5.fits", noise(), hdu=1, name="IMAGE")
    return find_tiles(tmp_path / "tiles", bands="i")


@pytest.mark.parametrize(
    "table",
    [
        Table({"RAJ2000": [150.0005], "DEJ2000": [2.2]}),
        Table({"ALPHA_J2000": [150.0005], "DELTA_J2000": [2.2]}),
        Table({"ra": [150.0005], "dec": [2.2]}, units={"ra": "deg", "dec": "deg"}),
        Table({"coord_ra": np.deg2rad([150.0005]), "coord_dec": np.deg2rad([2.2])}),
        Table({"coord_ra": [150.0005] * u.deg, "coord_dec": [2.2] * u.deg}),
        Table({"RA": ["10:00:00.12"], "DEC": ["+02:12:00"]}),
        Table({"RA": ["10h00m00.12s"], "DEC": ["2d12m"]}),
        Table({"ra": ["150.0005"], "dec": ["2.2"]}),
        Table({"place": SkyCoord([150.0005], [2.2], unit="deg").galactic}),
        Table({"ra": [-209.9995], "dec": [2.2]}),
        Table({"ra": [510.0005], "dec": [2.2]}),
        Table(dict(zip(("GLON", "GLAT"), GALACTIC, strict=True))),
        Table(dict(zip("lb", GALACTIC, strict=True))),
        Table([Column(["10 00 00.12"], "RAJ2000", unit='"h:m:s"'), Column(["+02 12 00"], "DEJ2000", unit='"d:m:s"')]),
        Table({"ra": [150.0005, np.inf], "dec": [2.2, 2.2]}),
        Table({"RA (deg)": [150.0005], "Dec (deg)": [2.2]}),
        Table({"Right Ascension": ["10h00m00.12s"], "Declination": ["2d12m"]}),
        Table({"ra": [150.0005 / 15] * u.hourangle, "dec": [2.2 * 3600] * u.arcsec}),
        Table({"place": SkyCoord([150.0005], [2.2], unit="deg").transform_to(FK5(equinox="J1975"))}),
        Table({"ra": FK4_PLACE[0], "dec": FK4_PLACE[1]}, meta={"RADESYS": "FK4", "EQUINOX": 1950.0}),
        {"ra": [150.0005], "dec": [2.2]},
        pd.DataFrame({"ra": [150.0005], "dec": [2.2]}),
    ],
)
def test_positions_in_their_usual_forms(one_tile, tmp_path, table):
    made = make_cutouts(one_tile, table, tmp_path / "c.h5", size=8)
    assert (made.ra[0], made.dec[0]) == (pytest.approx(150.0005), pytest.approx(2.2))


def test_catalogues_in_files_of_any_kind(one_tile, tmp_path):
    table = Table({"ra": [150.0005], "dec": [2.2]})
    other = fits.BinTableHDU(Table({"Field Header Card": ["x"]}), name="LDAC_IMHEAD")
    fits.HDUList([fits.PrimaryHDU(), other, fits.BinTableHDU(table, name="LDAC_OBJECTS")]).writeto(tmp_path / "a.cat")
    (tmp_path / "b.txt").write_text("ra dec\n150.0005 2.2\n")
    table.write(tmp_path / "c.vot", format="votable")
    (tmp_path / "d.csv").write_text("ra,dec\n150.0005,2.2\n", encoding="utf-8-sig")  # as spreadsheets write it
    table["ra"], table["dec"] = FK4_PLACE
    table.write(tmp_path / "e.vot", format="votable")
    text = (tmp_path / "e.vot").read_text()
    system = '<COOSYS ID="old" system="eq_FK4" equinox="B1950"/>'
    (tmp_path / "e.vot").write_text(re.sub(r"(<RESOURCE[^>]*>)", rf"\1{system}", text))
    for name in ("a.cat", "b.txt", "c.vot", "d.csv", "e.vot"):
        assert make_cutouts(one_tile, tmp_path / name, tmp_path / f"{name}.h5", size=8).ra == pytest.approx(150.0005)
    fits.PrimaryHDU(noise()).writeto(tmp_path / "image.fits")
    with pytest.raises(OSError, match=r"image\.fits: cannot be read as a catalogue: no table among the HDUs"):
        make_cutouts(one_tile, tmp_path / "image.fits", tmp_path / "d.h5", size=8)


@pytest.mark.parametrize("unit", ["degrees", "DEGREE", "deg", "Degrees"])
def test_units_of_positions_as_archives_write_them(one_tile, tmp_path, unit):
    columns = [fits.Column(name, "D", unit=unit, array=[value]) for name, value in (("ra", 150.0005), ("dec", 2.2))]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "c.fit")
    assert make_cutouts(one_tile, tmp_path / "c.fit", tmp_path / "c.h5", size=8).ra == pytest.approx(150.0005)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Table({"ra": ["north"], "dec": [2.2]}), "column 'ra' holds 'north'"),
        (Table({"ra": [150.0] * u.m, "dec": [2.2]}), "column 'ra' is in 'm'; known are deg"),
        (Table({"ra": [150.0], "dec": [95.0]}), "values of dec such as 95 are not -90 to 90"),
        (Table({"Ra": [150.0], "RA": [150.0], "dec": [2.0]}), "which of them is ra is not clear"),
        (Table({"z": [1.0]}), "no column 'ra'; columns: z"),
        (Table({"ra": [1.0], "dec": [1.0]}, meta={"RADESYS": "GAPPT"}), "RADESYS='GAPPT', EQUINOX='': must be ICRS"),
        ([1, 2], "catalogue of type list: must be a path or a table"),
    ],
)
def test_positions_that_cannot_be_used_are_named(one_tile, tmp_path, table, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_cutouts(one_tile, table, tmp_path / "c.h5", size=8)


def test_objects_without_position_are_left_out_and_counted(tmp_path, caplog):
    write(tmp_path / "HSC-I-9813-4,5.fits", noise(), grid(dec=0.0), hdu=1, name="IMAGE")
    (tmp_path / "objects.csv").write_text("name,ra,dec\nknown,150.0005,0.0005\nunknown,150.0010,\n")
    made = make_cutouts(find_tiles(tmp_path, bands="i"), tmp_path / "objects.csv", tmp_path / "out.h5", size=16)
    assert made.column("name").tolist() == ["known"]
    assert "1 of 2 objects have no position and are left out" in caplog.text


def test_labels_keep_their_values(one_tile, tmp_path):
    ids = [36411448540268123, 36411448540268127]
    table = Table({"ra": [150.0, 150.0005], "dec": [2.2, 2.2], "B/T": [0.25, 0.5], "tile": ["mine", "yours"]})
    table["id"] = MaskedColumn(ids, mask=[False, True])
    table["good"] = MaskedColumn([True, True], mask=[False, True])
    table["when"], table["flags"] = np.array([1, 255], "u1"), np.array([0.5, 1.5], ">f4")
    table["catalogue_tile"] = ["his", "hers"]
    table["pair"], table["place"] = np.ones((2, 2)), SkyCoord([1, 2], [3, 4], unit="deg")
    made = make_cutouts(one_tile, table, tmp_path / "c.h5", size=8)
    assert made.column("B/T").tolist() == [0.25, 0.5]
    assert made.column("id").tolist()[0] == ids[0]
    assert made.column("id")[1] == made.missing_value("id") == -1
    np.testing.assert_array_equal(made.column("good"), [1, np.nan])
    assert made.column("flags").dtype == np.dtype("=f4")
    assert made.column("catalogue_tile").tolist() == ["his", "hers"]
    assert made.column("catalogue_tile_label").tolist() == ["mine", "yours"]
    assert made.column("tile").tolist() == ["9813-4,5"] * 2
    assert not {"pair", "place"} & set(made.columns)
    with pytest.raises(ValueError, match="column 'pair' is not one number or text per object"):
        make_cutouts(one_tile, table, tmp_path / "d.h5", size=8, columns=["pair"])
    for size in (8.0, True, 0):
        with pytest.raises(ValueError, match=f"size={size}: must be (a whole number|1 to)"):
            make_cutouts(one_tile, table, tmp_path / "d.h5", size=size)


@pytest.mark.parametrize(
    ("words", "names", "numbers"),
    [
        (["GALAXY", "Star ", "", "qso"], ("galaxy", "qso", "star"), [0, 2, -1, 1]),
        (["spiral", "merger", "", "spiral"], ("merger", "spiral"), [1, 0, -1, 1]),
    ],
)
def test_classes_by_name_also_of_the_users_own(tmp_path, words, names, numbers):
    place = {"ra": np.zeros(4), "dec": np.zeros(4)}
    made = write_cutouts(tmp_path / "c.h5", np.zeros((4, 1, 8, 8)), bands="i", **place, **{"class": np.array(words)})
    for cutouts in (made, copy_cutouts(made, tmp_path / "d.h5")):
        assert cutouts.class_names() == names
        assert cutouts.column("class").tolist() == numbers


def test_the_page_on_adding_a_survey_works_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "add_your_survey.md").read_text()
    code, description = re.search(r"```python\n(.*?)```", page, re.S)[1], re.search(r"```toml\n(.*?)```", page, re.S)[1]
    for k, band in enumerate(("F606W", "F814W")):
        write(tmp_path / "images" / f"field7_{band}_sci.fits", noise(k), grid(scale=0.05), MAGZERO=26.5)
        write(tmp_path / "images" / f"field7_{band}_wht.fits", np.full((N, N), 100, "f4"), grid(scale=0.05))
    (tmp_path / "objects.csv").write_text("ra,dec,z\n150.0,2.2,0.5\n150.0001,2.2001,0.7\n")
    (tmp_path / "deep.toml").write_text(description)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "('F606W', 'F814W') counts at AB zero-point 27 2\n"
    read = get_survey("deep.toml")
    assert read == get_survey("deep")
    assert register_survey(read) is get_survey("DEEP")
