import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix

from skylib import sky_split, split_cutouts, write_cutouts
from skylib.data.splits import sky_folds, sky_halves


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    return rng.uniform(150, 150.5, 4000), rng.uniform(2, 2.5, 4000)


def test_halves_are_whole_cells_where_they_can(field):
    half, by = sky_halves(*field, cell=1024)
    assert by == "sky cells"
    assert 0.4 < half.mean() < 0.6
    cells = HEALPix(nside=1024, order="nested").lonlat_to_healpix(field[0] * u.deg, field[1] * u.deg)
    assert all(len(set(half[cells == cell])) == 1 for cell in np.unique(cells))
    for ra in (np.full(5, 150.0), np.full(5, np.nan)):  # one cell, or none
        half, by = sky_halves(ra, np.zeros(5))
        assert by == "objects"
        assert sorted(np.bincount(half)) == [2, 3]


def test_parts_are_whole_cells_in_the_fractions_asked_for(field):
    split = sky_split(*field)
    np.testing.assert_allclose(np.bincount(split) / 4000, [0.6, 0.2, 0.2], atol=0.03)
    np.testing.assert_array_equal(split, sky_split(*field))
    assert (split != sky_split(*field, seed=1)).any()


def test_an_object_keeps_its_part_when_the_catalogue_changes(field):
    ra, dec = field
    np.testing.assert_array_equal(sky_split(ra, dec)[::3], sky_split(ra[::3], dec[::3]))


def test_the_guard_leaves_no_pixel_shared(field):
    ra, dec = field
    split = sky_split(ra, dec, guard=8.0)
    sky = SkyCoord(ra, dec, unit="deg")
    assert (split == -1).any()
    for part in (0, 1):
        mine, others = sky[split == part], sky[split > part]
        assert mine.match_to_catalog_sky(others)[1].arcsec.min() >= 8.0


def test_bad_positions_and_fields_too_small(field):
    ra, dec = field
    with pytest.raises(ValueError, match="1 of 4000 positions are not finite"):
        sky_split(np.append(ra[1:], np.nan), dec)
    with pytest.raises(ValueError, match="smaller cells"):
        sky_split(ra[:50], dec[:50], cell=8)
    with pytest.raises(ValueError, match="sum to 1"):
        sky_split(ra, dec, fractions=(0.5, 0.2, 0.2))


def test_whole_tiles_are_dealt_to_the_parts(field):
    ra, dec = field
    tile = np.array([f"{int(r * 10)},{int(d * 10)}" for r, d in zip(ra, dec, strict=True)])
    split = sky_split(ra, dec, cell=tile)
    for name in np.unique(tile):
        assert len(np.unique(split[tile == name])) == 1
    np.testing.assert_allclose(np.bincount(split) / 4000, [0.6, 0.2, 0.2], atol=0.06)
    np.testing.assert_array_equal(split, sky_split(ra, dec, cell=tile))
    three = np.where(ra < 150.2, "a", np.where(ra < 150.3, "b", "c"))
    assert set(sky_split(ra, dec, cell=three)) == {0, 1, 2}
    with pytest.raises(ValueError, match="parts of"):
        sky_split(ra, dec, cell=np.where(ra < 150.2, "a", "b"))


def blank(path, ra, dec, **columns):
    return write_cutouts(path, np.zeros((len(ra), 1, 8, 8)), ra=ra, dec=dec, bands="g", pixel_scale=1.0, **columns)


def test_parts_of_a_file_share_no_pixel(field, tmp_path):
    ra, dec = field[0][:1500], field[1][:1500]
    cutouts = blank(tmp_path / "c.h5", ra, dec)
    use = np.arange(1500) % 3 > 0
    split = split_cutouts(cutouts, use=use)
    assert (split[~use] == -1).all()
    assert set(split) == {-1, 0, 1, 2}
    for part in (0, 1):
        for one in np.flatnonzero(split == part):
            later = split > part
            near = (np.abs(dec[later] - dec[one]) * 3600 < 8) & (
                np.abs(ra[later] - ra[one]) * np.cos(np.deg2rad(dec[one])) * 3600 < 8
            )
            assert not near.any()


def test_the_split_of_a_file_is_honoured(field, tmp_path, caplog):
    ra, dec = field[0][:60], field[1][:60]
    names = np.array(["train", "val", "test"])[np.arange(60) % 3]
    named = split_cutouts(blank(tmp_path / "named.h5", ra, dec, split=names))
    np.testing.assert_array_equal(named, np.arange(60) % 3)
    assert "share pixels" not in caplog.text
    ra[1] = ra[0]
    dec[1] = dec[0]  # one of train on top of one of validation
    np.testing.assert_array_equal(split_cutouts(blank(tmp_path / "n.h5", ra, dec, split=np.arange(60) % 3)), named)
    assert "1 objects may share pixels" in caplog.text
    with pytest.raises(ValueError, match=r"column 'split' holds \[7\]"):
        split_cutouts(blank(tmp_path / "bad.h5", ra, dec, split=np.full(60, 7)))


def test_a_probe_cannot_read_a_label_that_only_depends_on_the_place():
    """Embeddings that are the position, labels that are random by cell: chance on test, far above it on training sky."""

    from skylib import Embeddings, knn_probe, linear_probe
    from skylib.data.splits import _cells

    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(150, 153, 20_000), rng.uniform(0, 3, 20_000)
    split = sky_split(ra, dec, cell=1024)
    label = np.random.default_rng(2).integers(0, 2, 12 * 1024**2)[_cells(ra, dec, 1024)]
    position = Embeddings(np.stack([ra, dec], axis=1), ra=ra, dec=dec)
    at_random = knn_probe(position, label, task="classification", split=rng.permutation(split))
    assert at_random.metrics["balanced_accuracy"] > 0.75  # what a split by objects would have told
    for probe in (knn_probe, linear_probe):
        on_the_sky = probe(position, label, task="classification", split=split)
        assert on_the_sky.metrics["balanced_accuracy"] == pytest.approx(0.5, abs=0.07)


def test_folds_without_positions_are_drawn_at_random():
    none = np.full(50, np.nan)
    assert np.bincount(sky_folds(none, none, n_folds=5)).tolist() == [10] * 5
    none[0] = 1.0
    with pytest.raises(ValueError, match="49 of 50 positions are not finite"):
        sky_folds(none, none)


def test_a_tile_can_be_the_test_part(field, tmp_path):
    ra, dec = field[0][:2000], field[1][:2000]
    tile = np.where(dec > np.median(dec), "1-1,1", "1-0,0")
    cutouts = blank(tmp_path / "tiles.h5", ra, dec, tile=tile)
    split = split_cutouts(cutouts, cell="tile=1-1,1")
    np.testing.assert_array_equal(split == 2, tile == "1-1,1")
    assert {0, 1} <= set(split[tile == "1-0,0"]) <= {-1, 0, 1}
    with pytest.raises(ValueError, match=r"tiles\.h5: no object with tile='9'; values: 1-0,0, 1-1,1"):
        split_cutouts(cutouts, cell="tile=9")
