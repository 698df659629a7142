import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

from skylib import (
    CutoutFile,
    Embeddings,
    ModelConfig,
    build_model,
    find_tiles,
    hit_cutouts,
    measure_sky_noise,
    read_tile,
    run_notebook,
    search_tiles,
    signal_to_noise,
    write_objects,
)
from skylib.config import to_dict
from skylib.data.sky import near_any
from skylib.model.checkpoint import save_checkpoint
from skylib.search.windows import WindowScan, window_corners
from skylib.stopping import Interrupted

QUESTION = {"k": 25, "min_separation": 3.0, "snr_range": (5.0, None)}


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1))


@pytest.fixture(scope="module")
def targets(cutouts):
    brightest = np.argsort(cutouts.column("mag_i"))
    return cutouts.flux(brightest[5:8])


@pytest.fixture(scope="module")
def single(model, targets, tiles, tmp_path_factory):
    return search_tiles(model, targets, tiles, run_dir=tmp_path_factory.mktemp("single"), **QUESTION)


def same(one, other):
    assert one.colnames == other.colnames
    for name in one.colnames:
        assert one[name].tolist() == other[name].tolist(), name


def test_the_sky_search_equals_brute_force(model, targets, tiles, single, tmp_path):
    """All windows embedded and scored one by one, then thinned by hand."""
    reference = Embeddings(
        np.random.default_rng(0).normal(size=(50, model.config.width)), ra=np.zeros(50), dec=np.zeros(50)
    )
    mean, scale = reference.vectors.mean(0, dtype=np.float64), reference.vectors.std(0, dtype=np.float64)
    found = search_tiles(model, targets, tiles, run_dir=tmp_path, reference=reference, **QUESTION)
    windows = []
    with torch.inference_mode():
        wanted = (model.eval().embed(torch.from_numpy(targets)).double().numpy() - mean) / scale
        for paths in tiles:
            tile = read_tile(paths)
            sigma = np.nan_to_num(measure_sky_noise(tile.flux), nan=1)
            for row in window_corners(256, 32, 19):
                for col in window_corners(256, 32, 19):
                    flux = tile.flux[None, :, row : row + 32, col : col + 32]
                    if (
                        np.isfinite(flux).mean(axis=(0, 2, 3)).max() < 0.5
                        or not signal_to_noise(flux, sigma, reach=10) >= 5
                    ):
                        continue
                    x = (model.embed(torch.from_numpy(flux)).double().numpy()[0] - mean) / scale
                    cosine = wanted @ x / np.linalg.norm(wanted, axis=1) / np.linalg.norm(x)
                    ra, dec = tile.sky_at(np.array(row + 16.0), np.array(col + 16.0))
                    windows.append((1 - cosine.max(), paths.name, row + 16, col + 16, float(ra), float(dec)))
    kept = []
    for window in sorted(windows):
        if not any(
            near_any(np.array([w[4]]), np.array([w[5]]), np.array([window[4]]), np.array([window[5]]), radius=3)[0]
            for w in kept
        ):
            kept.append(window)
    kept = kept[:25]
    np.testing.assert_allclose(found["score"], [w[0] for w in kept], atol=2e-5)
    assert [tuple(hit) for hit in found["tile", "row", "col"]] == [w[1:4] for w in kept]
    np.testing.assert_allclose(found["ra"], [w[4] for w in kept], atol=1e-9)


def test_hits_are_apart_within_the_range_and_in_order(single):
    assert len(single) == 25
    assert (np.diff(single["score"]) >= 0).all()
    assert (single["snr"] >= 5).all()
    for i in range(25):
        others = np.arange(25) != i
        assert not near_any(
            single["ra"][others], single["dec"][others], single["ra"][[i]], single["dec"][[i]], radius=3
        ).any()


