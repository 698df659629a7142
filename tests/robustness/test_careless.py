"""What a careless or hostile user gives: each is read right, left out with a warning, or refused by name."""

import inspect
import json
import pickle

import astropy.units as u
import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import skylib
from skylib import (
    CutoutFile,
    CutoutLoader,
    Embeddings,
    ModelConfig,
    ProbeConfig,
    SearchIndex,
    Survey,
    build_model,
    embed,
    embed_parts,
    feedback_scores,
    knn_probe,
    linear_probe,
    load_model,
    make_cutouts,
    rank_anomalies,
    save_weights,
    search,
    sky_split,
    target_vectors,
    trustworthiness,
    umap_map,
    write_cutouts,
    write_objects,
)
from skylib.data.cutouts.catalogue import read_catalogue
from skylib.data.tiles import TilePaths
from skylib.evaluation.labels import select_labels
from skylib.search.filters import matching_rows

N, EMPTY = 90, [0, 5]
BIG = 36411448540268123  # above 2^53
CONFIG = ModelConfig(bands=("g", "r", "i"), size="nano", image_size=16, decoder_width=32, decoder_depth=1)


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """Cutouts of which two have no data: one of NaN, one of zeros."""
    flux = np.random.default_rng(0).normal(size=(N, 3, 16, 16)).astype(np.float32)
    flux[0], flux[5] = np.nan, 0
    place, labels = {"ra": 150 + np.arange(N) / 100, "dec": np.zeros(N)}, {"class": np.arange(N) % 2}
    return write_cutouts(tmp_path_factory.mktemp("holed") / "c.h5", flux, bands="gri", **place, **labels)


@pytest.fixture(scope="module")
def embedded(model, holed):
    return embed(model, holed)


def test_cutouts_without_data_have_no_vector_and_take_part_in_nothing(tmp_path, model, holed, caplog):
    embed(model, holed).save(tmp_path / "e.h5")
    assert "2 of 90 cutouts have no pixel of data, the first is row 0: their vectors are NaN" in caplog.text
    embeddings = Embeddings.load(tmp_path / "e.h5")
    assert np.flatnonzero(~embeddings.finite).tolist() == EMPTY
    assert np.isfinite(embed(model, holed, rows=np.array([3, 4])).vectors).all()
    for found in (search(embeddings, 1, k=N), rank_anomalies(embeddings)):
        assert not set(EMPTY) & set(found["index"])
        assert len(found) >= N - 3
    split = np.arange(N) // 30
    for probe in (linear_probe, knn_probe):
        assert probe(embeddings, "class", task="classification", split=split).metrics["n"] == 30
    assert "2 of 90 labelled objects have a vector that is not finite and are left out" in caplog.text
    index = SearchIndex(embeddings)
    np.testing.assert_array_equal(feedback_scores(index, [1, 0], [2, 5]), feedback_scores(index, [1], [2]))


def test_a_search_without_standardisation_leaves_the_vectors_as_they_are():
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    vectors[5] = np.nan
    embeddings = Embeddings(vectors, ra=np.zeros(30), dec=np.zeros(30))
    for _ in range(2):
        assert 5 not in search(embeddings, [3], k=30, metric="mse", standardize=False)["index"]
    assert np.isnan(vectors[5]).all()


def test_vectors_that_are_not_finite_are_refused_by_name(embedded, model, holed):
    for wrong, message in (
        (lambda: umap_map(embedded), r"2 of 90 vectors are not finite: leave them out"),
        (lambda: trustworthiness(embedded, np.zeros((N, 2))), "2 of 90 vectors are not finite"),
        (lambda: search(embedded, 0), "a vector is not finite"),
        (lambda: feedback_scores(SearchIndex(embedded), EMPTY), "mark at least one object"),
        (lambda: target_vectors(model, holed.flux([1, 0])), "image 1 has no pixel of data"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


LABELS = {
    "object_id": BIG + np.arange(4),
    "unsigned": np.array([BIG, BIG + 1, 2**63 + 1, 1], np.uint64),
    "z": np.array([0.1, 0.2, 0.3, np.nan], np.float32),
    "name": np.array(["a", "b", "c", "d"]),
    "good": np.array([True, False, True, True]),
}


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"object_id": (BIG, BIG)}, [0]),
        ({"object_id": [BIG + 1, -1, 2.5]}, [1]),
        ({"unsigned": [BIG + 1, -1]}, [1]),
        (f"object_id {BIG}..{BIG + 1}", [0, 1]),
        (f"object_id > {BIG}", [1, 2, 3]),
        ({"object_id": (1, 10**30)}, [0, 1, 2, 3]),
        ("z = 0.1", [0]),
        ({"good": True}, [0, 2, 3]),
        ({"good": 2}, []),
    ],
)
def test_filters_compare_whole_numbers_exactly(where, rows):
    embeddings = Embeddings(np.eye(4), ra=np.zeros(4), dec=np.zeros(4), columns=LABELS)
    assert np.flatnonzero(matching_rows(embeddings, where)).tolist() == rows


