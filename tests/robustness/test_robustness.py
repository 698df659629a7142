"""The short forms of what `make robustness` does at length, and disks that are full, gone or read-only."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skylib import CutoutFile, CutoutLoader, Embeddings, make_cutouts, read_tile, simulate_sky, write_cutouts
from skylib.data.cutouts.catalogue import read_catalogue
from skylib.data.cutouts.write import keep_rows
from skylib.data.simulate import tile_wcs
from skylib.data.tiles import TilePaths
from skylib.files import replaced, row_sums, write_json

HERE = Path(__file__).parent
TRIALS = int(os.environ.get("SKYLIB_ROBUSTNESS", "0"))  # of the long form; `make robustness` sets it
QUICK = settings(
    max_examples=TRIALS or 12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not TRIALS
)


def script(name, tmp_path, *arguments):
    command = [sys.executable, "-W", "ignore", str(HERE / name), "--out", str(tmp_path / "found.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return json.loads((tmp_path / "found.json").read_text())


def test_damaged_files_of_every_kind(tmp_path):
    found = script("damage.py", tmp_path, "--trials", str(20 * TRIALS or 300))
    assert len(found) >= 20
    assert sum(kind["tried"] for kind in found.values()) >= 300


def test_killed_work_ends_with_the_same_result(tmp_path):
    short = ("--trials", "4", "--only", "make_cutouts", "embed")
    found = script("kills.py", tmp_path, *(("--trials", str(TRIALS)) if TRIALS else short))
    assert all(kind["same"] == kind["tried"] for kind in found.values())


def test_a_file_of_cutouts_that_was_killed_while_it_was_begun_is_begun_anew(tmp_path, tiles, sky):
    (tmp_path / "c.h5.partial").write_bytes(
        make_cutouts(tiles, sky.catalogue, tmp_path / "a.h5", size=8).path.read_bytes()[:48]
    )
    assert len(make_cutouts(tiles, sky.catalogue, tmp_path / "c.h5", size=8)) > 200


def small(path, n=6, **columns):
    flux = np.random.default_rng(0).normal(size=(n, 2, 8, 8)).astype("f4")
    return write_cutouts(path, flux, ra=np.arange(float(n)), dec=np.zeros(n), bands="gi", **columns)


def test_every_flipped_bit_of_pixels_and_labels_is_found(tmp_path):
    whole = small(tmp_path / "c.h5", z=np.linspace(0, 1, 6), name=np.array([f"object {i}" for i in range(6)]))
    with h5py.File(whole.path) as file:
        places = [file[key].id.get_offset() for key in ("cutouts", "ra", "z", "name")]
    content = whole.path.read_bytes()
    for place in places:
        for at in (0, 9, 30):
            raw = bytearray(content)
            raw[place + at] ^= 4
            whole.path.write_bytes(raw)
            with pytest.raises(OSError, match=r"c\.h5: .*checksum of .* is wrong"):
                file = CutoutFile(whole.path)
                file.flux(size=4)
                file.column("z"), file.column("name")
    raw = bytearray(content)
    raw[places[0] + 3 * 512] ^= 1  # the fourth image
    whole.path.write_bytes(raw)
    file = CutoutFile(whole.path)
    assert np.isfinite(file.flux([0, 2, 5])).all()
    with pytest.raises(OSError, match=r"c\.h5: .*checksum of row 3 is wrong"):
        next(iter(CutoutLoader(file, batch_size=6, device="cpu")))


def test_swapped_and_zeroed_pages_and_checksums_of_older_files_are_found(tmp_path):
    images = np.ones((2, 1, 64, 64), "f4")  # as inverse variances are: pages that a plain sum cannot tell apart
    images[:, :, :4] = images[:, :, 24:28] = 0
    path = write_cutouts(tmp_path / "c.h5", images, ra=[0, 1], dec=[0, 1], bands="i").path
    with h5py.File(path) as file:
        start = file["cutouts"].id.get_offset()
    whole = path.read_bytes()
    pages = [whole[at : at + 4096] for at in range(start, start + 4 * 4096, 4096)]
    zeroed = [bytes(4096), *pages[1:]]
    for damaged in ([pages[1], pages[0], *pages[2:]], zeroed):
        path.write_bytes(whole[:start] + b"".join(damaged) + whole[start + 4 * 4096 :])
        with pytest.raises(OSError, match=r"c\.h5: .*checksum of row 0 is wrong"):
            CutoutFile(path).flux()
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["checksum/cutouts"]
        file["checksum/cutouts"] = row_sums(images, np.uint64)
    np.testing.assert_array_equal(CutoutFile(path).flux(size=32), images[:, :, 16:48, 16:48])
    with h5py.File(path, "r+") as file:
        file["cutouts"][1, 0, 9, 9] = 2
    with pytest.raises(OSError, match=r"c\.h5: .*checksum of row 1 is wrong"):
        CutoutFile(path).flux(size=32)


def test_damaged_images_are_not_copied_to_a_file_with_good_checksums(tmp_path):
    path = small(tmp_path / "c.h5").path
    keep_rows(path, tmp_path / "d.h5", np.array([0, 2, 5]))
    np.testing.assert_array_equal(CutoutFile(tmp_path / "d.h5").flux(), CutoutFile(path).flux([0, 2, 5]))
    with h5py.File(path, "r+") as file:
        file["cutouts"][2, 0, 0, 0] = 7
    with pytest.raises(OSError, match=r"c\.h5: the checksum of row 2 is wrong"):
        keep_rows(path, tmp_path / "e.h5", np.array([0, 2, 5]))


def test_references_and_links_in_groups_are_refused(tmp_path):
    path = small(tmp_path / "c.h5").path
    with h5py.File(path, "r+") as file:
        file["ref"] = np.array([file["ra"].ref] * 6, dtype=h5py.ref_dtype)
    with pytest.raises(ValueError, match=r"c\.h5: 'ref' holds references"):
        CutoutFile(path)
    with h5py.File(path, "r+") as file:
        del file["ref"], file["checksum/cutouts"]
        file["checksum/cutouts"] = h5py.ExternalLink("other.h5", "sums")
    with pytest.raises(ValueError, match=r"c\.h5: 'cutouts' is a link into another file"):
        CutoutFile(path)
    Embeddings(np.eye(3), ra=np.zeros(3), dec=np.zeros(3)).save(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file["columns/x"] = h5py.ExternalLink("c.h5", "ra")
    with pytest.raises(OSError, match=r"e\.h5: .*'x' is a link into another file"):
        Embeddings.load(tmp_path / "e.h5")


@pytest.mark.parametrize("chunks", [None, (2, 2, 8, 8)])
def test_texts_that_would_keep_hdf5_busy_for_ever_are_refused(tmp_path, chunks):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("cutouts", data=np.ones((6, 2, 8, 8), "f4"), chunks=chunks)
        file["ra"] = file["dec"] = np.zeros(6)
        file.attrs["bands"] = ["g", "i"]  # texts of any length
    assert CutoutFile(path).bands == ("g", "i")
    raw = bytearray(path.read_bytes())
    heap = raw.index(b"GCOL\1")
    raw[heap + 64 : heap + 80] = bytes(16)  # after the two texts: free space, of no bytes
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"c\.h5: damaged: the texts at byte \d+ have no end"):
        CutoutFile(path)


def test_files_get_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        small(tmp_path / "c.h5")
        Embeddings(np.eye(2), ra=np.zeros(2), dec=np.zeros(2)).save(tmp_path / "e.h5")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def in_child(work, limit=None):
    """Return what a forked process says of an error, or how it died; files there end at `limit` bytes."""
    source, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if limit:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work()
            said = "returned"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(pipe, said.encode())
        os._exit(0)
    os.close(pipe)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(source) as file:
        return file.read() if status == 0 else f"died of {status}"


def test_a_full_disk_is_named_and_harms_nothing(tmp_path, tiles, sky):
    """Files that cannot grow stand for a disk that is full."""
    e = Embeddings(np.random.default_rng(0).normal(size=(4000, 16)), ra=np.zeros(4000), dec=np.zeros(4000))
    work = {
        "c.h5": lambda path: small(path, n=400),
        "e.h5": e.save,
        "m.h5": lambda path: make_cutouts(tiles, sky.catalogue, path, size=16),
        "j.json": lambda path: write_json(path, ["x" * 80] * 3000),
        "sky": lambda path: simulate_sky(path, n_tiles=1, tile_size=128, bands="i", n_objects=3),
    }
    for name, write in work.items():
        path = tmp_path / name
        if path.suffix:
            path.write_bytes(b"old")
        said = in_child(lambda path=path, write=write: write(path), limit=100_000)
        assert said.startswith("OSError") and str(path) in said, (name, said)  # noqa: PT018
        assert not path.suffix or path.read_bytes() == b"old"
    assert not [p for p in tmp_path.rglob("*.partial") if p.name != "m.h5.partial"]  # the work that is done stays there


def test_folders_that_vanish_or_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/c\.h5: cannot be written"):
        small(tmp_path / "file/c.h5")
    with (
        pytest.raises(OSError, match=r"gone/a\.json: cannot be written"),
        replaced(tmp_path / "gone/a.json") as partial,
    ):
        partial.write_text("x")
        partial.unlink()
        partial.parent.rmdir()
    with pytest.raises(OSError, match=r"/proc/nothing/a\.json: cannot be written"):
        write_json("/proc/nothing/a.json", {})


def test_memory_threads_and_open_files_stay_flat(tmp_path):
    cutouts = small(tmp_path / "c.h5", n=600)

    def one_pass():
        for memory in (2**30, 2**10):
            for _ in CutoutLoader(CutoutFile(cutouts.path), batch_size=50, device="cpu", memory=memory, augment=True):
                pass

    def held():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    one_pass()
    before, peak = held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        one_pass()
    assert held() == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 30_000  # kB


NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12)
VALUES = st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<i2", ">i4", "<i8", "u1", "?", "<U7", "S5"])


@QUICK
@given(data=st.data(), n=st.integers(1, 5), bands=st.sampled_from(["g", "gi", "zr", "grizy"]), size=st.integers(1, 9))
def test_cutouts_of_any_shape_and_labels_of_any_type_come_back(tmp_path_factory, data, n, bands, size):
    floats = st.floats(width=32, allow_nan=False)
    dtype = data.draw(st.sampled_from(["<f4", ">f4", "<f8", "<i4"]))
    elements = st.integers(-1000, 1000) if dtype == "<i4" else floats
    flux = data.draw(arrays.arrays(dtype, (n, len(bands), size, size), elements=elements, fill=st.just(1)))
    reserved = {"ra", "dec", "cutouts", "weight", "progress", "checksum", "class", ".", ".."}
    names = data.draw(
        st.lists(NAMES.filter(lambda x: x not in reserved and "\N{DIVISION SLASH}" not in x), max_size=3, unique_by=str)
    )
    text = st.text("abcé", max_size=3)
    columns = {}
    for name in names:
        kind = data.draw(VALUES)
        elements = {"<U7": text, "S5": st.binary(max_size=5).map(lambda b: bytes(x % 26 + 97 for x in b))}.get(kind)
        columns[name] = data.draw(arrays.arrays(kind, n, elements=elements))
    path = tmp_path_factory.mktemp("h") / "c.h5"
    made = write_cutouts(path, flux, ra=np.arange(n), dec=np.zeros(n), bands=bands, **columns)
    order = [list(bands).index(band) for band in made.bands]
    wanted = flux.astype("f4")[:, order]
    wanted[np.isinf(wanted)] = np.nan  # no data
    empty = (wanted == 0).all(axis=(2, 3))
    wanted[empty & ~empty.all(axis=1, keepdims=True)] = np.nan
    np.testing.assert_array_equal(made.flux(), wanted)
    assert set(made.columns) == set(names)
    for name, values in columns.items():
        values = values.astype(str) if values.dtype.kind in "SU" else values
        np.testing.assert_array_equal(made.column(name), values)


@QUICK
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([">f4", ">f8", ">i2", ">i4", "u1"]),
    form=st.sampled_from(["plain", "fz", "gz"]),
    checksum=st.booleans(),
    text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)
def test_tiles_of_any_shape_and_type_come_back(tmp_path_factory, shape, dtype, form, checksum, text):
    image = (np.random.default_rng(0).normal(size=shape) * 50 + 60).astype(dtype)
    header = tile_wcs(0, 64).to_header()
    header["OBJECT"] = text
    how = {"compression_type": "GZIP_1", "quantize_level": 0}
    hdu = fits.CompImageHDU(image, header, **how) if form == "fz" else fits.ImageHDU(image, header)
    path = tmp_path_factory.mktemp("t") / f"a.fits{'' if form == 'plain' else '.' + form}"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, checksum=checksum)
    np.testing.assert_array_equal(read_tile(TilePaths("x", {"i": path})).flux[0], image.astype("f4"))


@QUICK
@given(data=st.data(), n=st.integers(1, 6), ending=st.sampled_from(["fits", "csv", "ecsv", "parquet", "vot"]))
def test_catalogues_of_any_type_come_back(tmp_path_factory, data, n, ending):
    ra = data.draw(arrays.arrays("f8", n, elements=st.floats(0, 359.99)))
    kind = data.draw(st.sampled_from(["f4", ">f8", "i4", "f8"]))
    dec = data.draw(arrays.arrays("f8", n, elements=st.integers(-89, 89))).astype(kind)
    path = tmp_path_factory.mktemp("c") / f"c.{ending}"
    Table({"ra": ra, "dec": dec, "n": np.arange(n)}).write(path, **({"format": "votable"} if ending == "vot" else {}))
    table = read_catalogue(path)
    np.testing.assert_allclose(table["ra"], ra)
    np.testing.assert_allclose(table["dec"], dec.astype("f8"))