def test_shards_merge_to_the_answer_of_one_run(model, targets, tiles, single, tmp_path):
    with pytest.raises(ValueError, match="2 of 2 tiles not searched yet, first 9813-0,0"):
        search_tiles(model, targets, tiles, run_dir=tmp_path, shard=None, n_shards=2, **QUESTION)
    for shard in (1, 0):
        part = search_tiles(model, targets, tiles[::-1], run_dir=tmp_path, shard=shard, n_shards=2, **QUESTION)
        assert set(part["tile"]) == {tiles[shard].name}
    same(single, search_tiles(model, targets, tiles, run_dir=tmp_path, shard=None, n_shards=2, **QUESTION))


def test_changed_tiles_bands_precision_or_model_make_another_search(model, targets, sky, single, tmp_path):
    folder = tmp_path / "tiles"
    shutil.copytree(sky.tiles, folder)

    def names(tiles, model=model, **changed):
        search_tiles(model, targets, tiles, run_dir=tmp_path, k=3, min_separation=3, snr_range=(30.0, None), **changed)
        return {path.name for path in (tmp_path / "search").iterdir()}

    tiles = find_tiles(folder, bands="grizy", min_bands=4)[:1]
    one = names(tiles)
    assert names(tiles) == one
    assert len(names(find_tiles(folder, bands="gri")[:1])) == 2
    assert len(names(tiles, precision="bf16")) == 3
    noisy = copy.deepcopy(model)
    noisy.set_sky_noise(torch.full_like(model.sky_sigma, 2.0))
    assert len(names(tiles, noisy)) == 4
    os.utime(next(path for path in tiles[0].paths.values() if path is not None), ns=(1, 1))
    assert len(names(tiles)) == 5


