"""Compressed images: our decoder gives the pixels that astropy gives, and finds damage."""

import bz2
import gzip
import io
import zlib

import numpy as np
import pytest
from astropy.io import fits

from skylib import find_tiles, read_tile
from skylib.data.rice import decode_rice

GRID = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.2})
GRID.update({"CRPIX1": 20.0, "CRPIX2": 20.0, "CDELT1": -4.6667e-5, "CDELT2": 4.6667e-5, "FLUXMAG0": 63095734448.0194})


def write(path, image, **how):
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, **how)]).writeto(path, overwrite=True)
    return path


def plain(shape, rng):
    return rng.normal(0, 0.05, shape)


def with_gaps(shape, rng):
    image = plain(shape, rng)
    image[rng.random(shape) < 0.1] = np.nan
    image[shape[0] // 2] = np.nan  # a row that cannot be quantised
    image[:, : shape[1] // 3] = 0
    return image


def with_outliers(shape, rng):
    return plain(shape, rng) * 10 ** rng.uniform(-3, 9, shape)  # differences as long as the code allows


@pytest.mark.parametrize("sky", [plain, with_gaps, with_outliers])
@pytest.mark.parametrize("dither", [-1, 1, 2])
@pytest.mark.parametrize("level", [-0.01, 1, 16])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of astropy, for rows of NaN
def test_pixels_are_those_of_astropy(tmp_path, sky, dither, level):
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (3, 31), (7, 64), (5, 701)]:
        image = sky(shape, rng).astype(np.float32)
        seed = int(rng.integers(1, 10000))
        write(tmp_path / "a.fits", image, quantize_level=level, quantize_method=dither, dither_seed=seed)
        with fits.open(tmp_path / "a.fits") as hdus:
            found = decode_rice(hdus[1])
            np.testing.assert_array_equal(found, hdus[1].data)
            assert found.dtype == np.float32


def test_dithering_goes_on_beyond_its_table(tmp_path):
    image = np.random.default_rng(0).normal(size=(3, 25_000)).astype(np.float32)
    write(tmp_path / "a.fits", image, quantize_method=1, dither_seed=9_999)
    with fits.open(tmp_path / "a.fits") as hdus:
        np.testing.assert_array_equal(decode_rice(hdus[1]), hdus[1].data)


@pytest.mark.parametrize(
    "how",
    [
        {"compression_type": "GZIP_2", "quantize_level": 0},
        {"compression_type": "RICE_1", "tile_shape": (8, 8)},
        {"compression_type": "HCOMPRESS_1"},
    ],
)
def test_other_compression_is_left_to_astropy(tmp_path, how):
    image = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    with fits.open(write(tmp_path / "a.fits", image, **how)) as hdus:
        assert decode_rice(hdus[1]) is None


def test_whole_numbers_are_left_to_astropy(tmp_path):
    with fits.open(write(tmp_path / "a.fits", np.arange(200, dtype=np.int32).reshape(10, 20))) as hdus:
        assert decode_rice(hdus[1]) is None


@pytest.mark.parametrize("change", [{}, {"BSCALE": 2.0}, {"BZERO": 1.0}, {"ZBLANK": None}, {"ZNAME1": None}])
def test_flux_is_that_of_astropy_whatever_the_header_says(tmp_path, change):
    image = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    path = write(tmp_path / "calexp-HSC-I-9813-4,5.fits", image, header=GRID)
    with fits.open(path, mode="update", disable_image_compression=True) as hdus:
        for key, value in change.items():
            if value is None:
                hdus[1].header.remove(key, ignore_missing=True)
            else:
                hdus[1].header[key] = value
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(read_tile(find_tiles(tmp_path, bands="i")[0]).flux[0], hdus[1].data)


def test_images_that_are_not_in_a_file_as_they_are_are_left_to_astropy(tmp_path):
    image = np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    assert decode_rice(fits.CompImageHDU(image)) is None
    whole = write(tmp_path / "a.fits", image).read_bytes()
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(whole))
    for source in (io.BytesIO(whole), tmp_path / "b.fits.gz"):
        with fits.open(source) as hdus:
            assert decode_rice(hdus[1]) is None


@pytest.mark.parametrize("ending", ["fits", "fits.fz", "fits.gz", "fits.bz2"])
def test_a_compressed_tile_is_read_whatever_its_file_is_packed_in(tmp_path, ending):
    image = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    whole = write(tmp_path / "whole", image, header=GRID).read_bytes()
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(ending.split(".")[-1], bytes)
    (tmp_path / f"calexp-HSC-I-9813-4,5.{ending}").write_bytes(pack(whole))
    with fits.open(tmp_path / "whole") as hdus:
        np.testing.assert_array_equal(read_tile(find_tiles(tmp_path, bands="i")[0]).flux[0], hdus[1].data)


def test_damage_is_refused_or_decodes_to_other_pixels(tmp_path):
    """Bytes changed anywhere in the data never crash or hang the process, and codes that end too early are refused."""
    rng = np.random.default_rng(0)
    write(tmp_path / "a.fits", rng.normal(size=(8, 200)).astype(np.float32))
    whole = (tmp_path / "a.fits").read_bytes()
    with fits.open(tmp_path / "a.fits") as hdus:
        info = hdus[1].fileinfo()
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(info["datLoc"], len(whole), rng.integers(1, 200))
        damaged[at] = rng.choice([0, 255, rng.integers(256)], at.size)
        (tmp_path / "b.fits").write_bytes(damaged.tobytes())
        with fits.open(tmp_path / "b.fits") as hdus:
            try:
                assert decode_rice(hdus[1]).shape == (8, 200)
            except (ValueError, OSError, zlib.error):
                refused += 1
    assert 50 < refused < 300
