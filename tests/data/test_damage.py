"""Damaged and hostile files: an error that names the file, soon, or the right pixels; never a crash or a wrong value."""

import gzip
import io
import time

import h5py
import numpy as np
import pytest
from astropy.io import fits

from skylib import CutoutFile, make_cutouts, read_tile, write_cutouts
from skylib.data.simulate import tile_wcs
from skylib.data.tiles import TilePaths


def write_tile(path, *, compress=False, checksum=False, edit=None):
    rng, header = np.random.default_rng(0), tile_wcs(0, 80).to_header()
    form = fits.CompImageHDU if compress else fits.ImageHDU
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(),
            form(rng.normal(size=(80, 80)).astype("f4"), header, name="IMAGE"),
            form(np.zeros((80, 80), "i4"), fits.Header({"MP_SAT": 1}), name="MASK"),
            form(np.ones((80, 80), "f4"), header, name="VARIANCE"),
        ]
    )
    if edit:
        edit(hdus)
    hdus.writeto(path, checksum=checksum)
    return TilePaths("x", {"i": path})


def read(paths):
    return read_tile(paths, bad_planes=["SAT"], variance=True)


def replace(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"CRVAL1  =                150.0", b"CRVAL1  =                1z0.0"),
        (b"XTENSION= 'IMAGE   '", b"XTENSIO\xce= 'IMAGE   '"),
        (b"NAXIS1  =                   80", b"NAXIS1  =               800000"),
        (b"BITPIX  =                  -32", b"BITPIX  =                  -31"),
        (b"END" + b" " * 77, b"EMD" + b" " * 77),
        (b"SIMPLE  =", b"SAMPLE  ="),
    ],
)
def test_damaged_headers_name_the_file(tmp_path, old, new):
    paths = write_tile(tmp_path / "a.fits")
    replace(tmp_path / "a.fits", old, new)
    with pytest.raises((OSError, ValueError), match=r"a\.fits: "):
        read(paths)


def test_an_absurd_calibration_is_refused(tmp_path):
    for value in (1e-300, 1e300, float("1e30")):
        (tmp_path / "a.fits").unlink(missing_ok=True)
        paths = write_tile(tmp_path / "a.fits", edit=lambda hdus, v=value: hdus[0].header.update({"FLUXMAG0": v}))
        if value != 1e30:
            with pytest.raises((OSError, ValueError), match=r"a\.fits: .*zero-point"):
                read(paths)


def test_bits_flipped_in_a_compressed_file_are_found_within_seconds(tmp_path):
    whole = io.BytesIO()
    write_tile(tmp_path / "a.fits")
    whole.write(gzip.compress((tmp_path / "a.fits").read_bytes()))
    start, rng = time.monotonic(), np.random.default_rng(1)
    for _ in range(60):
        raw = bytearray(whole.getvalue())
        raw[rng.integers(20, len(raw))] ^= 1 << rng.integers(8)
        (tmp_path / "b.fits.gz").write_bytes(raw)
        with pytest.raises(OSError, match=r"b\.fits\.gz: cannot be read"):
            read(TilePaths("x", {"i": tmp_path / "b.fits.gz"}))
    assert time.monotonic() - start < 60


def test_checksums_of_the_file_are_verified(tmp_path):
    paths = write_tile(tmp_path / "a.fits", checksum=True)
    assert np.isfinite(read(paths).flux).all()
    raw = bytearray((tmp_path / "a.fits").read_bytes())
    raw[12_000] ^= 1
    (tmp_path / "a.fits").write_bytes(raw)
    with pytest.raises(OSError, match=r"a\.fits: .*checksum of HDU 1"):
        read(paths)


def test_a_damaged_tile_is_skipped_in_long_work(tmp_path, tiles, sky, caplog):
    paths = write_tile(tmp_path / "a.fits")
    replace(tmp_path / "a.fits", b"XTENSION= 'IMAGE   '", b"XTENSIO\xce= 'IMAGE   '")
    bad = TilePaths("bad", dict.fromkeys(tiles[0].paths, paths.first))
    made = make_cutouts([*tiles, bad], sky.catalogue, tmp_path / "c.h5", size=8, on_error="skip")
    assert len(made) > 200
    assert "tile bad is skipped" in caplog.text


@pytest.fixture
def stored(tmp_path):
    flux = np.random.default_rng(0).normal(size=(40, 5, 8, 8)).astype("f4")
    return write_cutouts(tmp_path / "c.h5", flux, ra=np.arange(40.0), dec=np.zeros(40), bands="grizy").path


def edit_link(file):
    with h5py.File(file.filename.replace("c.h5", "other.h5"), "w") as other:
        other["pixels"] = np.full((40, 5, 8, 8), 7.0, "f4")
    del file["cutouts"]
    file["cutouts"] = h5py.ExternalLink("other.h5", "pixels")


