import os
import pickle
import signal
import subprocess
import sys
import time

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from skylib import CutoutFile, find_tiles, make_cutouts, read_tile, simulate_sky, sky_split, write_cutouts
from skylib.data.cutouts import slice_cutout


@pytest.fixture
def small(tmp_path):
    flux = np.arange(4 * 2 * 8 * 8, dtype=np.float32).reshape(4, 2, 8, 8)
    labels = {
        "class": np.array([0, 1, 2, -1]),
        "z_spec": np.array([0.1, 0.2, np.nan, 0.4]),
        "name": np.array(list("abcd")),
    }
    return flux, write_cutouts(tmp_path / "small.h5", flux, ra=np.arange(4.0), dec=np.zeros(4), bands="ig", **labels)


def test_integers_that_no_one_named_stay_numbers(small, tmp_path):
    flux, _ = small
    kinds = {"kind": np.array([0, 2, -1, 1])}
    assert write_cutouts(tmp_path / "k.h5", flux, ra=np.arange(4.0), dec=np.zeros(4), bands="gi", **kinds).class_names(
        "kind"
    ) == ("0", "1", "2")


def test_bands_of_a_filler_have_no_data(tmp_path):
    flux = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    flux[0, 1], flux[1], flux[2] = -99, -999, 0
    read = write_cutouts(tmp_path / "f.h5", flux, bands="gr").flux()
    assert np.isnan(read[0, 1]).all()
    assert np.isnan(read[1]).all()
    np.testing.assert_array_equal(read[0, 0], flux[0, 0])
    assert (read[2] == 0).all()  # an image of zeros stays as it is, and counts as empty


def test_write_and_read_back_in_wavelength_order(small):
    flux, file = small
    assert file.bands == ("g", "i")  # written as i, g
    np.testing.assert_array_equal(file.flux(), flux[:, ::-1])
    assert file.columns == ("class", "name", "z_spec")
    assert file.column("name").tolist() == list("abcd")
    assert file.class_names() == ("galaxy", "qso", "star")
    assert len(pickle.loads(pickle.dumps(file)).flux()) == 4  # other processes can have it


@pytest.mark.parametrize("index", [[3, 0, 0, 2], slice(1, 3), 2, np.array([True, False, False, True]), []])
def test_any_index_gives_the_rows_asked_for_in_order(small, index):
    flux, file = small
    rows = (
        index
        if isinstance(index, slice)
        else np.arange(4)[
            np.asarray(index, dtype=int if index is not None and not isinstance(index, np.ndarray) else None)
        ]
    )
    wanted = flux[:, ::-1][rows].reshape(-1, 2, 8, 8)
    np.testing.assert_array_equal(file.flux(index), wanted)


def test_rows_and_columns_that_are_not_there(small):
    _, file = small
    with pytest.raises(IndexError, match="row 4 of 4"):
        file.flux([4])
    with pytest.raises(KeyError, match="no column 'mag'.*class, dec, name"):
        file.column("mag")


def test_planes_are_found_by_the_name_of_their_band(tmp_path):
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(3, 5, 8, 8)).astype(np.float32)
    position = {"ra": np.zeros(3), "dec": np.zeros(3)}
    ordered = write_cutouts(tmp_path / "a.h5", flux, bands="grizy", **position)
    permuted = write_cutouts(tmp_path / "b.h5", flux[:, [0, 2, 1, 3, 4]], bands="girzy", **position)
    np.testing.assert_array_equal(ordered.flux(), permuted.flux())
    with h5py.File(tmp_path / "c.h5", "w") as file:  # a file whose planes really lie in another order
        file["cutouts"] = flux[:, [0, 2, 1, 3, 4]]
        file.attrs["bands"] = list("girzy")
    np.testing.assert_array_equal(CutoutFile(tmp_path / "c.h5").flux([2, 0]), flux[[2, 0]])


