import gzip
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning

from skylib import find_tiles, read_tile
from skylib.data.grids import read_grid
from skylib.data.simulate import tile_wcs
from skylib.data.surveys import HSC
from skylib.data.tiles import Tile, TilePaths


def test_names_of_the_archive_and_of_others(tmp_path):
    for name in (
        "calexp-HSC-I-9813-4,5.fits",
        "calexp-G-9813-4,5.fits.fz",
        "HSC-R-9813-4,5.fits.gz",
        "NB0816-9813-4,5.fits",
    ):
        (tmp_path / name).touch()
        assert HSC.match(name)[0] == "9813-4,5"
    for name in ("catalogue.fits", "det-HSC-G-9813-4,5.fits", "forced_src-HSC-I-9813-4,5.fits"):
        (tmp_path / name).touch()  # what lies beside coadds in the archive
    (tile,) = find_tiles(tmp_path, bands=["NB0816", "i", "g", "y"], min_bands=3)
    assert list(tile.paths) == ["g", "i", "y", "NB0816"]
    assert tile.paths["y"] is None
    assert tile.bands == ("g", "i", "NB0816")


def test_what_was_found_is_said_when_nothing_fits(tmp_path, sky):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}.*no tile found"):
        find_tiles(tmp_path, bands="g")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        find_tiles(tmp_path / "nowhere", bands="g")
    with pytest.raises(FileNotFoundError, match="none of 2 tiles has 1 of the bands u; bands found: g, r, i, z, y"):
        find_tiles(sky.tiles, bands="u")
    with pytest.raises(ValueError, match="min_bands=7: must be 1 to 5"):
        find_tiles(sky.tiles, bands="grizy", min_bands=7)


def test_a_band_found_twice_is_an_error(tmp_path):
    (tmp_path / "calexp-HSC-I-1-0,0.fits").touch()
    (tmp_path / "calexp-I-1-0,0.fits").touch()
    with pytest.raises(ValueError, match="band i twice"):
        find_tiles(tmp_path, bands="i")


def test_tiles_without_all_bands_are_left_out_by_default(sky, tiles, caplog):
    assert len(tiles) == 2
    with caplog.at_level("WARNING"):
        assert len(find_tiles(sky.tiles, bands="grizy")) == 1
    assert "left out 1 of 2 tiles" in caplog.text


def test_reading_a_tile(tiles):
    tile = read_tile(tiles[1], variance=True)
    assert tile.flux.shape == tile.variance.shape == (5, 256, 256)
    assert tile.flux.dtype == np.float32
    assert np.isnan(tile.flux[4]).all()  # no y band
    assert np.isnan(tile.flux[0][:, -6:]).all()  # the strip without data
    assert np.isfinite(tile.flux[0][:, :-6]).all()


def test_mask_planes_become_nan(tiles):
    clean, blanked = read_tile(tiles[0]), read_tile(tiles[0], bad_planes=["DETECTED"])
    gone = np.isnan(blanked.flux) & np.isfinite(clean.flux)
    assert 0.005 < gone.mean() < 0.5
    assert clean.flux[gone].min() > 5 * 0.03
    with pytest.raises(ValueError, match="no mask plane 'COSMIC'; planes there: BAD, SAT"):
        read_tile(tiles[0], bad_planes=["COSMIC"])


def test_sky_positions_round_trip_on_a_tile_that_is_not_square():
    tile = Tile(np.zeros((1, 100, 300), np.float32), ("g",), tile_wcs(0, 256), "x")
    rows, cols = np.array([0.0, 99.0, 50.0]), np.array([0.0, 20.0, 299.0])
    ra, dec = tile.sky_at(rows, cols)
    assert dec[1] > dec[0]  # rows go north
    assert ra[2] < ra[0]  # columns go west
    np.testing.assert_allclose(tile.pixel_at(ra, dec), (rows, cols), atol=1e-6)


def test_positions_of_the_catalogue_lie_on_the_light(sky, tiles):
    tile, table = read_tile(tiles[0]), Table.read(sky.catalogue)
    table = table[(table["tile"] == tile.name) & (table["mag_i"] < 20)]
    rows, cols = (np.round(v).astype(int) for v in tile.pixel_at(table["ra"], table["dec"]))
    inside = (rows > 0) & (rows < 255) & (cols > 0) & (cols < 255)
    assert inside.sum() > 5
    peak = tile.flux[2][rows[inside], cols[inside]]
    assert np.median(peak) > 20 * np.median(np.abs(tile.flux[2]))