def test_shards_that_start_together_use_the_same_reference(sky, tmp_path):
    """Both have made one, slightly different as on two devices, before either has kept it."""
    code = f"""
        import sys, time, numpy as np
        from pathlib import Path
        from skylib import ModelConfig, build_model, find_tiles
        from skylib.search import windows as skysearch
        mine, other = map(Path, sys.argv[1:])
        save = skysearch.Embeddings.save
        def together(reference, path):
            mine.touch()
            while not other.exists():
                time.sleep(0.01)
            reference.vectors += mine.name == "one"
            save(reference, path)
        skysearch.Embeddings.save = together
        model = build_model(ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1))
        tiles = find_tiles({str(sky.tiles)!r}, bands="grizy", min_bands=4)
        scan = skysearch.WindowScan(model=model, stride=64)
        reference = skysearch.shared_reference(scan, tiles, Path("search"))
        np.save(f"{{mine}}.npy", reference.vectors)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    started = [
        subprocess.Popen([sys.executable, "run.py", *names], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for names in (("one", "two"), ("two", "one"))
    ]
    for process in started:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    kept = Embeddings.load(tmp_path / "search" / "reference.h5").vectors
    for name in ("one", "two"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), kept)
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["reference.h5"]


def test_windows_have_their_own_positions(sky, cutouts, tiles, tmp_path):
    config = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, ra_dec=True)
    model = build_model(config).eval()
    tile = read_tile(tiles[0])
    vectors = torch.from_numpy(WindowScan(model=model, stride=38).embed(tile, np.array([[38, 57]]))[2])
    ra, dec = (torch.tensor([float(value)]) for value in tile.sky_at(54.0, 73.0))
    flux = torch.from_numpy(tile.flux[None, :, 38:70, 57:89])
    with torch.inference_mode():
        torch.testing.assert_close(vectors, model.embed(flux, ra=ra, dec=dec), atol=1e-4, rtol=1e-4)
    asked = {"k": 3, "min_separation": 3, "snr_range": (30.0, None), "run_dir": tmp_path}
    assert len(search_tiles(model, cutouts, tiles[:1], **asked)) == 3
    assert len(search_tiles(model, cutouts.flux([3]), tiles[:1], **asked)) == 3


def test_another_question_does_not_disturb_a_search(model, targets, tiles, single, tmp_path):
    for _ in range(2):
        same(single, search_tiles(model, targets, tiles, run_dir=tmp_path, **QUESTION))
        search_tiles(model, targets[:1], tiles[:1], k=3, min_separation=3, run_dir=tmp_path)
    assert len(list((tmp_path / "search").iterdir())) == 2


def test_a_search_stops_when_asked_and_goes_on(model, targets, tiles, single, tmp_path):
    (tmp_path / "STOP").touch()
    with pytest.raises(Interrupted, match="a STOP file after 1 tiles"):
        search_tiles(model, targets, tiles, run_dir=tmp_path, **QUESTION)
    assert not (tmp_path / "STOP").exists()
    (state,) = tmp_path.glob("search/*/shard-0000.npz")
    assert np.load(state)["done"].tolist() == [0]
    same(single, search_tiles(model, targets, tiles, run_dir=tmp_path, **QUESTION))


def test_a_killed_search_goes_on(sky, targets, tiles, single, tmp_path):
    """SIGKILL while the second tile is at work; the next start searches only that one."""
    np.save(tmp_path / "targets.npy", targets)
    code = f"""
        import os, signal, sys, numpy as np
        from skylib import ModelConfig, build_model, find_tiles, search_tiles
        from skylib.search import sky_search as skysearch
        hits, seen = skysearch.scan_tile, []
        def counting(scan, tile, *rest):
            seen.append(tile.name)
            if sys.argv[1] == "kill" and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return hits(scan, tile, *rest)
        skysearch.scan_tile = counting
        model = build_model(ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1))
        tiles = find_tiles({str(sky.tiles)!r}, bands="grizy", min_bands=4)
        table = search_tiles(model, np.load("targets.npy"), tiles, run_dir=".", **{QUESTION!r})
        table.write("hits.ecsv", overwrite=True)
        print(*seen)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def start(*args):
        return subprocess.run(
            [sys.executable, "run.py", *args], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    assert start("kill").returncode == -signal.SIGKILL
    done = start("go on")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [tiles[1].name]
    found = Table.read(tmp_path / "hits.ecsv")
    np.testing.assert_allclose(found["score"], single["score"], atol=1e-6)
    assert found["row"].tolist() == single["row"].tolist()


@pytest.mark.notebook
def test_the_notebook_searches_in_shards_and_merges(model, sky, cutouts, tiles, tmp_path):
    """As Slurm runs it: each shard on its own into one run folder, then once with merge=True."""
    checkpoint = {"model_config": to_dict(model.config), "model": model.state_dict(), "step": 0}
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", checkpoint)
    notebook = Path(__file__).parents[2] / "notebooks" / "06_search_sky.ipynb"
    given = {"tiles": str(sky.tiles), "cutouts": str(cutouts.path), "targets": ["#3"], "k": 12, "n_shards": 2}
    for part in ({"shard": 0}, {"shard": 1}, {"merge": True}):
        run_notebook(notebook, tmp_path, **given, **part)
    whole = search_tiles(
        model,
        cutouts.flux([3]),
        tiles,
        k=12,
        overlap=0.5,
        min_separation=3.0,
        snr_range=(10.0, None),
        pool="central",
        augment_targets=True,
        run_dir=tmp_path / "single",
    )
    found = Table.read(tmp_path / "sky_hits.csv")
    assert found["row"].tolist() == whole["row"].tolist()
    assert [str(name) for name in found["tile"]] == whole["tile"].tolist()
    assert len(CutoutFile(tmp_path / "sky_hits.h5")) == 12
    assert (tmp_path / "sky_hits_0001.reg").is_file()


def test_images_of_hits_come_from_where_they_were_found(single, tiles, tmp_path):
    saved = hit_cutouts(single, tiles, tmp_path / "hits.h5", size=32)
    assert isinstance(saved, CutoutFile)
    assert saved.column("tile").tolist() == single["tile"].tolist()
    np.testing.assert_array_equal(saved.ra, single["ra"])
    for i in (0, 24):
        tile = read_tile(next(t for t in tiles if t.name == single["tile"][i]))
        row, col = single["row"][i] - 16, single["col"][i] - 16
        np.testing.assert_array_equal(saved.flux(i)[0], tile.flux[:, row : row + 32, col : col + 32])
    with pytest.raises(ValueError, match=r"tiles that were not given: 9813-[01],0"):
        hit_cutouts(single[:1], [t for t in tiles if t.name != single["tile"][0]], tmp_path / "x.h5")


def test_a_target_is_found_where_it_was_cut(model, tiles, tmp_path):
    tile = read_tile(tiles[0])
    target = tile.flux[None, :, 38:70, 57:89]
    found = search_tiles(model, target, tiles, k=1, min_separation=3, run_dir=tmp_path)
    assert (found["tile"][0], found["row"][0], found["col"][0]) == (tiles[0].name, 54, 73)
    assert found["score"][0] < 1e-6


def test_bad_tiles_and_bad_arguments(model, targets, sky, tiles, tmp_path, caplog):
    folder = tmp_path / "tiles"
    shutil.copytree(sky.tiles, folder)
    broken = next(folder.glob("calexp-HSC-R-9813-1,0.fits"))
    broken.write_bytes(broken.read_bytes()[:20_000])
    bad = find_tiles(folder, bands="grizy", min_bands=4)
    with pytest.raises(OSError, match="R-9813-1,0"):
        search_tiles(model, targets, bad, run_dir=tmp_path / "raise", **QUESTION)
    found = search_tiles(model, targets, bad, run_dir=tmp_path / "skip", on_error="skip", **QUESTION)
    assert set(found["tile"]) == {"9813-0,0"}
    (state,) = (tmp_path / "skip").glob("search/*/shard-0000.npz")
    assert np.load(state)["done"].tolist() == [0]
    assert "R-9813-1,0" in found.meta["skipped"]["9813-1,0"]
    merged = search_tiles(model, targets, bad, run_dir=tmp_path / "skip", on_error="skip", shard=None, **QUESTION)
    same(found, merged)
    assert merged.meta == found.meta
    assert "1 of 2 tiles could not be read, and are not in the answer: 9813-1,0" in caplog.text
    with pytest.raises(OSError, match="R-9813-1,0"):  # tried again
        search_tiles(model, targets, bad, run_dir=tmp_path / "skip", **QUESTION)
    assert len(write_objects(merged, tmp_path / "hits")) == 4
    for wrong in ({"overlap": 1.0}, {"k": 0}, {"shard": 3, "n_shards": 2}, {"min_separation": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            search_tiles(model, targets, tiles, run_dir=tmp_path / "wrong", **QUESTION | wrong)
    for wrong in ({"metric": "euclid"}, {"combine": "median"}, {"weights": "variance"}, {"precision": "fp16"}):
        with pytest.raises(ValueError, match="one of"):
            search_tiles(model, targets, tiles, run_dir=tmp_path / "wrong", **QUESTION | wrong)
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ValueError, match="augment_targets=True needs images"):
        search_tiles(
            model, np.zeros((1, model.config.width)), tiles, run_dir=tmp_path / "w", augment_targets=True, **QUESTION
        )
    with pytest.raises(ValueError, match="smaller than a window"):
        window_corners(20, 32, 19)


def test_signal_to_noise_of_pure_noise_and_of_a_source():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, [[[0.1]], [[0.5]]], size=(4000, 2, 16, 16))
    one_place = signal_to_noise(noise, np.array([0.1, 0.5]), reach=0)
    assert abs(one_place.mean()) < 0.1
    assert abs(one_place.std() - 1) < 0.05
    assert signal_to_noise(noise, np.array([0.1, 0.5])).mean() > 1.5  # the largest of many places is biased
    noise[:, 1] = np.nan  # a missing band
    assert abs(signal_to_noise(noise, np.array([0.1, 0.5]), reach=0).std() - 1) < 0.05
    assert signal_to_noise(np.full((1, 2, 16, 16), np.nan), np.ones(2)).isnan().all()
