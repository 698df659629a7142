import itertools
import multiprocessing
import os
import pickle
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits

from skylib import CutoutFile, CutoutLoader, TileLoader, find_tiles, read_tile, simulate_sky, write_cutouts
from skylib.data.augment import Augmentation, change, draw_changes, flip, random_flips
from skylib.data.loading import cropping
from skylib.data.loading import cutouts as cutout_loading
from skylib.device import keyed_generator


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
    uneven = CutoutLoader(numbered, batch_size=6, shuffle=False, augment=True, rows=np.arange(9))  # the last batch: 3
    shares = [list(uneven.shard(rank, 2))[-1] for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([share.flux for share in shares]), list(uneven)[-1].flux)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_processes_together_are_given_the_very_images_that_one_is(cutouts, memory):
    whole = CutoutLoader(cutouts, batch_size=32, augment=True, memory=memory, device="cpu")
    for _ in range(2):  # passes
        for one, *shares in zip(whole, whole.shard(0, 2), whole.shard(1, 2), strict=True):
            for name in ("flux", "ra", "dec"):
                together = torch.cat([getattr(share, name) for share in shares])
                assert torch.equal(together.nan_to_num(-9), getattr(one, name).nan_to_num(-9))


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


@pytest.fixture
def large(tmp_path, monkeypatch):
    """60 numbered cutouts in chunks, of which a loader with memory=0 reads six at a time in blocks of two."""
    flux = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None, None], (60, 2, 6, 6))
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("cutouts", data=flux, chunks=(4, 2, 6, 6))
        file.attrs["bands"], file["ra"], file["dec"] = ["g", "i"], np.arange(60.0), np.zeros(60)
    monkeypatch.setattr(cutout_loading, "_LEAST_WINDOW_BYTES", 6 * 2 * 36 * 4)
    monkeypatch.setattr(cutout_loading, "_BLOCK_BYTES", 2 * 2 * 36 * 4)
    return CutoutFile(tmp_path / "large.h5")


def test_files_larger_than_memory_are_shuffled_in_blocks_each_object_once(large):
    loader = CutoutLoader(large, batch_size=3, memory=0)
    first, second = [[n for b in loader for n in numbers(b)] for _ in range(2)]
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second
    assert first == [n for b in CutoutLoader(large, batch_size=3, memory=0) for n in numbers(b)]
    distance = np.abs(np.diff(first))
    assert 5 < distance.mean() < 30  # 20 if shuffled wholly; 1 if not at all
    for batch in loader:
        assert batch.ra.tolist() == numbers(batch)
    ordered = CutoutLoader(large, batch_size=7, memory=0, shuffle=False, rows=np.arange(59, 0, -2))
    assert [n for b in ordered for n in numbers(b)] == list(range(59, 0, -2))


def test_ranks_share_the_batches_of_large_files_too(large):
    whole = CutoutLoader(large, batch_size=4, memory=0, augment=True)
    parts = [list(whole.shard(rank, 2)) for rank in (0, 1)]
    for one, *shares in zip(whole, *parts, strict=True):
        assert numbers(one) == [n for share in shares for n in numbers(share)]


def test_a_restored_loader_of_a_large_file_goes_on_with_the_very_batch(large):
    for stop in range(1, 20):
        loader = CutoutLoader(large, batch_size=3, memory=0, augment=True)
        stream = iter(loader)
        for _ in range(stop):
            next(stream)
        other = CutoutLoader(large, batch_size=3, memory=0, augment=True)
        other.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
        assert numbers(next(iter(other))) == numbers(next(stream))
        stream.close()
    with pytest.raises(ValueError, match="2 batches shuffled together, here it would be 20; give the same memory"):
        CutoutLoader(large, batch_size=3).load_state_dict(loader.state_dict())