def test_truncated_and_foreign_files_are_named(tiles, tmp_path):
    for band, path in tiles[0].paths.items():
        shutil.copy(path, tmp_path / path.name)
        if band == "r":
            (tmp_path / path.name).write_bytes(path.read_bytes()[:50_000])
    broken = find_tiles(tmp_path, bands="grizy")[0]
    with pytest.raises(OSError, match=r"calexp-HSC-R-9813-0,0\.fits: cannot be read"):
        read_tile(broken)
    broken.paths["r"].write_text("not FITS")
    with pytest.raises(OSError, match=r"calexp-HSC-R.*cannot be read"):
        read_tile(broken)


def test_bands_of_different_shape_or_place_are_refused(tiles, tmp_path):
    path = tiles[0].paths["r"]
    with fits.open(path) as hdus:
        hdus["IMAGE"].data = hdus["IMAGE"].data[:-3]
        hdus.writeto(tmp_path / "r.fits", checksum=True)
    with pytest.raises(ValueError, match=r"r\.fits: \(253, 256\) pixels, but .*\(256, 256\)"):
        read_tile(type(tiles[0])("x", tiles[0].paths | {"r": tmp_path / "r.fits"}))
    with pytest.raises(ValueError, match="pixels off the sky position"):
        read_tile(type(tiles[0])("x", tiles[0].paths | {"r": tiles[1].paths["r"]}))


def test_cutout_service_files_with_empty_extensions(shared_data):
    path = shared_data / "hsc_das_cutouts" / "2-cutout-HSC-I-8279-pdr2_wide.fits"
    tile = read_tile(TilePaths("cutout", {"i": path}))
    assert tile.flux.shape == (1, 25, 25)
    assert np.isfinite(tile.flux).all()


def test_a_real_tile_compressed(shared_data):
    tile = read_tile(find_tiles(shared_data / "kids_viking", bands="u g r i z y J H Ks")[0], bad_planes=["SUSPECT"])
    assert tile.bands == ("u", "g", "r", "i", "z", "y", "J", "H", "Ks")
    assert tile.flux.shape == (9, 1300, 1300)
    assert np.isnan(tile.flux).any()


@pytest.mark.parametrize("ending", ["fits.fz", "fits.gz"])
def test_compressed_tiles_read_as_plain_ones_do(tiles, tmp_path, ending):
    plain = read_tile(tiles[0], bad_planes=["DETECTED"], variance=True)
    for path in tiles[0].paths.values():
        with fits.open(path) as hdus:
            if ending == "fits.fz":
                lossless = {"compression_type": "GZIP_2", "quantize_level": 0}
                hdus = fits.HDUList(
                    [hdus[0].copy(), *(fits.CompImageHDU(h.data, h.header, name=h.name, **lossless) for h in hdus[1:])]
                )
            hdus.writeto(tmp_path / path.name.replace("fits", ending))
    packed = read_tile(find_tiles(tmp_path, bands="grizy")[0], bad_planes=["DETECTED"], variance=True)
    np.testing.assert_array_equal(packed.flux, plain.flux)
    np.testing.assert_array_equal(packed.variance, plain.variance)
    np.testing.assert_allclose(packed.sky_at(3, 200), plain.sky_at(3, 200))


@pytest.mark.parametrize("ending", ["fits.fz", "fits.gz"])
def test_truncated_compressed_tiles_are_named(shared_data, tiles, tmp_path, ending):
    if ending == "fits.gz":
        whole = gzip.compress(tiles[0].paths["g"].read_bytes())
    else:
        whole = (shared_data / "kids_viking" / "calexp-KIDS-G-1-0,0.fits.fz").read_bytes()
    path = tmp_path / f"calexp-HSC-G-1-0,0.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    with warnings.catch_warnings(), pytest.raises(OSError, match=rf"{path.name}: cannot be read as a FITS tile"):
        warnings.simplefilter("ignore", AstropyUserWarning)  # astropy says so too
        read_tile(TilePaths("x", {"g": path}))


