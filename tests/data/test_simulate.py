import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from skylib import CutoutFile, find_tiles, measure_sky_noise, read_tile, simulate_sky
from skylib.bands import mag_to_flux
from skylib.data.colours import galaxy_colours
from skylib.data.simulate import SEEING, sky_sigma


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """Few objects, so that single ones can be measured."""
    return simulate_sky(tmp_path_factory.mktemp("bright"), n_tiles=1, tile_size=512, n_objects=60, seed=3)


def test_the_same_seed_gives_the_same_sky_and_tiles_do_not_depend_on_their_number(tmp_path):
    one, two, other = (
        simulate_sky(tmp_path / name, n_tiles=n, tile_size=64, n_objects=20 * n, seed=seed)
        for name, n, seed in (("a", 1, 5), ("b", 2, 5), ("c", 1, 6))
    )
    flux = [read_tile(find_tiles(s.tiles, bands="grizy")[0]).flux for s in (one, two, other)]
    np.testing.assert_array_equal(flux[0], flux[1])
    assert (flux[0] != flux[2]).any()
    assert (Table.read(one.catalogue)["ra"] == Table.read(two.catalogue)["ra"][:20]).all()


def test_seeing_and_depth_change_the_images_and_not_the_objects_and_processes_change_nothing(tmp_path):
    settings = {"n_tiles": 2, "tile_size": 128, "n_objects": 20, "bands": "ri", "seed": 5}
    usual = simulate_sky(tmp_path / "usual", **settings)
    worse = simulate_sky(tmp_path / "worse", **settings, seeing=[1.0, 1.5], depth=-1.0)
    same = simulate_sky(tmp_path / "same", **settings, seeing=[1.0, 1.5], depth=-1.0, workers=2)
    assert (Table.read(usual.catalogue)["mag_i"] == Table.read(worse.catalogue)["mag_i"]).all()
    variance = {
        name: np.median(fits.getdata(sky.tiles / "calexp-HSC-R-9813-0,0.fits", "VARIANCE"))
        for name, sky in (("usual", usual), ("worse", worse))
    }
    assert np.sqrt(variance["worse"] / variance["usual"]) == pytest.approx(10**0.4, rel=0.01)
    for name in ("calexp-HSC-R-9813-0,0.fits", "calexp-HSC-R-9813-1,0.fits"):
        np.testing.assert_array_equal(fits.getdata(worse.tiles / name, 1), fits.getdata(same.tiles / name, 1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seeing": [1.0, 1.0, 1.0]}, "seeing=.*one for each of 2 tiles"),
        ({"seeing": 0.0}, "above 0"),
        ({"depth": np.nan}, "depth=nan"),
    ],
)
def test_seeing_and_depth_are_checked(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        simulate_sky(tmp_path, n_tiles=2, tile_size=64, **setting)


def test_files_are_in_the_layout_of_the_survey(sky):
    names = sorted(path.name for path in sky.tiles.iterdir())
    assert names == sorted(
        f"calexp-HSC-{b}-9813-{p}.fits" for p in ("0,0", "1,0") for b in "GRIZY" if (b, p) != ("Y", "1,0")
    )
    with fits.open(sky.tiles / "calexp-HSC-I-9813-1,0.fits") as hdus:
        assert [hdu.name for hdu in hdus[1:4]] == ["IMAGE", "MASK", "VARIANCE"]
        assert hdus[0].header["FLUXMAG0"] == pytest.approx(10 ** (0.4 * 27))
        header = hdus["MASK"].header
        no_data = hdus["MASK"].data & (1 << header["MP_NO_DATA"]) != 0
        np.testing.assert_array_equal(no_data, np.isnan(hdus["IMAGE"].data))
        assert 0.01 < no_data.mean() < 0.05
        assert header["MP_SAT"] == 1


def test_the_catalogue_is_in_its_layout(sky):
    table = Table.read(sky.catalogue)
    wanted = [
        "object_id",
        "ra",
        "dec",
        "class",
        "z_spec",
        *(f"mag_{b}" for b in "grizy"),
        "half_light_radius",
        "rare",
        "tile",
    ]
    assert table.colnames == wanted
    assert len(np.unique(table["object_id"])) == len(table) == 240
    assert set(np.unique(table["class"])) == {0, 1, 2}
    assert np.isnan(np.ma.filled(table["z_spec"], np.nan)[table["class"] == 2]).all()
    faint, brighter = ((table["mag_i"] > low) & (table["mag_i"] < low + 2) for low in (23, 20))
    assert faint.sum() > 1.5 * brighter.sum()


def test_rare_objects_are_there_to_be_found(tmp_path):
    table = Table.read(simulate_sky(tmp_path, n_tiles=1, tile_size=128, bands="i", n_objects=1000).catalogue)
    for kind in ("dwarf", "arc"):
        assert 3 <= (table["rare"] == kind).sum() <= 15
    assert (table["class"][table["rare"] != "none"] == 0).all()


def test_light_and_place_of_single_objects(bright):
    """Aperture flux of isolated objects equals the catalogue's, at the catalogue's position."""
    (paths,) = find_tiles(bright.tiles, bands="grizy")
    tile, table = read_tile(paths), Table.read(bright.catalogue)
    rows, cols = tile.pixel_at(table["ra"], table["dec"])
    apart = np.hypot(rows[:, None] - rows, cols[:, None] - cols) + 1e3 * np.eye(60)
    points = (table["class"] > 0) & (apart.min(axis=1) > 30) & (table["mag_i"] > 18.5) & (table["mag_i"] < 22.5)
    points &= (np.minimum(rows, cols) > 15) & (np.maximum(rows, cols) < 496)
    assert points.sum() >= 3
    y, x = np.mgrid[:512, :512]
    for band, plane in (("g", 0), ("i", 2)):
        for row, col, mag in zip(rows[points], cols[points], table[f"mag_{band}"][points], strict=True):
            near = np.hypot(y - row, x - col) < 13
            light = tile.flux[plane][near]
            assert light.sum() == pytest.approx(float(mag_to_flux(mag)), rel=0.1, abs=10)
            if light.sum() > 50:
                assert np.average(y[near], weights=light.clip(0)) == pytest.approx(row, abs=0.7)
                assert np.average(x[near], weights=light.clip(0)) == pytest.approx(col, abs=0.7)


def test_noise_is_what_the_depth_and_the_variance_say(bright):
    tile = read_tile(find_tiles(bright.tiles, bands="grizy")[0], variance=True)
    measured = measure_sky_noise(tile.flux)
    np.testing.assert_allclose(measured, np.sqrt(np.median(tile.variance, axis=(1, 2))), rtol=0.05)
    np.testing.assert_allclose(measured, [sky_sigma(band, fwhm) for band, fwhm in SEEING.items()], rtol=0.15)


def test_saturated_cores_are_flagged(tmp_path):
    simulate_sky(tmp_path, n_tiles=1, tile_size=256, bands="i", n_objects=400, seed=2)
    with fits.open(tmp_path / "tiles" / "calexp-HSC-I-9813-0,0.fits") as hdus:
        saturated = hdus["MASK"].data & (1 << hdus["MASK"].header["MP_SAT"]) != 0
        assert saturated.any()
        assert (hdus["IMAGE"].data[saturated] == hdus["IMAGE"].data.max()).all()


def test_redshift_reddens_an_elliptical():
    g_r = [-2.5 * np.log10(c[0] / c[1]) for c in (galaxy_colours(0.0, z) for z in (0.0, 0.2, 0.4))]
    assert g_r[0] == pytest.approx(0.75, abs=0.1)  # CWW ellipticals
    assert g_r[0] < g_r[1] < g_r[2]
    assert -2.5 * np.log10(galaxy_colours(3.0, 0.0)[0] / galaxy_colours(3.0, 0.0)[1]) < 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bands": "gu"}, "bands u cannot be simulated: choose among g, r, i, z, y"),
        ({"n_tiles": 0}, "n_tiles=0"),
        ({"tile_size": 10}, "tile_size=10"),
        ({"n_objects": 1, "n_tiles": 2}, "n_objects=1"),
    ],
)
def test_a_wrong_sky_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_sky(tmp_path, **arguments)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file: cannot be written"):
        simulate_sky(tmp_path / "file")