def read_in_child(loader, queue):
    queue.put([n for b in loader for n in numbers(b)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_loaders_work_in_other_processes_and_after_a_fork(large, method, memory):
    loader = CutoutLoader(large, batch_size=3, memory=memory)
    here = [n for b in loader for n in numbers(b)]
    loader = CutoutLoader(large, batch_size=3, memory=memory)
    next(iter(loader))  # the file is open here, and a thread was started
    loader.load_state_dict({"epoch": 0, "next": 0})
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks in general
        child = context.Process(target=read_in_child, args=(loader, queue))
        child.start()
    try:
        # A spawned process has the blocks as they are by default: it sees all objects, in an order of its own.
        there = queue.get(timeout=60)
        assert sorted(there) == sorted(here) if method == "spawn" and memory == 0 else there == here
    finally:
        child.join(60)
        child.kill()


def test_batches_do_not_change_when_later_ones_come(numbered):
    loader = CutoutLoader(numbered, batch_size=4, shuffle=False)
    batches = [batch for _ in range(3) for batch in loader]
    assert sum((numbers(b) for b in batches), []) == 3 * list(range(20))
    kept = batches[0].flux.numpy()
    del batches
    for _ in loader:
        pass
    assert kept[:, 0, 0, 0].tolist() == [0, 1, 2, 3]  # an array of its memory holds it too


def test_weights_of_a_file_are_given_in_units_of_their_band(tmp_path):
    flux = np.ones((8, 2, 4, 4), np.float32)
    flux[0, 0, 0, 0] = np.nan
    weight = np.ones_like(flux) * np.array([100.0, 3.0])[:, None, None]
    weight[1, 1] = 6
    file = write_cutouts(tmp_path / "w.h5", flux, ra=np.zeros(8), dec=np.zeros(8), bands="gi", weight=weight)
    batch = next(iter(CutoutLoader(file, batch_size=8, shuffle=False, weight=True)))
    expected = np.ones_like(flux)
    expected[0, 0, 0, 0], expected[1, 1] = 0, 2
    np.testing.assert_allclose(batch.weight.numpy(), expected)
    assert next(iter(CutoutLoader(file, batch_size=8))).weight is None
    missing = next(iter(CutoutLoader(file, batch_size=8, shuffle=False, weight=True, bands=["i", "y"])))
    assert (missing.weight[:, 1] == 0).all()


def test_weights_of_tiles_turn_with_their_pixels(tiles):
    loader = TileLoader(tiles[:1], batch_size=64, size=16, variance=True)
    batch, tile = next(iter(loader)), read_tile(tiles[0], variance=True)
    value = np.nanmedian(tile.variance[0]) / tile.variance[0]
    # In the simulated sky, as in HSC's, noise grows with flux: each pixel of flux has one weight.
    place = dict(zip(tile.flux[0].ravel().tolist(), value.ravel().tolist(), strict=True))
    for flux, weight in zip(
        batch.flux[:, 0].ravel().tolist()[::37], batch.weight[:, 0].ravel().tolist()[::37], strict=True
    ):
        assert weight == pytest.approx(place[flux], rel=0.05)


def test_turned_in_groups_by_index_or_one_by_one_images_are_the_same():
    generator = torch.Generator().manual_seed(0)
    image, flips = torch.rand(3, 40, 50), random_flips(64, generator=generator)
    top, left = (torch.randint(high, (64,), generator=generator).numpy() for high in (33, 43))
    plain = torch.stack([image[:, r : r + 8, c : c + 8] for r, c in zip(top, left, strict=True)])
    expected = flip(plain, flips)
    assert len({tuple(t) for t in flips.T.tolist()}) == 8
    assert not torch.equal(expected, plain)
    for chosen, wanted in ((flips, expected), (None, plain)):
        one, other, third = (torch.empty(64, 3, 8, 8) for _ in range(3))
        cropping.crop(image, top, left, flips=chosen, out=one)
        cropping._crop_by_index(image, top, left, chosen, other)
        cropping.gather(plain.numpy(), np.arange(64), flips=chosen, out=third)
        for out in (one, other, third):
            assert torch.equal(out, wanted)


def test_each_orientation_is_as_likely():
    image = torch.arange(4.0).reshape(1, 1, 2, 2).expand(8000, -1, -1, -1)
    turned = flip(image, random_flips(8000, generator=torch.Generator().manual_seed(1)))
    kinds, counts = turned.reshape(8000, 4).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert ((counts > 900) & (counts < 1100)).all()


def test_changes_are_drawn_for_each_image_and_do_what_they_say():
    how = Augmentation(flips=False, brightness=0.3, noise=2.0, band_dropout=0.5)
    flux, sigma = torch.full((4000, 3, 8, 8), 100.0), torch.tensor([0.1, 1.0, 10.0])
    flux[0, 0, 0, 0] = torch.nan
    draws = draw_changes(how, 4000, 3, generator=torch.Generator().manual_seed(0))
    changed = change(flux, draws, sky_sigma=sigma, generator=torch.Generator().manual_seed(1))
    gone = changed.isnan().all(dim=(2, 3))
    assert 0.45 * 2 / 3 < gone.float().mean() < 0.55 * 2 / 3  # half of the bands but the one that is always kept
    assert not gone.all(dim=1).any()
    assert changed[0, 0, 0, 0].isnan()
    assert (changed[:, 0].nanmean(dim=(1, 2))[~gone[:, 0]] / 100).log().std().item() == pytest.approx(0.3, rel=0.05)
    noise = changed[:, 2].std(dim=(1, 2))[~gone[:, 2]] / 10  # U(0, 2)
    assert noise.max() > 1.8
    assert noise.min() < 0.2
    assert noise.mean().item() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(
        change(flux, draw_changes(Augmentation(flips=False), 4000, 3, generator=keyed_generator(0))).nan_to_num(),
        flux.nan_to_num(),
    )
    with pytest.raises(ValueError, match="band_dropout=1.0: must be at least 0, and below 1"):
        Augmentation(band_dropout=1.0)


@pytest.mark.parametrize("kind", ["tiles", "cutouts"])
def test_loaders_change_images_alike_after_a_restart(tiles, cutouts, kind):
    how = Augmentation(brightness=0.1, noise=1.0, band_dropout=0.2)

    def make():
        if kind == "tiles":
            return TileLoader(tiles, batch_size=8, size=16, resident=1, cutouts_per_tile=16, augment=how)
        return CutoutLoader(cutouts, batch_size=8, augment=how)

    loader = make()
    stream = iter(loader)
    for _ in range(5):
        next(stream)
    other = make()
    other.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(other)).flux.nan_to_num(-9), next(stream).flux.nan_to_num(-9))