def test_galaxiesml_layout(tmp_path):
    """As arXiv:2410.00271 and its Zenodo record describe 5x64x64_training_with_morphology.hdf5."""
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(3, 5, 8, 8)).astype(np.float32)
    path = tmp_path / "5x64x64_training_with_morphology.hdf5"
    with h5py.File(path, "w") as file:
        file["image"], file["specz_redshift"] = flux, [0.1, 0.2, 0.3]
        file["ra"], file["dec"], file["object_id"] = [150.0, np.nan, 151.0], np.ones(3), np.arange(3) + 2**60
        for band in "grizy":
            file[f"{band}_cmodel_mag"] = rng.uniform(18, 24, 3)
        file["skymap_id"], file["coord"] = np.arange(3), rng.normal(size=(3, 2))
    galaxies = CutoutFile(path)
    np.testing.assert_array_equal(galaxies.flux(), flux)
    assert galaxies.bands == tuple("grizy")
    assert galaxies.column("z_spec").tolist() == [0.1, 0.2, 0.3]
    assert galaxies.column("object_id")[2] == 2**60 + 2
    assert {"g_cmodel_mag", "coord_0", "coord_1"} < set(galaxies.columns)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(galaxies.column("coord_1"), file["coord"][:, 1])
    with pytest.raises(ValueError, match="1 of 3 positions are not finite: these objects cannot be split on the sky"):
        sky_split(galaxies.ra, galaxies.dec)
    with h5py.File(path, "r+") as file:
        del file["ra"]
    assert np.isnan(CutoutFile(path).ra).all()


def test_multimodal_universe_layout(tmp_path):
    """As the loading script of the data set describes its HSC part; the mask is True where a pixel is good."""
    flux = np.random.default_rng(0).normal(size=(3, 5, 8, 8)).astype(np.float32)
    good = np.ones(flux.shape, bool)
    good[1, 2, 3, 4] = False
    bands = np.tile(np.array([b"hsc-g", b"hsc-r", b"hsc-i", b"hsc-z", b"hsc-y"]), (3, 1))
    path = tmp_path / "001-of-001.hdf5"
    with h5py.File(path, "w") as file:
        file["image_array"], file["image_ivar"], file["image_mask"] = flux, flux**2, good
        file["image_band"], file["image_scale"] = bands, np.full((3, 5), 0.168)
        file["object_id"], file["ra"], file["dec"] = [b"a", b"b", b"c"], np.arange(3.0), np.zeros(3)
    universe = CutoutFile(path)
    assert universe.bands == tuple("grizy")
    np.testing.assert_array_equal(universe.flux(), np.where(good, flux, np.nan))
    np.testing.assert_array_equal(universe.flux([2, 1], size=4), np.where(good, flux, np.nan)[[2, 1], :, 2:6, 2:6])
    np.testing.assert_array_equal(universe.weight(1)[0], flux[1] ** 2)
    assert universe.column("object_id").tolist() == ["a", "b", "c"]
    with h5py.File(path, "r+") as file:
        file["image_band"][1] = bands[1][::-1]
    with pytest.raises(ValueError, match="image_band names 2 different orders of bands"):
        CutoutFile(path)


def test_layout_of_the_original(tmp_path):
    flux = np.random.default_rng(0).normal(size=(3, 5, 8, 8)).astype(np.float32)
    with h5py.File(tmp_path / "original.h5", "w") as file:
        file["cutouts"], file["zspec"], file["class"] = flux, [0.1, 0.2, 0.3], [0, 1, 2]
    with pytest.raises(ValueError, match="does not say which bands"):
        CutoutFile(tmp_path / "original.h5")
    original = CutoutFile(tmp_path / "original.h5", bands="yzirg")
    np.testing.assert_array_equal(original.flux(), flux[:, ::-1])
    assert np.isnan(original.ra).all()
    assert original.column("z_spec")[2] == 0.3
    assert [original.class_names()[c] for c in original.column("class")] == ["galaxy", "qso", "star"]


@pytest.mark.parametrize("storage", [{}, {"chunks": (2, 2, 8, 8)}, {"chunks": (1, 2, 4, 4), "compression": "gzip"}])
def test_rows_come_alike_however_they_are_stored(tmp_path, storage):
    flux = np.random.default_rng(0).normal(size=(40, 2, 8, 8)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("cutouts", data=flux, **storage)
        file.attrs["bands"] = ["i", "g"]
    stored = CutoutFile(tmp_path / "x.h5")
    for rows in ([39, 0, 0, 17, 18, 20, -1], np.arange(40)[::-1], [], [5]):
        np.testing.assert_array_equal(stored.flux(rows, size=6), flux[np.array(rows, int)][:, ::-1, 1:7, 1:7])
    stored.flux(slice(0, 3))[:] = 0  # a copy: neither the file nor what is read next changes
    np.testing.assert_array_equal(stored.flux(slice(0, 3)), flux[:3, ::-1])


def test_a_locked_file_and_the_variable_that_tells_hdf5_not_to_lock(small, tmp_path):
    code = "import sys; from skylib import CutoutFile; print(len(CutoutFile(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path / "small.h5")]
    with h5py.File(tmp_path / "small.h5", "r+"):
        locked = subprocess.run(command, capture_output=True, text=True)
        assert locked.returncode
        assert "set HDF5_USE_FILE_LOCKING=FALSE" in locked.stderr
        free = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}
        )
        assert free.stdout.strip() == "4", free.stderr