def test_filters_of_text_ignore_padding():
    kind = np.array(["QSO ", "STAR", "QSO"])
    embeddings = Embeddings(np.eye(3), ra=np.zeros(3), dec=np.zeros(3), columns={"kind": kind})
    for where in ({"kind": "QSO"}, {"kind": [" QSO", "x"]}, "kind = QSO"):
        assert matching_rows(embeddings, where).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "where",
    [
        {"z": (0.3, 0.2)},
        {"z": (np.nan, 1)},
        {"z": ("0", 1)},
        {"z": np.nan},
        {"z": None},
        {"z": np.ma.masked},
        {"z": [[0.1, 0.2]]},
        {"z": 10**400},
        "z > 0.3 and z < 0.2",
        {"name": (1, 2)},
    ],
)
def test_filters_that_nothing_can_fulfil_are_refused_by_name(where):
    embeddings = Embeddings(np.eye(4), ra=np.zeros(4), dec=np.zeros(4), columns=LABELS)
    with pytest.raises(ValueError, match=r"filter (z|name)="):
        search(embeddings, 0, where=where)


def test_positions_of_minus_999_are_unknown_and_other_impossible_ones_are_named(tmp_path, caplog):
    ra, dec = np.array([150.0, -999, -99, 151]), np.array([2.0, -999, -99, -9999])
    (tmp_path / "c.csv").write_text("ra,dec\n" + "\n".join(f"{a},{d}" for a, d in zip(ra, dec, strict=True)))
    table = read_catalogue(tmp_path / "c.csv")
    cutouts = write_cutouts(tmp_path / "c.h5", np.ones((4, 1, 4, 4)), ra=ra, dec=dec, bands="i")
    for found in (table["ra"], cutouts.ra, Embeddings(np.eye(4), ra=ra, dec=dec).ra):
        np.testing.assert_array_equal(found, [150, np.nan, np.nan, np.nan])
    assert "c.csv: 3 of 4 positions are -999, -999 or the like: taken as unknown" in caplog.text
    (tmp_path / "d.csv").write_text("ra,dec\n150,2\n150,123\n")
    with pytest.raises(
        ValueError, match=r"d\.csv: 1 values of dec such as 123 are not .* row 1: .* leave these rows out"
    ):
        read_catalogue(tmp_path / "d.csv")


@pytest.mark.parametrize(
    "text",
    [
        "ra;dec;z\n150.1;2.2;a,b\n",
        "ra\tdec\tz\n150.1\t2.2\tx\n",
        "# made by hand\n\n# on Monday\nra,dec,z\n150.1,2.2,x\n",
        "# ra,dec,z\n150.1,2.2,0.1\n",
        "\ufeffra,dec\r\n150.1,2.2\r\n",
    ],
)
def test_csv_with_other_delimiters_and_comments_is_read(tmp_path, text):
    (tmp_path / "c.csv").write_bytes(text.encode())
    table = read_catalogue(tmp_path / "c.csv")
    assert [*table["ra"], *table["dec"]] == [150.1, 2.2]


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "NULL", "N/A", "NA", "<NA>", "--"])
def test_missing_values_in_csv_leave_identifiers_and_positions_exact(tmp_path, missing):
    for name, comma in (("c.csv", ","), ("c.dat", " ")):
        rows = f"ra,dec,id,word\n150.5,2.2,{BIG},Na\n{missing or 'nan'},2.2,{missing or 'nan'},{missing or 'nan'}\n"
        (tmp_path / name).write_text(rows.replace(",", comma) if comma == " " else rows.replace("nan", missing))
        table = read_catalogue(tmp_path / name)
        np.testing.assert_array_equal(table["ra"], [150.5, np.nan])
        assert table["id"].tolist() == [BIG, None]
        assert table["word"].tolist() == ["Na", None]