@pytest.fixture(scope="module")
def many_tiles(tmp_path_factory):
    """Seven tiles of 64 pixels in one band; in the third, only a corner has data."""
    sky = simulate_sky(tmp_path_factory.mktemp("many"), n_tiles=7, tile_size=64, bands="i", n_objects=60, seed=3)
    found = find_tiles(sky.tiles, bands="i")
    with fits.open(found[2].paths["i"], mode="update") as hdus:
        hdus[1].data[:40], hdus[1].data[:, :40] = np.nan, np.nan
    return found


def seen_tiles(stream, tiles, n):
    """Return which tiles the crops of `n` batches come from."""
    images = {tile.name: read_tile(tile) for tile in tiles}
    batches = [next(stream) for _ in range(n)]
    names = []
    for batch in batches:
        there = set()
        for ra, dec in zip(batch.ra.numpy(), batch.dec.numpy(), strict=True):
            for name, tile in images.items():
                row, col = tile.pixel_at(ra, dec)
                if -0.5 < row < 63.5 and -0.5 < col < 63.5:
                    there.add(name)
        names.append(there)
    return names


def test_tiles_give_way_one_by_one_and_all_come_in_a_pass(many_tiles):
    loader = TileLoader(many_tiles, batch_size=24, size=8, resident=3, cutouts_per_tile=24)
    names = seen_tiles(iter(loader), many_tiles, 15)
    assert all(len(there) == 3 for there in names[:5])  # every batch mixes all tiles that are resident
    assert all(len(one & two) == 2 for one, two in itertools.pairwise(names[:5]))
    assert set().union(*names[:5]) == {tile.name for tile in many_tiles}