def test_bad_files_are_named(tmp_path, small):
    with pytest.raises(FileNotFoundError, match="missing.h5"):
        CutoutFile(tmp_path / "missing.h5")
    whole = (tmp_path / "small.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"cut\.h5: cannot be read as HDF5"):
        CutoutFile(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["spectra"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"other\.h5: unknown layout; it holds spectra"):
        CutoutFile(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="layout='fits'"):
        CutoutFile(tmp_path / "small.h5", layout="fits")


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="column 'z' has shape"):
        write_cutouts(
            tmp_path / "x.h5", np.zeros((3, 1, 4, 4)), ra=np.zeros(3), dec=np.zeros(3), bands="g", z=np.zeros(2)
        )
    with pytest.raises(ValueError, match=r"flux has shape \(3, 1, 4, 4\)"):
        write_cutouts(tmp_path / "x.h5", np.zeros((3, 1, 4, 4)), ra=np.zeros(3), dec=np.zeros(3), bands="gr")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x\.h5: cannot be written"):
        write_cutouts(tmp_path / "file" / "x.h5", np.zeros((1, 1, 4, 4)), ra=[0], dec=[0], bands="g")


def test_slices_at_the_edge_are_padded():
    image = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    np.testing.assert_array_equal(slice_cutout(image, 2, 3, 4), image[:, 0:4, 1:5])
    corner = slice_cutout(image, 0, 6, 4)
    assert np.isnan(corner[:, :2]).all()
    assert np.isnan(corner[:, :, 3]).all()
    np.testing.assert_array_equal(corner[:, 2:, :3], image[:, :2, 4:7])
    assert np.isnan(slice_cutout(image, 50, 50, 4)).all()


def test_cutouts_are_where_the_catalogue_says(sky, tiles, cutouts):
    table = Table.read(sky.catalogue)
    assert len(cutouts) == len(table)
    np.testing.assert_array_equal(cutouts.column("object_id"), table["object_id"])
    for i in (0, 57, 200):
        tile = read_tile(next(t for t in tiles if t.name == cutouts.column("tile")[i]))
        row, col = (int(round(float(v))) for v in tile.pixel_at(cutouts.ra[i], cutouts.dec[i]))
        np.testing.assert_array_equal(cutouts.flux(i)[0], slice_cutout(tile.flux, row, col, 32))
    assert cutouts.pixel_scale == pytest.approx(0.168, rel=1e-3)


def test_edge_objects_padded_or_dropped_and_order_kept(sky, tiles, tmp_path):
    kept = make_cutouts(tiles, sky.catalogue, tmp_path / "drop.h5", size=32, edge="drop")
    table = Table.read(sky.catalogue)
    assert 0.5 * len(table) < len(kept) < len(table)
    assert np.all(np.diff(kept.column("object_id")) > 0)
    g = kept.flux()[:, 0][kept.column("tile") == tiles[0].name]
    assert np.isfinite(g).all()


def test_bad_catalogues(sky, tiles, tmp_path):
    table, out = Table.read(sky.catalogue), tmp_path / "x.h5"
    with pytest.raises(ValueError, match="no column 'dec'; columns: object_id, ra"):
        make_cutouts(tiles, table[["object_id", "ra"]], out)
    with pytest.raises(ValueError, match="no column 'bulge'"):
        make_cutouts(tiles, sky.catalogue, out, columns=["bulge"])
    far = Table({"ra": [330.0, 331.0], "dec": [-2.2, -2.2]})  # the other side of the sky
    with pytest.raises(ValueError, match=r"none of the 2 objects.*covers ra 330\.0000 to 331\.0000.*centred at"):
        make_cutouts(tiles, far, out)
    with pytest.raises(FileNotFoundError, match="no such catalogue"):
        make_cutouts(tiles, tmp_path / "none.fits", out)
    (tmp_path / "bad.fits").write_text("nothing")
    with pytest.raises(OSError, match=r"bad\.fits: cannot be read as a catalogue"):
        make_cutouts(tiles, tmp_path / "bad.fits", out)
    assert not out.exists()


def test_objects_without_data_are_left_out_and_counted(tiles, tmp_path, caplog):
    tile = read_tile(tiles[-1])  # has a strip without data
    rows, cols = np.nonzero(np.isnan(tile.flux).all(axis=0))
    row, col = int(np.median(rows)), int(np.median(cols))
    ra, dec = tile.sky_at(np.array([40, row, 60]), np.array([40, col, 70]))
    catalogue = Table({"ra": ra, "dec": dec, "name": ["a", "gone", "c"], "class": ["star", "qso", "galaxy"]})
    made = make_cutouts(tiles[-1:], catalogue, tmp_path / "c.h5", size=4)
    assert "1 of 3 objects have no pixel of data" in caplog.text
    assert made.column("name").tolist() == ["a", "c"]
    assert made.column("class").tolist() == [2, 0]
    assert made.class_names() == ("galaxy", "qso", "star")
    np.testing.assert_array_equal(made.flux(1)[0], slice_cutout(tile.flux, 60, 70, 4))
    with pytest.raises(ValueError, match="none of the 1 objects has a pixel"):
        make_cutouts(tiles[-1:], catalogue[1:2], tmp_path / "none.h5", size=4)
    assert not (tmp_path / "none.h5").exists()


def test_a_catalogue_partly_outside_says_so(sky, tiles, tmp_path, caplog):
    table = Table.read(sky.catalogue)[["ra", "dec"]][:20]
    table["ra"][:5] += 1.0
    with caplog.at_level("WARNING"):
        cutouts = make_cutouts(tiles, table, tmp_path / "x.h5", size=16)
    assert len(cutouts) == 15
    assert "5 of 20 objects lie outside" in caplog.text


def test_real_hsc_cutouts(shared_data):
    real = CutoutFile(shared_data / "hsc_cosmos" / "hsc_cosmos_grizy_64.h5")
    assert (len(real), real.bands, real.size) == (156, tuple("grizy"), 64)
    assert np.isnan(real.ra).all()


@pytest.mark.parametrize("ending", ["fits", "vot", "csv", "ecsv", "parquet"])
def test_catalogues_in_all_formats(tiles, sky, tmp_path, ending):
    table = Table.read(sky.catalogue)["ra", "dec", "object_id", "z_spec"][:30]
    table.meta.clear()
    table.rename_column("ra", "RA")
    path = tmp_path / f"catalogue.{ending}"
    table.write(path, **({"format": "votable"} if ending == "vot" else {}))
    made = make_cutouts(tiles, path, tmp_path / "x.h5", size=8)
    assert made.column("object_id").tolist() == list(table["object_id"])
    np.testing.assert_allclose(made.ra, table["RA"])
    np.testing.assert_allclose(made.column("z_spec"), np.ma.filled(table["z_spec"], np.nan))


def test_units_and_masked_values_of_a_catalogue(tiles, sky, tmp_path):
    table = Table.read(sky.catalogue)["ra", "dec"][:4]
    radians = Table({"ra": np.deg2rad(table["ra"].data) * u.rad, "dec": np.deg2rad(table["dec"].data) * u.rad})
    radians["class"] = MaskedColumn(["star", "galaxy", "x", "qso"], mask=[0, 0, 1, 0])
    radians["n"] = MaskedColumn([1, 2, 3, 4], mask=[0, 1, 0, 0])
    radians["z"] = MaskedColumn([0.1, 0.2, 0.3, 0.4], mask=[0, 0, 0, 1])
    made = make_cutouts(tiles, radians, tmp_path / "x.h5", size=8)
    np.testing.assert_allclose(made.ra, table["ra"])
    assert made.column("class").tolist() == [2, 0, -1, 1]
    np.testing.assert_array_equal(made.column("n"), [1, np.nan, 3, 4])
    np.testing.assert_array_equal(made.column("z"), [0.1, 0.2, 0.3, np.nan])


def test_of_two_overlapping_tiles_the_more_central_one_is_taken(tiles, tmp_path):
    for path in tiles[0].paths.values():  # one sky in two tiles: columns 0 to 160, and 100 to 256
        for name, columns in (("-0,0", slice(0, 160)), ("-9,9", slice(100, 256))):
            with fits.open(path) as hdus:
                for hdu in hdus[1:]:
                    hdu.data = hdu.data[:, columns]
                    if "CRPIX1" in hdu.header:
                        hdu.header["CRPIX1"] -= columns.start
                hdus.writeto(tmp_path / path.name.replace("-0,0", name), checksum=True)
    both = find_tiles(tmp_path, bands="grizy")
    tile, rows, cols = read_tile(tiles[0]), np.array([128, 128, 128]), np.array([50, 120, 140])
    ra, dec = tile.sky_at(rows, cols)
    made = make_cutouts(both, Table({"ra": ra, "dec": dec}), tmp_path / "x.h5", size=16)
    assert made.column("tile").tolist() == ["9813-0,0", "9813-0,0", "9813-9,9"]
    np.testing.assert_allclose(made.column("col"), [50, 120, 40], atol=1e-3)
    assert made.column("file")[2] == str(tmp_path / "calexp-HSC-G-9813-9,9.fits")
    for image, row, col in zip(made.flux(), rows, cols, strict=True):
        np.testing.assert_array_equal(image, slice_cutout(tile.flux, row, col, 16))


def test_weights_are_inverse_variances(tiles, sky, tmp_path):
    made = make_cutouts(tiles, sky.catalogue, tmp_path / "x.h5", size=8, variance=True)
    assert made.has_weight
    tile = read_tile(tiles[1], variance=True)
    i = int(np.flatnonzero(made.column("tile") == tile.name)[0])
    row, col = (round(float(made.column(name)[i])) for name in ("row", "col"))
    noise, flux = (slice_cutout(image, row, col, 8) for image in (tile.variance, tile.flux))
    np.testing.assert_allclose(made.weight(i)[0], np.where(np.isfinite(flux), 1 / noise, 0), rtol=1e-6)
    assert (made.weight(i)[0, 4] == 0).all()  # no y band
    with pytest.raises(KeyError, match="holds no inverse variances"):
        make_cutouts(tiles, sky.catalogue, tmp_path / "y.h5", size=8).weight()


def test_unreadable_tiles_raise_or_are_skipped_counted_and_listed(tiles, sky, tmp_path, caplog):
    (tmp_path / "calexp-HSC-I-9813-1,0.fits").write_text("no FITS")
    bad = [tiles[0], type(tiles[1])(tiles[1].name, tiles[1].paths | {"i": tmp_path / "calexp-HSC-I-9813-1,0.fits"})]
    whole = make_cutouts(tiles, sky.catalogue, tmp_path / "whole.h5", size=8)
    with pytest.raises(OSError, match=r"calexp-HSC-I-9813-1,0\.fits: cannot be read"):
        make_cutouts(bad, sky.catalogue, tmp_path / "x.h5", size=8)
    assert not (tmp_path / "x.h5").exists()
    part = make_cutouts(bad, sky.catalogue, tmp_path / "x.h5", size=8, on_error="skip")
    kept = whole.column("tile") == tiles[0].name
    assert part.column("object_id").tolist() == whole.column("object_id")[kept].tolist()
    np.testing.assert_array_equal(part.flux(), whole.flux(kept))
    assert f"{(~kept).sum()} of {len(kept)} objects lie in tiles that were skipped" in caplog.text
    with h5py.File(part.path) as file:
        assert file.attrs["skipped_tiles"].astype(str).tolist() == [tiles[1].name]
    with pytest.raises(OSError, match="none of 1 tiles can be read; the first: .*calexp-HSC-I"):
        make_cutouts(bad[1:], sky.catalogue, tmp_path / "y.h5", size=8, on_error="skip")
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["whole.h5", "x.h5"]


def test_killed_at_any_moment_cutting_goes_on_and_reads_no_tile_twice(tmp_path):
    sky = simulate_sky(tmp_path / "sky", n_tiles=4, tile_size=96, bands="gi", n_objects=200, seed=2)
    code = """
import sys, time
import skylib.data.cutouts.make as make
from skylib import find_tiles, make_cutouts
read = make.read_tile
def slow(paths, **how):
    print(paths.name, flush=True)
    time.sleep(0.2)
    return read(paths, **how)
make.read_tile = slow
make_cutouts(find_tiles(sys.argv[1], bands="gi"), sys.argv[2], sys.argv[3], size=16, workers=1)
print("whole", flush=True)
"""
    out = tmp_path / "killed.h5"
    command = [sys.executable, "-c", code, str(sky.tiles), str(sky.catalogue), str(out)]
    printed: list[str] = []
    for reads in (1, 2, 1, None):  # killed while the n-th tile is read
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for n, line in enumerate(process.stdout, 1):
            printed.append(line.strip())
            if n == reads:
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
        assert out.exists() == (reads is None)
    assert printed[-1] == "whole"
    whole = make_cutouts(find_tiles(sky.tiles, bands="gi"), sky.catalogue, tmp_path / "whole.h5", size=16)
    # Each tile once, and again the three that were being read at a kill.
    assert len(printed) - 1 == len(set(whole.column("tile"))) + 3
    np.testing.assert_array_equal(CutoutFile(out).flux(), whole.flux())
    assert CutoutFile(out).column("object_id").tolist() == whole.column("object_id").tolist()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("killed.h5.")]


