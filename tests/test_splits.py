import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from skylib import sky_split


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    return rng.uniform(150, 150.5, 4000), rng.uniform(2, 2.5, 4000)


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
        sky_split(ra[:50], dec[:50], nside=8)
    with pytest.raises(ValueError, match="sum to 1"):
        sky_split(ra, dec, fractions=(0.5, 0.2, 0.2))


def test_a_probe_cannot_read_a_label_that_only_depends_on_the_place():
    """Embeddings that are the position, labels that are random by cell: chance on test, far above it on training sky."""
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(150, 150.3, 6000), rng.uniform(2, 2.3, 6000)
    split = sky_split(ra, dec)
    cell = (ra * 100).astype(int) * 1000 + (dec * 100).astype(int)
    label = np.random.default_rng(2).integers(0, 2, cell.max() + 1)[cell]
    x = np.stack([ra, dec], axis=1)
    model = KNeighborsClassifier(1).fit(x[split == 0], label[split == 0])
    assert model.score(x[split == 0], label[split == 0]) == 1
    assert model.score(x[split == 2], label[split == 2]) < 0.85