def edit_huge(file):
    for name in ("ra", "dec", "cutouts"):
        del file[name]
    file.create_dataset("cutouts", (10**12, 5, 8, 8), "f4", chunks=(1, 5, 8, 8))


def edit_virtual(file):
    layout = h5py.VirtualLayout((40, 5, 8, 8), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "pixels", (40, 5, 8, 8))
    del file["cutouts"]
    file.create_virtual_dataset("cutouts", layout)


def edit_external(file):
    del file["cutouts"]
    file.create_dataset("cutouts", (40, 5, 8, 8), "f4", external=[("/etc/passwd", 0, 40 * 5 * 64 * 4)])


def edit_group(file):
    del file["cutouts"]
    file.create_group("cutouts")


def edit_shape(file):
    del file["cutouts"]
    file["cutouts"] = np.zeros((40, 5, 32, 24), "f4")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_link, "link into another file, 'other.h5'"),
        (edit_huge, "more than the file can hold"),
        (edit_virtual, "are in other files"),
        (edit_external, "are in other files"),
        (edit_group, "no dataset 'cutouts'"),
        (edit_shape, "32 x 24 pixels: must be square"),
        (lambda f: f.__setitem__("loop", h5py.SoftLink("/loop")), "leads nowhere"),
        (lambda f: f.attrs.__setitem__("bands", 3), "attribute bands is .*3.*: must be a list"),
        (lambda f: f.attrs.__setitem__("bands", list("qrizy")), "unknown band 'q'"),
        (lambda f: f.attrs.__setitem__("zero_point", "abc"), "zero_point='abc': must be a number"),
    ],
)
def test_odd_files_of_cutouts_are_refused_by_name(stored, edit, message):
    with h5py.File(stored, "r+") as file:
        edit(file)
    with pytest.raises((OSError, ValueError), match=rf"c\.h5: .*{message}"):
        CutoutFile(stored)


def test_pixels_that_cannot_be_decoded_say_which_filter_is_missing(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:  # written as by a compression that is not installed
        file.attrs["bands"], file["ra"], file["dec"] = ["i"], np.zeros(2), np.zeros(2)
        form = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        form.set_chunk((1, 1, 8, 8))
        form.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
        room = h5py.h5s.create_simple((2, 1, 8, 8))
        data = h5py.Dataset(h5py.h5d.create(file.id, b"cutouts", h5py.h5t.IEEE_F32LE, room, form))
        for i in range(2):
            data.id.write_direct_chunk((i, 0, 0, 0), np.ones((1, 8, 8), "f4").tobytes())
    with pytest.raises(OSError, match=r"f\.h5: .*filter 32001 is not installed"):
        CutoutFile(tmp_path / "f.h5").flux([0])


def test_another_zero_point_is_the_same_sky(tmp_path):
    flux = np.random.default_rng(0).normal(size=(4, 2, 8, 8)).astype("f4")
    flux[1, 0] = 0  # a band without data
    place = {"ra": np.zeros(4), "dec": np.zeros(4), "bands": "gi", "weight": np.ones_like(flux)}
    counts = write_cutouts(tmp_path / "a.h5", flux, **place)
    njy = write_cutouts(tmp_path / "b.h5", flux * 10 ** (0.4 * 4.4), zero_point=31.4, **place)
    np.testing.assert_allclose(njy.flux(), counts.flux(), rtol=1e-5)
    np.testing.assert_allclose(njy.weight(), counts.weight() * 10 ** (0.8 * 4.4), rtol=1e-5)
    assert np.isnan(counts.flux(1)[0, 0]).all()
    assert np.isfinite(counts.flux(1)[0, 1]).all()
    with h5py.File(njy.path) as file:
        assert file.attrs["flux_unit"] == b"counts at AB zero-point 31.4"
    with pytest.raises(ValueError, match="zero_point=25 is given, but the file states 31.4"):
        CutoutFile(njy.path, zero_point=25)


def test_rows_as_a_mask_and_padding(stored):
    cutouts = CutoutFile(stored)
    mask = np.arange(40) % 7 == 3
    np.testing.assert_array_equal(cutouts.flux(mask), cutouts.flux(np.flatnonzero(mask)))
    with pytest.raises(IndexError, match=r"c\.h5: a mask of rows of shape \(3,\) for 40 objects"):
        cutouts.flux(np.array([True, False, True]))
    with pytest.raises(IndexError, match="rows of type float64"):
        cutouts.flux(np.array([0.5]))
    padded = cutouts.flux([2], size=12, pad=True)[0]
    np.testing.assert_array_equal(padded[:, 2:10, 2:10], cutouts.flux(2)[0])
    assert np.isnan(padded[:, :2]).all()
