import json

import numpy as np
import pytest
from pyarrow import parquet

from skylib import (
    Embeddings,
    Interrupted,
    ModelConfig,
    build_model,
    embed,
    embed_parts,
    open_parts,
    search_files,
    write_hats,
)
from skylib.search.index import SearchIndex


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(size="nano", image_size=32, patch_size=16, decoder_width=32, decoder_depth=1))


@pytest.fixture(scope="module")
def folder(model, cutouts, tmp_path_factory):
    """All objects, by two tasks; a cell of order 12 is 52 arcsec wide."""
    folder = tmp_path_factory.mktemp("parts")
    for shard in (1, 0):
        embed_parts(model, cutouts, folder, order=12, shard=shard, n_shards=2, half=False, precision="fp32")
    return folder


def test_parts_made_by_tasks_open_as_one(model, cutouts, folder):
    whole, parts = embed(model, cutouts, precision="fp32"), open_parts(folder)
    rows = parts.column("cutout")
    assert len(list(folder.glob("Norder=12/Npix=*.h5"))) > 2
    assert sorted(rows) == list(range(len(cutouts)))
    np.testing.assert_allclose(np.asarray(parts.vectors), whole.vectors[rows], atol=1e-5)
    np.testing.assert_array_equal(parts.ra, cutouts.ra[rows])
    np.testing.assert_array_equal(parts.column("class"), cutouts.column("class")[rows])
    for some in (slice(3, 90, 2), np.array([200, 0, -1]), rows > 100, 7):
        np.testing.assert_array_equal(parts.vectors[some], np.asarray(parts.vectors)[some])
    assert parts[rows > 100].vectors.shape == ((rows > 100).sum(), model.config.width)
    found = SearchIndex(parts).search(whole.vectors[[5]], k=20)
    streamed = search_files([folder], whole.vectors[[5]], k=20, where={"mag_i": (0, 40)})
    assert rows[found["index"]].tolist() == streamed["cutout"].tolist()


def test_a_hats_catalogue_holds_the_same_objects(folder, tmp_path, caplog):
    """Each file holds the objects of its cell, by their place on the sky; their vectors and labels are unchanged."""
    out, parts = write_hats(folder, tmp_path / "sky"), open_parts(folder)
    about = dict(line.split("=") for line in (out / "hats.properties").read_text().split())
    assert (about["obs_collection"], about["hats_nrows"], about["hats_col_ra"]) == ("sky", "240", "ra")
    cells = (out / "partition_info.csv").read_text().split()
    assert cells[0] == "Norder,Npix"
    schema, seen = parquet.read_schema(out / "dataset" / "_common_metadata"), []
    place = {int(cutout): row for row, cutout in enumerate(parts.column("cutout"))}
    for order, cell in (line.split(",") for line in cells[1:]):
        directory = out / "dataset" / f"Norder={order}" / f"Dir={int(cell) // 10_000 * 10_000}"
        table = parquet.ParquetFile(directory / f"Npix={cell}.parquet").read()
        assert table.schema == schema
        index = table["_healpix_29"].to_numpy()
        assert (np.diff(index) >= 0).all()
        assert (index >> 2 * (29 - int(order)) == int(cell)).all()
        rows = [place[cutout] for cutout in table["cutout"].to_pylist()]
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), parts.vectors[rows])
        np.testing.assert_array_equal(table["ra"].to_numpy(), parts.ra[rows])
        assert table["mag_i"].to_pylist() == parts.column("mag_i")[rows].tolist()
        seen += rows
    assert sorted(seen) == list(range(240))
    assert len(list(out.rglob("*.parquet"))) == len(cells) - 1
    assert not caplog.records


def test_a_hats_catalogue_leaves_out_objects_without_a_position(model, cutouts, tmp_path, caplog):
    e = embed(model, cutouts, rows=slice(0, 6))
    for cell, part in (("17", e[:4]), ("-1", Embeddings(e.vectors[4:], ra=np.full(2, np.nan), dec=np.full(2, np.nan)))):
        part.save(tmp_path / "Norder=0" / f"Npix={cell}.h5")
    (tmp_path / "parts.json").write_text('{"n": 6}')
    write_hats(tmp_path, tmp_path / "sky", vectors=False)
    assert "2 of 6 objects have no position, and are left out" in caplog.text
    assert (tmp_path / "sky/partition_info.csv").read_text() == "Norder,Npix\n0,17\n"
    assert "vector" not in parquet.read_schema(tmp_path / "sky/dataset/_common_metadata").names
    (tmp_path / "Norder=0/Npix=-1.h5").unlink()
    with pytest.raises(ValueError, match="4 of 6 objects are embedded"):
        write_hats(tmp_path, tmp_path / "again")


def test_parts_resume_and_belong_together(model, cutouts, folder, tmp_path):
    path = next(folder.glob("Norder=12/*.h5"))
    times = {file: file.stat().st_mtime_ns for file in folder.glob("Norder=12/*.h5") if file != path}
    path.unlink()
    with pytest.raises(ValueError, match=r"of 240 objects are embedded: run the missing tasks"):
        open_parts(folder)
    (folder / "STOP").touch()
    with pytest.raises(Interrupted, match="start again to resume"):
        embed_parts(model, cutouts, folder, order=12, half=False)
    embed_parts(model, cutouts, folder, order=12, half=False)
    assert path.is_file()
    about = json.loads((folder / "parts.json").read_text())  # older folders do not state the orientations
    (folder / "parts.json").write_text(json.dumps({k: v for k, v in about.items() if k != "all_orientations"}))
    embed_parts(model, cutouts, folder, order=12, half=False)
    assert times == {file: file.stat().st_mtime_ns for file in times}
    with pytest.raises(ValueError, match="made otherwise: pool: 'mean' -> 'max'"):
        embed_parts(model, cutouts, folder, order=12, half=False, pool="max")
    with pytest.raises(ValueError, match="made otherwise: all_orientations: False -> True"):
        embed_parts(model, cutouts, folder, order=12, half=False, all_orientations=True)
    with pytest.raises(ValueError, match="shard=2: must be 0 to 1"):
        embed_parts(model, cutouts, folder, shard=2, n_shards=2)
    with pytest.raises(FileNotFoundError, match="no parts of embeddings"):
        open_parts(tmp_path)
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"bad\.h5: cannot be read as embeddings"):
        search_files([tmp_path / "bad.h5"], np.zeros((1, 3)))
    with pytest.raises(OSError, match=r"bad\.h5: cannot be read as embeddings"):
        Embeddings.load(tmp_path / "bad.h5", mapped=True)