def test_parquet_with_missing_values_and_frames_with_an_index_keep_everything(tmp_path):
    frame = pd.DataFrame({"ra": pd.array([10.5, None], "Float64"), "dec": [2.2, 2.2], "name": ["a", None]})
    frame["id"], frame["kind"] = pd.array([BIG, None], "Int64"), pd.Categorical(["x", None])
    frame.index = pd.Index([BIG, 2], name="object_id")
    frame.to_parquet(tmp_path / "c.parquet")
    for catalogue in (tmp_path / "c.parquet", frame):
        table = read_catalogue(catalogue)
        np.testing.assert_array_equal(table["ra"], [10.5, np.nan])
        for name, wanted in (
            ("id", [BIG, None]),
            ("name", ["a", None]),
            ("kind", ["x", None]),
            ("object_id", [BIG, 2]),
        ):
            assert table[name].tolist() == wanted
    frame.columns = pd.MultiIndex.from_product([["a"], frame.columns])
    with pytest.raises(ValueError, match=r"no column 'ra'; columns: .*\('a', 'ra'\)"):
        read_catalogue(frame)
    with pytest.raises(ValueError, match="catalogue of type dict: must be a path or a table"):
        read_catalogue({"ra": 150.0, "dec": 2.2})


def test_written_cutouts_hold_no_sentinels_and_one_zero_point(tmp_path):
    flux = np.ones((2, 1, 8, 8))
    flux[1, 0, 2, 3], flux[0, 0, 4, 5] = 1e30, np.inf
    made = write_cutouts(tmp_path / "c.h5", flux * u.nJy, bands="g", zero_point=31.4)
    assert np.argwhere(np.isnan(made.flux())).tolist() == [[0, 0, 4, 5], [1, 0, 2, 3]]
    with pytest.raises(ValueError, match=r"zero_point=25\.0 is given, but the unit of flux, nJy, says 31\.40"):
        write_cutouts(tmp_path / "d.h5", flux * u.nJy, bands="g", zero_point=25.0)


def test_classes_that_a_table_calls_nan_are_none(tmp_path):
    words = np.array(["star", "nan", "QSO", "<NA>"])
    made = write_cutouts(tmp_path / "c.h5", np.ones((4, 1, 8, 8)), bands="i", **{"class": words})
    assert made.column("class").tolist() == [2, -1, 1, -1]
    labels = select_labels({"x": np.tile(["a", "b", "nan"], 30)}, "x", np.arange(90) % 9 // 3, "classification")
    assert {str(name) for name in labels.values[labels.used]} == {"a", "b"}
    padded = np.tile(["STAR ", "STAR", "QSO"], 30)
    labels = select_labels({"x": padded}, "x", np.arange(90) % 9 // 3, "classification")
    assert set(labels.values) == {"STAR", "QSO"}


def test_sentinels_are_no_redshifts_and_identifiers_no_classes(caplog):
    split, redshift = np.arange(90) % 3, np.linspace(0.1, 2, 90)
    redshift[[0, 3]] = -99
    assert 0 not in (labels := select_labels({}, redshift, split, "regression")).used
    assert len(labels.used) == 88
    assert "2 of 90 values of target are -99, -999 or the like and are left out" in caplog.text
    with pytest.raises(ValueError, match="holds 9223372036854775809: classes are below"):
        select_labels({}, np.arange(90, dtype="u8") % 2 + 2**63, split, "classification")


@pytest.mark.parametrize("on_images", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "factor"),
    [
        ("zero_point", 31.4, 10**-1.76),
        ("ZEROPOINT", [31.4, 31.4, 31.4], 10**-1.76),
        ("Unit", "nJy", 10**-1.76),
        ("bunit", ["nanomaggy"] * 3, 10**1.8),
    ],
)
def test_calibration_stated_at_the_images_or_the_file_under_its_usual_names(tmp_path, on_images, name, value, factor):
    flux = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype("f4")
    flux[0, 1], flux[2, 0, 3, 4] = -99, 1e30  # as others mark what was not observed
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["cutouts"], file["ra"], file["dec"] = flux, np.zeros(6), np.zeros(6)
    flux[0, 1], flux[2, 0, 3, 4] = np.nan, np.nan
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["kind"] = np.array([b"STAR  ", b"QSO   "] * 3)  # padded as Fortran and FITS do
        file.attrs["bands"] = ["g", "r", "i"]
        (file["cutouts"] if on_images else file).attrs.update({name: value, "PIXSCALE": 0.262})
    cutouts = CutoutFile(tmp_path / "c.h5")
    np.testing.assert_allclose(cutouts.flux(), flux * factor, rtol=1e-5)
    assert cutouts.pixel_scale == 0.262
    assert cutouts.column("kind").tolist() == ["STAR", "QSO"] * 3


def test_a_file_of_cutouts_that_changed_since_it_was_opened_is_refused(tmp_path):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("cutouts", data=np.ones((6, 1, 8, 8)), maxshape=(None, 1, 8, 8))
        file.attrs["bands"] = ["g"]
    cutouts = CutoutFile(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["cutouts"].resize(9, 0)
    with pytest.raises(OSError, match=r"c\.h5: .*shape \(9, 1, 8, 8\), and had \(6, 1, 8, 8\) when"):
        cutouts.flux()


def test_decimal_commas_are_refused_by_name(tmp_path):
    (tmp_path / "c.csv").write_text("ra;dec\n150,1;2,2\n")
    with pytest.raises(ValueError, match=r"c\.csv: column 'ra' holds '150,1'"):
        read_catalogue(tmp_path / "c.csv")


def written(folder, flux=None, **given):
    place = {"ra": 150 + np.arange(4.0), "dec": np.zeros(4), "bands": "gr", **given}
    return write_cutouts(folder / "w.h5", np.ones((4, 2, 4, 4)) if flux is None else flux, **place)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pd.array([BIG, None, BIG + 2, 3], dtype="Int64"), [BIG, -1, BIG + 2, 3]),
        (pd.array([True, None, False, True], dtype="boolean"), [1, np.nan, 0, 1]),
        (pd.array(["a", None, "b", "c"], dtype="string"), ["a", "", "b", "c"]),
        (pd.Categorical(["a", "b", None, "a"]), ["a", "b", "", "a"]),
        (pd.Index([0.5, None, 1, 2]), [0.5, np.nan, 1, 2]),
        (np.array([np.nan, "a", None, pd.NA], object), ["", "a", "", ""]),
        (np.arange(4, dtype="g"), [0, 1, 2, 3]),
    ],
)
def test_what_pandas_calls_missing_is_missing(tmp_path, values, wanted):
    for found in (
        written(tmp_path, lab=values),
        Embeddings(np.eye(4), ra=[0] * 4, dec=[0] * 4, columns={"lab": values}),
    ):
        np.testing.assert_array_equal(found.column("lab"), np.array(wanted))
        assert found.column("lab").dtype != np.longdouble