def test_noise_and_range_resemble_real_hsc_pixels(bright, shared_data):
    """Ratios of noise between bands, width of the PSF, and dynamic range, beside the UltraDeep field of COSMOS."""
    real = CutoutFile(shared_data / "hsc_cosmos" / "hsc_cosmos_grizy_64.h5").flux()
    ours = read_tile(find_tiles(bright.tiles, bands="grizy")[0]).flux
    ratio = [(lambda s: s / s[2])(measure_sky_noise(flux)) for flux in (ours, real)]
    np.testing.assert_allclose(np.log(ratio[0] / ratio[1]), 0, atol=np.log(2.2))
    with np.load(shared_data / "hsc_cosmos" / "hsc_cosmos.npz") as file:
        psfs = file["psfs"]
    area = [1 / (p / p.sum()).ravel().dot((p / p.sum()).ravel()) for p in psfs]  # pixels
    mine = [(mag_to_flux({"g": 26.5, "i": 26.2}[b]) / 5 / sky_sigma(b, SEEING[b])) ** 2 for b in "gi"]
    np.testing.assert_allclose(np.log(np.array(mine) / np.array(area)[[0, 2]]), 0, atol=np.log(2.2))
    span = [np.log10(np.nanpercentile(f[..., 2, :, :], 99.9) / measure_sky_noise(f)[2]) for f in (ours, real)]
    assert abs(span[0] - span[1]) < 1.3  # dex; the real cutouts are centred on bright peaks
