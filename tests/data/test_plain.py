"""Values with masks, units, missing entries or other types, given anywhere: the right numbers, or an error that names them."""

import astropy.units as u
import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Column, MaskedColumn, QTable, Table

from skylib import (
    CutoutFile,
    CutoutLoader,
    Embeddings,
    copy_cutouts,
    flux_to_mag,
    linear_probe,
    photoz_metrics,
    search,
    sky_split,
    split_cutouts,
    write_cutouts,
    write_objects,
)
from skylib.bands import mag_to_flux
from skylib.data.plain import as_label

N = 4
PLACE = np.array([150.0, 151.0, 152.0, 153.0])


def cutouts(folder, flux=None, **given):
    place = {"ra": PLACE, "dec": np.zeros(N), "bands": "i", **given}
    return write_cutouts(folder / "c.h5", np.ones((N, 1, 4, 4)) if flux is None else flux, **place)


@pytest.mark.parametrize(
    "ra",
    [
        np.deg2rad(PLACE) * u.rad,
        PLACE / 15 * u.hourangle,
        Column(PLACE * 60, unit="arcmin"),
        SkyCoord(PLACE, 0, unit="deg").ra,
        pd.Series(PLACE),
        PLACE.astype(">f4"),
        ["10:00:00", "10:04:00", "10:08:00", "10:12:00"],
    ],
)
def test_positions_in_any_unit_are_degrees_everywhere(tmp_path, ra):
    assert cutouts(tmp_path, ra=ra).ra == pytest.approx(PLACE)
    embeddings = Embeddings(np.eye(N), ra=ra, dec=np.zeros(N))
    assert embeddings.ra == pytest.approx(PLACE)
    assert sky_split(ra, np.zeros(N), fractions=(1, 0, 0)).tolist() == [0] * N


def test_positions_that_are_none_are_named(tmp_path):
    for wrong, message in (
        ({"ra": PLACE * u.m}, "column 'ra' is in 'm'; known are"),
        ({"ra": PLACE > 151}, "column 'ra' holds bool"),
        ({"dec": PLACE}, "4 values of dec such as 150 are not -90 to 90 degrees"),
    ):
        with pytest.raises(ValueError, match=message):
            cutouts(tmp_path, **wrong)
    known = cutouts(tmp_path, ra=np.ma.array(PLACE, mask=[True, False, False, False]), dec=[0, np.inf, 0, 0])
    assert np.isnan(known.ra).tolist() == [True, False, False, False]
    assert np.isnan(known.dec).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (pd.Series([1, None, 3, 4], dtype="Int64"), [1, np.nan, 3, 4]),
        (pd.Series([1, 2, 3, 4]), [1, 2, 3, 4]),
        (pd.Series(["a", None, "c", "d"]), ["a", "", "c", "d"]),
        (pd.Series(pd.array(["a", None, "c", "d"], "string")), ["a", "", "c", "d"]),
        (pd.Series(pd.Categorical(["x", None, "y", "x"])), ["x", "", "y", "x"]),
        ([1, None, 3, 4], [1, np.nan, 3, 4]),
        ([1, "a", None, 4], ["1", "a", "", "4"]),
        (np.ma.array([1.0, 2, 3, 4], mask=[0, 1, 0, 0]), [1, np.nan, 3, 4]),
        (MaskedColumn([b"a", b"b", b"c", b"d"], mask=[0, 1, 0, 0]), ["a", "", "c", "d"]),
        (np.ma.array([True, False, True, True], mask=[0, 1, 0, 0]), [1, np.nan, 1, 1]),
        (MaskedColumn([2**60, 1, 3, 4], mask=[0, 1, 0, 0]), [2**60, -1, 3, 4]),
        ([1, 2, 3, 4] * u.Jy, [1, 2, 3, 4]),
        (np.array(["2020-01-01"] * 4, "M8[D]"), ["2020-01-01"] * 4),
        (np.array([1, 2, 3, 2**63 + 1], ">u8"), [1, 2, 3, 2**63 + 1]),
    ],
)
def test_labels_of_any_kind_keep_their_values(tmp_path, values, right):
    kept = as_label("x", values)[0]
    np.testing.assert_array_equal(kept, right)
    assert kept.dtype.isnative
    np.testing.assert_array_equal(cutouts(tmp_path, x=values).column("x"), right)
    embeddings = Embeddings(np.eye(N), ra=PLACE, dec=np.zeros(N), columns={"x": values})
    embeddings.save(tmp_path / "e.h5")
    np.testing.assert_array_equal(Embeddings.load(tmp_path / "e.h5").column("x"), right)