def test_what_another_call_left_is_not_continued(tiles, sky, tmp_path):
    (tmp_path / "bad.fits").write_text("no FITS")
    bad = [tiles[0], type(tiles[1])(tiles[1].name, tiles[1].paths | {"i": tmp_path / "bad.fits"})]
    with pytest.raises(OSError, match="cannot be read"):
        make_cutouts(bad, sky.catalogue, tmp_path / "x.h5", size=8)
    assert (tmp_path / "x.h5.partial").exists()
    again = make_cutouts(tiles, sky.catalogue, tmp_path / "x.h5", size=10)
    np.testing.assert_array_equal(again.flux(), make_cutouts(tiles, sky.catalogue, tmp_path / "y.h5", size=10).flux())


@pytest.mark.parametrize("band", ["g", "i"])
def test_a_tile_without_a_header_is_skipped_too(tiles, sky, tmp_path, band):
    (tmp_path / "empty.fits").touch()
    bad = [type(tiles[0])(tiles[0].name, tiles[0].paths | {band: tmp_path / "empty.fits"}), tiles[1]]
    with pytest.raises(OSError, match=r"empty\.fits: cannot be read as a FITS tile"):
        make_cutouts(bad, sky.catalogue, tmp_path / "x.h5", size=8)
    part = make_cutouts(bad, sky.catalogue, tmp_path / "x.h5", size=8, on_error="skip")
    assert set(part.column("tile")) == {tiles[1].name}
    with h5py.File(part.path) as file:
        assert file.attrs["skipped_tiles"].astype(str).tolist() == [tiles[0].name]


