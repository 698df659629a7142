import numpy as np
import pytest
import torch

from skylib import CutoutLoader, TileLoader, read_tile, write_cutouts


@pytest.fixture
def numbered(tmp_path):
    """20 cutouts of 6 pixels whose every pixel is their number."""
    flux = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None, None], (20, 5, 6, 6))
    return write_cutouts(
        tmp_path / "n.h5", flux, ra=np.arange(20.0), dec=-np.arange(20.0), bands="grizy", label=np.arange(20)
    )


def numbers(batch):
    return batch.flux[:, 0, 0, 0].tolist()


def test_sequential_keeps_order_and_the_rest(numbered):
    batches = list(CutoutLoader(numbered, batch_size=8, shuffle=False, columns=["label"]))
    assert [len(b.flux) for b in batches] == [8, 8, 4]
    assert sum((numbers(b) for b in batches), []) == list(range(20))
    assert batches[1].ra.tolist() == batches[1].columns["label"].tolist() == numbers(batches[1])


def test_shuffled_passes_differ_and_hold_each_object_once(numbered):
    loader = CutoutLoader(numbered, batch_size=5)
    first, second = [n for b in loader for n in numbers(b)], [n for b in loader for n in numbers(b)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [n for b in CutoutLoader(numbered, batch_size=5) for n in numbers(b)]
    assert first != [n for b in CutoutLoader(numbered, batch_size=5, seed=1) for n in numbers(b)]


def test_ranks_share_every_batch(numbered):
    whole = CutoutLoader(numbered, batch_size=4, augment=True)
    parts = [list(whole.shard(rank, 2)) for rank in (0, 1)]
    for one, *shares in zip(list(whole), *parts, strict=True):
        torch.testing.assert_close(torch.cat([share.flux for share in shares]), one.flux)
        assert [n for share in shares for n in numbers(share)] == numbers(one)
    with pytest.raises(ValueError, match="batch_size=4: cannot be divided among 3 processes"):
        whole.shard(0, 3)


def test_a_restored_loader_goes_on_with_the_very_batch(cutouts):
    loader = CutoutLoader(cutouts, batch_size=32, augment=True)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    state, expected = loader.state_dict(), next(stream)
    other = CutoutLoader(cutouts, batch_size=32, augment=True)
    other.load_state_dict(state)
    assert torch.equal(next(iter(other)).flux.nan_to_num(), expected.flux.nan_to_num())


def test_crops_are_central_and_bands_by_name(cutouts):
    loader = CutoutLoader(cutouts, batch_size=4, shuffle=False, size=16, bands=["NB0816", "y", "g"])
    batch = next(iter(loader))
    assert batch.flux.shape == (4, 3, 16, 16)
    assert batch.flux[:, 0].isnan().all()
    np.testing.assert_array_equal(batch.flux[:, 1:].numpy(), cutouts.flux(slice(0, 4))[:, [4, 0], 8:24, 8:24])


def test_what_cannot_be_loaded(numbered):
    with pytest.raises(ValueError, match="batch_size=21: must be 1 to 20"):
        CutoutLoader(numbered, batch_size=21)
    with pytest.raises(ValueError, match="size=7: .* holds cutouts of 6 pixels"):
        CutoutLoader(numbered, batch_size=2, size=7)
    with pytest.raises(ValueError, match="none of u"):
        CutoutLoader(numbered, batch_size=2, bands=["u"])


def test_tile_crops_are_pixels_of_the_tile_at_their_true_position(tiles):
    loader = TileLoader(tiles[:1], batch_size=16, size=20, augment=False)
    batch = next(iter(loader))
    tile = read_tile(tiles[0])
    rows, cols = (np.round(v).astype(int) for v in tile.pixel_at(batch.ra.numpy(), batch.dec.numpy()))
    for image, row, col in zip(batch.flux.numpy(), rows, cols, strict=True):
        np.testing.assert_array_equal(image, tile.flux[:, row - 10 : row + 10, col - 10 : col + 10])


def test_tile_stream_is_endless_mixed_and_restored_exactly(tiles):
    def make():
        return TileLoader(tiles, batch_size=16, size=16, cutouts_per_tile=16, seed=3)

    loader = make()
    stream = iter(loader)
    seen = [next(stream) for _ in range(7)]  # more than one pass over the tiles
    assert 0 < sum(b.flux[:, 4].isnan().all(dim=(1, 2)).float().mean() for b in seen) / 7 < 1  # both tiles in a batch
    state, expected = loader.state_dict(), next(stream)
    other = make()
    other.load_state_dict(state)
    assert torch.equal(next(iter(other)).flux.nan_to_num(), expected.flux.nan_to_num())


def test_bad_tiles_raise_or_are_skipped_and_listed(tiles, tmp_path, caplog):
    (tmp_path / "bad.fits").write_text("no FITS")
    bad = type(tiles[0])("bad", dict.fromkeys(tiles[0].paths, tmp_path / "bad.fits"))
    with pytest.raises(OSError, match=r"bad\.fits"):
        next(iter(TileLoader([bad, tiles[0]], batch_size=4, size=16)))
    loader = TileLoader([bad, tiles[0]], batch_size=4, size=16, resident=1, cutouts_per_tile=4, on_error="skip")
    stream = iter(loader)
    for _ in range(4):
        assert next(stream).flux[:, 0].isfinite().all()
    assert list(loader.skipped) == ["bad"]
    with pytest.raises(OSError, match="none of 1 tiles can be used"):
        next(iter(TileLoader([bad], batch_size=4, size=16, on_error="skip")))
    with pytest.raises(ValueError, match="smaller than size=999"):
        next(iter(TileLoader(tiles, batch_size=4, size=999)))