def test_ranks_see_tiles_of_their_own_and_all_come(many_tiles):
    whole = TileLoader(many_tiles, batch_size=8, size=8, resident=2, cutouts_per_tile=4)
    parts = [seen_tiles(iter(whole.shard(rank, 2)), many_tiles, 8) for rank in (0, 1)]
    assert set().union(*parts[0], *parts[1]) == {tile.name for tile in many_tiles}
    first = [set().union(*part[:1]) for part in parts]
    assert not first[0] & first[1]
    with pytest.raises(ValueError, match="batch_size=8: cannot be divided among 3 processes"):
        whole.shard(0, 3)
    with pytest.raises(ValueError, match="rank=2: must be 0 to 1"):
        TileLoader(many_tiles, batch_size=8, size=8, rank=2, world_size=2)


def test_crops_are_centred_where_there_is_data(many_tiles):
    loader = TileLoader(many_tiles[2:3], batch_size=256, size=16, augment=False)
    flux = next(iter(loader)).flux
    assert flux.isfinite().any(dim=(1, 2, 3)).all()
    assert flux[:, 0, 8, 8].isfinite().float().mean() > 0.4  # the cell of 16 pixels around the centre has data
    with pytest.raises(ValueError, match=r"tile .*: no pixel has data where a crop of 60 pixels can be centred"):
        next(iter(TileLoader(many_tiles[2:3], batch_size=4, size=60)))


def test_a_stream_with_bad_tiles_is_the_same_after_a_restart_at_any_place(many_tiles, tmp_path, caplog):
    broken = list(many_tiles)
    for i in (1, 4):
        (tmp_path / f"{i}.fits").write_text("no FITS")
        broken[i] = type(broken[i])(broken[i].name, {"i": tmp_path / f"{i}.fits"})

    def make():
        return TileLoader(broken, batch_size=8, size=8, resident=2, cutouts_per_tile=6, on_error="skip", seed=5)

    loader = make()
    stream, batches, states = iter(loader), [], []
    for _ in range(25):
        states.append(pickle.loads(pickle.dumps(loader.state_dict())))
        batches.append(next(stream))
    assert sorted(loader.skipped) == sorted([broken[1].name, broken[4].name])
    assert caplog.text.count("is skipped") == 2  # said once a tile
    for state, batch in list(zip(states, batches, strict=True))[::4]:
        other = make()
        other.load_state_dict(state)
        assert torch.equal(next(iter(other)).flux.nan_to_num(-9), batch.flux.nan_to_num(-9))


def test_after_an_error_the_stream_can_be_taken_up_again(many_tiles, tmp_path):
    path = tmp_path / "late.fits"
    late = [type(many_tiles[0])("late", {"i": path})]
    loader = TileLoader(late, batch_size=4, size=8)
    with pytest.raises(OSError, match=r"late\.fits"):
        next(iter(loader))
    path.write_bytes(many_tiles[0].paths["i"].read_bytes())
    assert next(iter(loader)).flux.isfinite().all()


def test_memory_stays_flat(many_tiles):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    stream = iter(TileLoader(many_tiles, batch_size=128, size=32, resident=2, cutouts_per_tile=256))
    for _ in range(100):
        next(stream)
    before = resident()
    for _ in range(1000):
        next(stream)
    assert resident() - before < 8e6  # bytes; three batches