def write_band(path, *, primary=None, header=None, mask_header=None, name="IMAGE", empty=False):
    """Write a 20 x 30 tile of ones as a survey would; the mask's bit 5 is set in its first row."""
    image = fits.ImageHDU(np.ones((20, 30), np.float32), tile_wcs(0, 256).to_header(), name=name)
    image.header.update(header or {})
    mask = fits.ImageHDU(None if empty else np.zeros((20, 30), np.int32), name="MASK" if name else "")
    variance = fits.ImageHDU(None if empty else np.full((20, 30), 4, np.float32), name="VARIANCE" if name else "")
    if not empty:
        mask.data[0] = 1 << 5
    mask.header.update(mask_header or {})
    if not name:
        for hdu, kind in ((image, "IMAGE"), (mask, "MASK"), (variance, "VARIANCE")):
            hdu.header["EXTTYPE"] = kind
    hdus = fits.HDUList([fits.PrimaryHDU(), image, mask, variance])
    hdus[0].header.update(primary or {})
    hdus.writeto(path)
    return TilePaths("x", {"g": path})


def test_flux_is_brought_to_one_zero_point(tmp_path):
    same = read_tile(write_band(tmp_path / "a.fits", primary={"FLUXMAG0": 63095734448.0194}), variance=True)
    assert (same.flux == 1).all()
    other = read_tile(write_band(tmp_path / "b.fits", primary={"FLUXMAG0": 10 ** (0.4 * 24.5)}), variance=True)
    np.testing.assert_allclose(other.flux, 10, rtol=1e-6)
    np.testing.assert_allclose(other.variance, 400, rtol=1e-6)


def test_long_names_of_mask_planes_and_infinite_pixels(tmp_path):
    paths = write_band(tmp_path / "a.fits", mask_header={"HIERARCH MP_DETECTED_NEGATIVE": 5, "MP_BAD": 0})
    tile = read_tile(paths, bad_planes=["DETECTED_NEGATIVE", "BAD"])
    assert np.isnan(tile.flux[0, 0]).all()
    assert (tile.flux[0, 1:] == 1).all()
    with fits.open(paths.paths["g"], mode="update") as hdus:
        hdus[1].data[3, 4] = np.inf
    assert np.isnan(read_tile(paths).flux[0, 3, 4])


def test_a_mask_or_variance_that_is_not_there_is_told(tmp_path):
    paths = write_band(tmp_path / "a.fits", name="", empty=True)
    assert (read_tile(paths).flux == 1).all()
    with pytest.raises(ValueError, match=r"a\.fits: no variance for an image of \(20, 30\) pixels"):
        read_tile(paths, variance=True)
    with pytest.raises(ValueError, match=r"a\.fits: no mask plane 'BAD'; planes there: none"):
        read_tile(paths, bad_planes=["BAD"])
    whole = write_band(tmp_path / "b.fits", name="", mask_header={"MP_BAD": 5})
    assert np.isnan(read_tile(whole, bad_planes=["BAD"]).flux[0, 0]).all()


def test_downloads_of_the_cutout_service_are_found_by_name(tmp_path):
    for band in "GRI":
        write_band(tmp_path / f"2-cutout-HSC-{band}-8279-pdr2_wide.fits", name="")
    write_band(tmp_path / "cutout-HSC-R-9071-s18a_wide-150.1-2.2.fits", name="")
    found = find_tiles(tmp_path, bands="gri", min_bands=1)
    assert [tile.name for tile in found] == ["2-8279-pdr2_wide", "9071-s18a_wide-150.1-2.2"]
    assert found[0].bands == ("g", "r", "i")
    assert found[1].bands == ("r",)
    assert read_tile(found[1]).flux.shape == (3, 20, 30)


def test_threads_that_ignore_a_warning_leave_the_filters_as_they_were(tiles, monkeypatch):
    header = fits.getheader(next(iter(tiles[0].paths.values())), 1)
    del header["RADESYS*"]
    header["RADECSYS"] = "ICRS"  # of which wcslib warns
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            grids = list(pool.map(read_grid, [header.copy() for _ in range(300)]))  # a warning is an error here
    finally:
        sys.setswitchinterval(interval)
    assert all(grid is not None for grid in grids)
    assert warnings.filters == before