def test_fluxes_have_the_unit_that_they_state(tmp_path):
    njy = cutouts(tmp_path, np.full((N, 1, 4, 4), 57.544) * u.nJy)
    assert njy.flux() == pytest.approx(1.0, rel=1e-4)
    assert njy.file_zero_point == pytest.approx(31.4)
    assert cutouts(tmp_path, pixel_scale=(0.2 * u.arcsec).to(u.deg)).pixel_scale == pytest.approx(0.2)
    assert np.isnan(cutouts(tmp_path, np.full((N, 1, 4, 4), np.inf)).flux()).all()
    unknown = np.ma.array(np.ones((N, 1, 4, 4)), mask=np.broadcast_to(np.arange(4) == 1, (N, 1, 4, 4)))
    assert np.isnan(cutouts(tmp_path, unknown).flux()).any((0, 1, 2)).tolist() == [False, True, False, False]
    for wrong, message in (
        ({"flux": np.ones((N, 1, 4, 4)) * u.mag}, "unit of flux='mag' is no unit of flux"),
        ({"flux": np.ones((N, 1, 4, 4), complex)}, "flux holds complex128"),
        ({"flux": np.full((N, 1, 4, 4), "a")}, "flux holds <U1"),
        ({"weight": -np.ones((N, 1, 4, 4))}, "weight holds -1 : must be inverse variances"),
        ({"zero_point": "27"}, "zero_point='27': must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            cutouts(tmp_path, **wrong)


def test_copies_keep_units_and_what_stands_for_missing_values(tmp_path):
    ids = np.ma.array([2**60] * N, mask=[True, False, False, False])
    made = copy_cutouts(cutouts(tmp_path, q=np.arange(N) * u.Jy, id=ids), tmp_path / "d.h5")
    assert made.about("q")["unit"] == b"Jy"
    assert made.missing_value("id") == made.column("id")[0] == -1


def test_magnitudes_of_masked_fluxes_and_of_fluxes_with_a_unit():
    np.testing.assert_array_equal(flux_to_mag(np.ma.array([1.0, 100.0], mask=[True, False])), [np.nan, 22.0])
    np.testing.assert_array_equal(mag_to_flux(np.ma.array([27.0, 22.0], mask=[True, False])), [np.nan, 100.0])
    with pytest.raises(ValueError, match="flux is in nJy: give its value"):
        flux_to_mag([1.0] * u.nJy)


def test_what_no_number_can_be_made_of_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"c\.h5: column 'name' holds text: must be numbers"):
        CutoutLoader(cutouts(tmp_path, name=list("abcd")), batch_size=2, columns=["name"])
    with pytest.raises(ValueError, match="z_spec holds -99: no redshift"):
        photoz_metrics(np.array([0.1, 0.2]), np.array([0.1, -99.0]))
    with pytest.raises(ValueError, match="4 values of dec such as 150 are not -90 to 90 degrees, the first in row 0"):
        sky_split(PLACE, PLACE)


@pytest.mark.parametrize(
    ("split", "right"),
    [
        (["Train", "val", "test ", ""], [0, 1, 2, -1]),
        ([0.0, 1.0, 2.0, np.nan], [0, 1, 2, -1]),
        ([True, False] * 2, None),
    ],
)
def test_a_split_of_ones_own_may_leave_objects_out(tmp_path, split, right):
    made = cutouts(tmp_path, split=split)
    if right is None:  # which part True stands for is not known
        with pytest.raises(ValueError, match="column 'split' holds bool: must be 0 train"):
            split_cutouts(made, size=4)
    else:
        assert split_cutouts(made, size=4).tolist() == right


def foreign(path, **attributes):
    with h5py.File(path, "w") as file:
        file["cutouts"], file["RA"], file["DEC"] = np.ones((N, 2, 4, 4), "f4"), np.deg2rad(PLACE), np.zeros((N, 1))
        file["cutouts"][0, 0, 0, 0] = np.inf
        file["RA"].attrs["units"] = "radian"
        file["class"] = np.array([0, 1, 7, 2], "u1")
        file.attrs.update({"bands": ["i", "g"], **attributes})
    return path


def test_files_of_others_are_read_as_they_state(tmp_path):
    read = CutoutFile(foreign(tmp_path / "f.h5", BUNIT="nanomaggies"))
    assert read.ra == pytest.approx(PLACE)
    assert read.dec.tolist() == [0.0] * N
    assert read.file_zero_point == 22.5
    assert np.isnan(read.flux(0)[0, 1, 0, 0])  # infinite is no data
    assert read.class_names() == ("galaxy", "qso", "star", "3", "4", "5", "6", "7")
    assert CutoutFile(tmp_path / "f.h5", zero_point=30.0).file_zero_point == 30.0
    with pytest.raises(ValueError, match=r"f\.h5: bands=g i is given, but the file states i g"):
        CutoutFile(tmp_path / "f.h5", bands="gi")
    with pytest.raises(ValueError, match=r"g\.h5: unit of flux='blobs' is no flux unit"):
        CutoutFile(foreign(tmp_path / "g.h5", units="blobs"))
    with pytest.raises(ValueError, match=r"h\.h5: pixel_scale=-1\.0: must be 0\.001 to 3600"):
        CutoutFile(foreign(tmp_path / "h.h5", pixel_scale=-1.0))


def test_no_result_overwrites_a_label():
    own = {name: np.arange(6) + 10 * k for k, name in enumerate(("rank", "rank_label", "ra", "vector"), 1)}
    embeddings = Embeddings(np.random.default_rng(0).normal(size=(6, 3)), ra=np.arange(6), dec=np.zeros(6), columns=own)
    found = search(embeddings, [0], k=6)
    row = np.asarray(found["index"])
    assert np.asarray(found["ra"]).tolist() == row.tolist()
    assert np.asarray(found["rank_label"]).tolist() == (row + 20).tolist()
    assert np.asarray(found["rank_label_label"]).tolist() == (row + 10).tolist()
    table = embeddings.to_table()
    assert table["ra"].tolist() == list(range(6))
    assert table["ra_label"].tolist() == own["ra"].tolist()
    assert table["vector"].shape == (6, 3)


def test_masked_vectors_and_targets_are_not_used():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 300)
    vectors = truth[:, None] + rng.normal(0, 0.1, (300, 3))
    embeddings = Embeddings(
        np.ma.array(vectors, mask=np.repeat(np.arange(300)[:, None] < 2, 3, axis=1)),
        ra=np.zeros(300),
        dec=np.zeros(300),
    )
    assert np.isnan(embeddings.vectors[:2]).all()
    some = Embeddings(vectors, ra=np.zeros(300), dec=np.zeros(300))
    hidden = rng.random(300) < 0.3
    wrong = np.ma.array(np.where(hidden, 1 - truth, truth), mask=hidden)  # what is masked would mislead
    result = linear_probe(some, wrong, task="classification", split=np.arange(300) % 3, seed=0)
    assert result.metrics["balanced_accuracy"] == 1.0
    assert result.metrics["n"] == (~hidden & (np.arange(300) % 3 == 2)).sum()
    words = np.where(hidden, "", np.array(["a", "b"])[truth])  # empty text is no class
    again = linear_probe(some, words, task="classification", split=np.arange(300) % 3, seed=0)
    assert again.metrics["n"] == result.metrics["n"]


