import pickle

import h5py
import numpy as np
import pytest
from astropy.table import Table

from skylib import CutoutFile, make_cutouts, read_tile, write_cutouts
from skylib.cutouts import slice_cutout


@pytest.fixture
def small(tmp_path):
    flux = np.arange(4 * 2 * 8 * 8, dtype=np.float32).reshape(4, 2, 8, 8)
    labels = {
        "class": np.array([0, 1, 2, -1]),
        "z_spec": np.array([0.1, 0.2, np.nan, 0.4]),
        "name": np.array(list("abcd")),
    }
    return flux, write_cutouts(tmp_path / "small.h5", flux, ra=np.arange(4.0), dec=np.zeros(4), bands="ig", **labels)


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


def test_foreign_layouts(tmp_path):
    flux = np.random.default_rng(0).normal(size=(3, 5, 8, 8)).astype(np.float32)
    with h5py.File(tmp_path / "galaxiesml.h5", "w") as file:
        file["image"], file["specz_redshift"], file["ra"], file["dec"] = flux, [0.1, 0.2, 0.3], np.ones(3), np.ones(3)
    galaxies = CutoutFile(tmp_path / "galaxiesml.h5")
    assert galaxies.bands == tuple("grizy")
    assert galaxies.column("z_spec").tolist() == [0.1, 0.2, 0.3]
    with h5py.File(tmp_path / "original.h5", "w") as file:
        file["cutouts"], file["zspec"] = flux, [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="does not say which bands"):
        CutoutFile(tmp_path / "original.h5")
    original = CutoutFile(tmp_path / "original.h5", bands="yzirg")
    np.testing.assert_array_equal(original.flux(), flux[:, ::-1])
    assert np.isnan(original.ra).all()
    assert original.column("z_spec")[2] == 0.3


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