def test_rows_that_are_masked_are_not_chosen(tmp_path):
    cutouts, mask = written(tmp_path), np.ma.array([True] * 4, mask=[0, 1, 0, 1])
    embeddings = Embeddings(np.eye(4), ra=cutouts.ra, dec=cutouts.dec)
    assert len(cutouts.flux(mask)) == len(embeddings[mask]) == 2
    assert set(SearchIndex(embeddings).search(0, keep=mask)["index"]) == {2}
    rows = np.ma.array([0, 1], mask=[0, 1])
    for use in (cutouts.flux, embeddings.__getitem__, lambda rows: search(embeddings, rows)):
        with pytest.raises(ValueError, match="1 of 2 row numbers are masked"):
            use(rows)
    with pytest.raises(ValueError, match="a vector is not finite"):
        search(embeddings, np.ma.array(np.eye(4)[:1], mask=np.eye(4)[:1] > 0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flux": np.ones((4, 2, 4, 4)) * u.ABmag}, r"unit of flux='mag\(AB\)' is a logarithm"),
        ({"flux": np.ones((4, 2, 0, 0))}, "flux has shape"),
        ({"ra": [1, 2, 3]}, r"ra has shape \(3,\), dec \(4,\)"),
        ({"zero_point": 1e9}, "zero_point=1000000000.0: must be a magnitude, -60 to 60"),
        ({"pixel_scale": "a"}, "pixel_scale='a': must be a finite number"),
        ({"pixel_scale": 1e300}, r"pixel_scale=1e\+300: must be 0.001 to 3600 arcsec"),
        ({"pixel_scale": True}, "pixel_scale=True: must be a finite number"),
        ({"lab": np.array([[1], [2, 3], [], [4]], object)}, r"column 'lab' holds \[1\]"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path, **given)


def test_classes_without_end_have_no_names(tmp_path):
    assert written(tmp_path, **{"class": [np.inf, 0, 1, np.nan]}).class_names() == ("galaxy", "qso", "star")
    with pytest.raises(ValueError, match=f"column 'class' holds {BIG}: classes are 0 to 9999"):
        written(tmp_path, **{"class": [BIG, 0, 1, 2]}).class_names()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vectors": np.eye(4) * 1j}, "vectors hold complex128"),
        ({"vectors": np.eye(4).astype(str)}, "vectors hold <U"),
        ({"vectors": np.empty((4, 0))}, r"vectors have shape \(4, 0\)"),
        ({"columns": {"": np.arange(4)}}, "names that cannot be distinguished: ''"),
        ({"columns": {"a/b": np.arange(4), "a\N{DIVISION SLASH}b": np.arange(4)}}, "cannot be distinguished: 'a/b'"),
    ],
)
def test_embeddings_that_cannot_be_are_named(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        Embeddings(**{"vectors": np.eye(4), "ra": [0] * 4, "dec": [0] * 4, **given}).save(tmp_path / "e.h5")


@pytest.mark.parametrize("vectors", [np.eye(4) * 1j, np.eye(4).astype("S1"), np.ones(4), None])
def test_vectors_in_a_file_are_checked_before_they_are_mapped(tmp_path, vectors):
    Embeddings(np.eye(4), ra=[0] * 4, dec=[0] * 4).save(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        del file["vectors"]
        if vectors is None:
            file.create_dataset("vectors", (10**12, 8), "f4", chunks=(1, 8))
        else:
            file["vectors"] = vectors
    for read in (
        lambda path: Embeddings.load(path, mapped=True),
        lambda path: skylib.search_files([path], np.eye(4)[:1]),
    ):
        with pytest.raises(OSError, match=r"e\.h5: "):
            read(tmp_path / "e.h5")


def test_what_made_embeddings_may_be_numbers_of_numpy(tmp_path):
    meta = {"step": np.int64(3), "place": tmp_path, "scales": np.arange(2)}
    Embeddings(np.eye(4), ra=[0] * 4, dec=[0] * 4, meta=meta).save(tmp_path / "e.h5")
    assert Embeddings.load(tmp_path / "e.h5").meta == {"step": 3, "place": str(tmp_path), "scales": [0, 1]}


def test_targets_and_radii_are_what_they_say(tmp_path):
    embeddings = Embeddings(np.random.default_rng(0).normal(size=(4, 4)), ra=[0, 90, 179, 270], dec=[0] * 4)
    assert set(search(embeddings, [True, False, False, True])["index"]) == {1, 2}  # a mask, not a vector
    big_endian = embeddings.vectors[:1].astype(">f4")
    assert (
        search(embeddings, big_endian)["index"].tolist() == search(embeddings, embeddings.vectors[:1])["index"].tolist()
    )
    assert len(search(embeddings, 0, exclude_radius=np.inf)) == 0
    for wrong in (
        {"exclude_radius": np.nan},
        {"min_separation": -1},
        {"targets": [True, False]},
        {"targets": [None] * 4},
    ):
        with pytest.raises(ValueError, match="exclude_radius=nan|min_separation=-1|type bool|type object"):
            search(embeddings, **{"targets": 0, **wrong})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame([[1, 2, 3]], columns=["ra", "dec", "ra"]), "several columns have one name: ra, dec, ra"),
        ({"ra": [1.0], "dec": [2.0], "x" * 61: [3]}, "FITS takes names of 1 to 60 ASCII characters"),
        ({"ra": [1.0], "dec": [2.0], "é": [3]}, "column 'é': FITS takes names"),
    ],
)
def test_tables_that_cannot_be_exported_are_named_before_a_file_is_written(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        write_objects(table, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:OverflowError converting")
@pytest.mark.parametrize("values", [[True, False, False], [999999, 5, 16959], [2**63 + 5, 5, 7], ["a", "b", "c"]])
def test_what_is_masked_is_masked_in_each_exported_file_and_nothing_else(tmp_path, values):
    for kind in ("i4", "i2") if values[0] == 999999 else ("u8",) if values[0] == 2**63 + 5 else (None,):
        held = np.ma.array(np.array(values).astype(kind or np.array(values).dtype), mask=[False, True, False])
        write_objects(Table({"ra": [1.0, 2.0, 3.0], "dec": [1.0, 2.0, 3.0], "x": held}), tmp_path / "s")
        for ending in ("csv", "vot", "fits"):
            found = Table.read(tmp_path / f"s.{ending}")["x"].tolist()
            assert found[1] in (None, "")
            assert [str(v) for v in found[::2]] in ([str(v) for v in held[::2]], ["1", "0"])


def test_tables_of_any_kind_are_exported(tmp_path):
    for table in (pd.DataFrame({"ra": [1.0], "dec": [2.0], 3: [BIG]}), {"ra": [1.0], "dec": [2.0], "3": [BIG]}):
        write_objects(table, tmp_path / "out")
        assert Table.read(tmp_path / "out.fits")["3"][0] == BIG
    write_objects(Table({"ra": [1.0], "dec": [2.0], "index": ["a}\ncircle(0,0,9)"]}), tmp_path / "out")
    assert (tmp_path / "out.reg").read_text().splitlines()[-1].endswith("# text={a circle(0,0,9)}")


@pytest.mark.parametrize(
    "field",
    [
        {"image_hdu": -1},
        {"mask_hdu": True},
        {"variance_hdu": [[1]]},
        {"mask_planes": [1]},
        {"mask_planes": {"A": -1}},
        {"bad_planes": [1.5]},
        {"mask_file": [1, 2]},
        {"zero_point_keyword": 3},
        {"band_names": ["x"]},
        {"file_names": ""},
        {"file_names": [1]},
        {"trust_header": "no"},
    ],
)
def test_fields_of_a_survey_are_of_their_kind(tmp_path, field):
    good = {"name": "s", "bands": "gr", "file_names": "{tile}_{band}", "zero_point": 25.0}
    with pytest.raises(ValueError, match=f"survey s: {next(iter(field))}="):
        Survey(**good | field)


@pytest.mark.parametrize("field", [{"decoder_depth": 10**9}, {"image_size": 8 * 10**6}, {"decoder_width": 32 * 10**6}])
def test_weights_of_a_model_beyond_all_machines_are_refused_at_once(tmp_path, model, field):
    path = save_weights(model, tmp_path / "w.safetensors", card={})
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    card["model"].update(field)
    save_file(load_file(path), path, metadata={"card": json.dumps(card)})
    with pytest.raises(OSError, match=rf"w\.safetensors: .*{next(iter(field))}="):
        load_model(path, device="cpu")


def test_what_a_file_says_of_its_training_is_checked(tmp_path, model):
    for trained in ("x", {"pixel_scale": "x"}, {"pixel_scale": 0}):
        path = save_weights(model, tmp_path / "w.safetensors", card={"trained_on": trained})
        with pytest.raises(OSError, match=r"w\.safetensors: what it says of the data it was trained on is damaged"):
            load_model(path, device="cpu")


@pytest.mark.parametrize("cell", [0, 3, -1, 1.5, True])
def test_cells_that_healpix_lacks_are_refused_before_it_crashes(cell):
    with pytest.raises(ValueError, match=f"cell={cell}: an nside of HEALPix is a power of two"):
        sky_split(np.arange(9.0), np.zeros(9), cell=cell)


def test_other_options_out_of_range_are_named(tmp_path, model, holed, embedded):
    labelled = Embeddings(embedded.vectors, ra=holed.ra, dec=holed.dec, columns={"t": np.array(["a"] * N)})
    split = np.arange(N) // 30
    for wrong, message in (
        (lambda: embed(model, holed, batch_size=0), "batch_size=0: must be at least 1"),
        (lambda: embed_parts(model, holed, tmp_path, order=-1), "order=-1: must be 0 to 29"),
        (lambda: linear_probe(labelled, "t", task="regression", split=split), "t holds text, such as 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    tiles = [TilePaths("a", {"g": tmp_path / "a.fits"})]
    (tmp_path / "c.csv").write_text("ra,dec\n1,2\n")
    for wrong, message in (({"size": 10**6}, "size=1000000: must be"), ({}, r"c\.csv: is the catalogue itself")):
        with pytest.raises(ValueError, match=message):
            make_cutouts(tiles, tmp_path / "c.csv", tmp_path / "c.csv", **wrong)
    assert (tmp_path / "c.csv").read_text().startswith("ra")


OPTIONS = [
    ("search k", ["3", True, 0, 2.0, None, np.nan]),
    ("search metric", ["Cosine", None]),
    ("search exclude_targets", ["no", 1]),
    ("search exclude_radius", ["1", -1, np.nan]),
    ("search embeddings", ["e.h5", None]),
    ("rank_anomalies seed", [-1, 1.5, "0", True, 2**40]),
    ("feedback_scores strength", [0, "a"]),
    ("embed batch_size", [0, "8", 2.5]),
    ("embed layer", ["1", True, None]),
    ("embed cutouts", ["c.h5", np.eye(3)]),
    ("linear_probe task", ["Classification", None]),
    ("linear_probe split", [None, {}]),
    ("catalogue_probe magnitudes", ["mag_i", [], [3], None]),
    ("label_grid methods", ["linear", ["Linear"], []]),
    ("label_grid n_labels", [[1.5], ["3"], 10, [-1], [True]]),
    ("label_grid seeds", [0, [-1], [0.5]]),
    ("sky_split fractions", ["abc", None, 0.6, (1.0,), (0.5, 0.6, -0.1)]),
    ("sky_split guard", [-1, np.nan, "3"]),
    ("find_label_errors n_folds", [1, "x"]),
    ("redshift_pdf weight_decays", [[], [-1.0], 0.1]),
    ("binned_metrics metric", ["r2", None]),
    ("photoz_metrics outlier_threshold", ["x", -1]),
    ("write_cutouts bands", [[], "ggr", 3, None]),
    ("CutoutLoader size", ["8", 0, 1.5]),
    ("CutoutLoader bands", [[], "gg", 3]),
    ("CutoutLoader shuffle", ["no", 1]),
    ("make_cutouts columns", [[3], 3]),
    ("fit_map min_dist", [-1, "a"]),
    ("load_model device", ["gpu7"]),
    ("write_objects stem", [3, None]),
    ("simulate_sky n_tiles", [0, "1", 1.5]),
    ("ModelConfig ra_dec", ["yes", 1]),
    ("ModelConfig bands", [(), 3, ("g", "g")]),
    ("PretrainConfig steps", ["10", 1.5, True]),
    ("PretrainConfig betas", [(0.9,), "ab", (1.5, 0.9)]),
    ("ProbeConfig rate_factors", [(), ("a",), 1.0]),
    ("Augmentation flips", ["x", 1]),
]
NEEDED = {"targets": 0, "yes": [1], "batch_size": 4, "task": "regression", "target": "z", "method": "linear"}
NEEDED |= {"methods": ["linear"], "n_labels": [4], "seeds": [0], "z_pred": [0.1], "z_spec": [0.1], "metric": len}
NEEDED |= {
    "prediction": [0.1],
    "truth": [0.1],
    "by": [0.1],
    "edges": [0, 1],
    "magnitudes": ["z"],
    "tiles": [TilePaths("a", {})],
}


@pytest.mark.parametrize(("what", "values"), OPTIONS, ids=[what for what, _ in OPTIONS])
def test_an_option_of_another_type_or_out_of_range_is_named(tmp_path, model, holed, embedded, what, values):
    function, option = getattr(skylib, what.split()[0]), what.split()[1]
    names = inspect.signature(function).parameters
    given = {**NEEDED, "embeddings": embedded, "cutouts": holed, "model": model, "split": np.arange(N) // 30}
    given |= {"index": SearchIndex(embedded), "ra": holed.ra, "dec": holed.dec, "flux": np.ones((N, 2, 4, 4))}
    given |= {"catalogue": "c.csv", "out": tmp_path / "o.h5", "path": tmp_path / "o.h5", "table": Table(), "stem": "s"}
    given |= {"directory": tmp_path, "bands": "gri", "device": "cpu", "run_dir_or_checkpoint_or_name": "sky-nano"}
    given = {name: given[name] for name in names if name in given and names[name].default is inspect.Parameter.empty}
    for value in values:
        with pytest.raises(ValueError, match=f"{option}="):
            function(**given | {option: value})


def test_arguments_that_fit_are_taken_whatever_they_are_held_in(embedded):
    for k in (np.int64(3), np.uint8(3)):
        assert len(search(embedded, 1, k=k, exclude_radius=np.float32(0))) == 3
    assert ProbeConfig(rate_factors=[1, 2.0]).rate_factors == (1, 2.0)
    assert len(skylib.label_grid(methods=("linear",), n_labels=np.array([1, 2]), seeds=range(3))) == 6
    assert pickle.loads(pickle.dumps(skylib.photoz_metrics)) is skylib.photoz_metrics


@pytest.mark.parametrize(
    ("prediction", "truth", "wanted"),
    [
        (np.array([0, 1, 2], "u1"), np.array([1, 2, 2], "u1"), (-0.5 - 1 / 3) / 3),
        (np.array([127, 1], "i1"), np.array([127, 127], "i1"), -126 / 128 / 2),
        (pd.array([1.0, 2.0], dtype="Float64"), [1, 2], 0),
        (np.array([1.0, np.nan], object), [1, 2], "masked"),
        (pd.array([1.0, None], dtype="Float64"), [1, 2], "masked"),
        (["1", "2"], [1, 2], "must be numbers"),
        ([True, False], [1, 2], "must be numbers"),
    ],
)
def test_redshifts_of_any_type_are_compared_as_float64(prediction, truth, wanted):
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            skylib.photoz_metrics(prediction, truth)
    else:
        assert skylib.photoz_metrics(prediction, truth)["bias"] == pytest.approx(wanted, abs=1e-12)


def test_classes_are_compared_with_their_like():
    metrics = skylib.classification_metrics
    assert metrics(np.array([b"a", b"b"]), np.array(["a", "b"]))["accuracy"] == 1
    assert metrics(pd.Categorical(["a", "b"]), np.array(["a", "b"]))["accuracy"] == 1
    for wrong, message in ((["0", "1"], "must be of one kind"), (np.array(["0", None], object), "masked")):
        with pytest.raises(ValueError, match=message):
            metrics(np.array(wrong), np.array([0, 1]))


def test_masked_values_take_part_in_no_diagnostic(embedded):
    masked = np.ma.array(np.arange(N) % 3, mask=np.arange(N) % 3 == 0)
    assert 0 not in set(skylib.find_label_errors(embedded, masked)["label"])
    split = np.array(["train", "validation", "test"])[np.arange(N) // 30]
    audit = skylib.nuisance_audit(embedded, {"a": masked * 1.0}, split=np.arange(N) // 30)
    assert audit["n"].tolist() == [20]
    assert knn_probe(embedded, masked, task="classification", split=split).metrics["n"] == 20  # parts by name
    table = skylib.binned_metrics(masked, masked, masked * 1.0, edges=[0, 3], metric=skylib.classification_metrics)
    assert table["n"].tolist() == [60]


def test_marks_given_as_a_mask_or_from_the_end(embedded):
    index, mask = SearchIndex(embedded), np.isin(np.arange(N), [3, N - 1])
    for yes in (mask, mask.tolist(), [3, -1], pd.array([3, N - 1], dtype="Int64")):
        np.testing.assert_array_equal(feedback_scores(index, yes), feedback_scores(index, [3, N - 1]))
    with pytest.raises(IndexError, match=r"yes: row 999 of 90"):
        feedback_scores(index, [999])


def test_bands_of_a_loader_are_known_by_any_of_their_names(tmp_path):
    cutouts = written(tmp_path, np.arange(1.0, 3)[None, :, None, None] * np.ones((4, 2, 4, 4)))
    batch = next(iter(CutoutLoader(cutouts, batch_size=4, bands=["HSC-R", "G", "y"], shuffle=False, device="cpu")))
    assert batch.flux[0, :2, 0, 0].tolist() == [2, 1]


def test_hits_are_cut_at_their_pixel_with_their_scale_and_all_labels(tmp_path):
    image = np.arange(40.0 * 40).reshape(40, 40).astype(np.float32)
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 20.0, "CRPIX2": 20.0}
    head = fits.Header({**cards, "CDELT1": -0.3 / 3600, "CDELT2": 0.3 / 3600})
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, head)]).writeto(tmp_path / "HSC-I-9813-4,5.fits")
    tiles = skylib.find_tiles(tmp_path, bands="i")
    hits = {"ra": [150.0, 150], "dec": [2.0, 2], "tile": ["9813-4,5"] * 2, "row": [10.6, 12], "col": [19.4, 8]}
    for kind in (Table, pd.DataFrame):
        found = skylib.hit_cutouts(
            kind({**hits, "flux": [1, 2], "zero_point": [3, 4]}), tiles, tmp_path / "h.h5", size=4
        )
        assert found.flux()[:, 0, 2, 2].tolist() == [image[11, 19], image[12, 8]]
        assert found.pixel_scale == pytest.approx(0.3)
        assert found.file_zero_point == 27
        assert found.column("flux_label").tolist() == [1, 2]
    with pytest.raises(ValueError, match="row and col of hit 1 are"):
        skylib.hit_cutouts(Table({**hits, "row": [1, np.nan]}), tiles, tmp_path / "h.h5")
    head["CDELT1"] = 1e10
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, head)]).writeto(tiles[0].first, overwrite=True)
    with pytest.raises((OSError, ValueError), match=r"9813-4,5\.fits: .*the sky coordinates are damaged"):
        skylib.read_tile(tiles[0])