def test_an_interruption_at_the_very_end_loses_nothing(tiles, tmp_path, monkeypatch):
    tile = read_tile(tiles[-1])
    row, col = (int(np.median(v)) for v in np.nonzero(np.isnan(tile.flux).all(axis=0)))
    ra, dec = tile.sky_at(np.array([40, row]), np.array([40, col]))  # the second without data
    catalogue = Table({"ra": ra, "dec": dec})

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skylib.data.cutouts.resume.keep_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_cutouts(tiles[-1:], catalogue, tmp_path / "x.h5", size=4)
    monkeypatch.setattr("skylib.data.cutouts.make.read_tile", interrupted)  # nothing is read again
    made = make_cutouts(tiles[-1:], catalogue, tmp_path / "x.h5", size=4)
    np.testing.assert_array_equal(made.flux(0)[0], slice_cutout(tile.flux, 40, 40, 4))
    again = make_cutouts(tiles[-1:], catalogue, tmp_path / "x.h5", size=4)  # is there already
    np.testing.assert_array_equal(again.flux(), made.flux())
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]
    with pytest.raises(KeyboardInterrupt):
        make_cutouts(tiles[-1:], catalogue, tmp_path / "x.h5", size=5)


def test_columns_cannot_take_the_names_of_pixels(tiles, sky, tmp_path):
    table = Table.read(sky.catalogue)["ra", "dec"]
    table["weight"] = 1.0
    with pytest.raises(ValueError, match="a column cannot be named weight"):
        make_cutouts(tiles, table, tmp_path / "x.h5", size=4)
    assert make_cutouts(tiles, table, tmp_path / "x.h5", size=4, columns=["ra"]).columns == (
        "col",
        "file",
        "row",
        "tile",
    )