def test_exported_tables_keep_units_masks_and_positions(tmp_path):
    table = QTable({"index": [0, 1], "ra": [np.pi, 1.0] * u.rad, "dec": [0.0, 0.0] * u.deg, "q": [1.0, 2.0] * u.Jy})
    table["sure"] = MaskedColumn([True, False], mask=[True, False])
    table["id"] = MaskedColumn(np.array(["a5", "b"]), mask=[False, True])
    table["note"] = np.array(["a", None], object)
    paths = {path.suffix: path for path in write_objects(table, tmp_path / "x")}
    for suffix, form in ((".csv", "ascii.csv"), (".vot", "votable"), (".fits", "fits")):
        back = Table.read(paths[suffix], format=form)
        assert back["ra"][0] == pytest.approx(180.0)
        assert np.ma.getmaskarray(back["sure"]).tolist() == [True, False]
        assert back["id"][0] == "a5"
        assert back["id"][1] is np.ma.masked or back["id"][1] == ""
        assert back["note"][1] is np.ma.masked or back["note"][1] == ""
        assert suffix == ".csv" or back["q"].unit == u.Jy
    table["place"] = SkyCoord([1, 2], [3, 4], unit="deg")
    with pytest.raises(ValueError, match="column 'place' is not one number or text per object"):
        write_objects(table, tmp_path / "y")
    with pytest.raises(ValueError, match="the table has no column 'ra'; columns: index"):
        write_objects(Table({"index": [0]}), tmp_path / "y")
    assert not list(tmp_path.glob("y.*"))
