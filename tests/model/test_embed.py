import shutil
import threading
import weakref

import numpy as np
import pytest
import torch

from skylib import (
    CutoutFile,
    CutoutLoader,
    Embeddings,
    ModelConfig,
    PretrainConfig,
    at_scale,
    build_model,
    embed,
    load_model,
    pretrain,
    save_weights,
    write_cutouts,
)
from skylib.__main__ import main
from skylib.config import VIT_SIZES
from skylib.device import ahead, fast_precision
from skylib.model.embed import encode
from skylib.search.queries import query_vectors

CONFIG = ModelConfig(size="nano", image_size=16, patch_size=4, decoder_width=32, decoder_depth=1)


def test_embedding_a_file_keeps_order_labels_and_positions(cutouts):
    model = build_model(CONFIG)
    embeddings = embed(model, cutouts, batch_size=50, precision="fp32")
    assert embeddings.vectors.shape == (len(cutouts), 128)
    np.testing.assert_array_equal(embeddings.ra, cutouts.ra)
    np.testing.assert_array_equal(embeddings.column("object_id"), cutouts.column("object_id"))
    np.testing.assert_allclose(
        embeddings.vectors, embed(model, cutouts, batch_size=7, precision="fp32").vectors, rtol=1e-3, atol=1e-4
    )
    assert np.isfinite(embeddings.vectors).all()  # one tile lacks a band
    assert embeddings.meta["model"]["size"] == "nano"
    assert model.training
    with pytest.raises(ValueError, match="pool='tokens'"):
        embed(model, cutouts, pool="tokens")


def test_the_mean_of_all_orientations_does_not_depend_on_orientation(cutouts, tmp_path):
    model = build_model(CONFIG)
    flux = cutouts.flux(slice(0, 20))
    turned = np.ascontiguousarray(np.rot90(flux, axes=(2, 3))[..., ::-1])
    for name, images in [("a", flux), ("b", turned)]:
        write_cutouts(tmp_path / f"{name}.h5", images, bands=cutouts.bands)
    how = {"precision": "fp32", "pool": "mean_central"}
    a, b = (embed(model, CutoutFile(tmp_path / f"{name}.h5"), all_orientations=True, **how) for name in "ab")
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
    one = embed(model, CutoutFile(tmp_path / "a.h5"), **how)
    assert np.abs(a.vectors - one.vectors).max() > 1e-3
    # An image as the query of a search is embedded as the objects are.
    np.testing.assert_allclose(query_vectors(turned[..., 8:24, 8:24], a, model), a.vectors, atol=1e-5)
    with pytest.raises(ValueError, match="all_orientations"):
        encode(model, cutouts, rows=np.arange(3), pools=("tokens",), all_orientations=True)


def test_half_precision_points_the_same_way(cutouts):
    model = build_model(ModelConfig(size="tiny", image_size=32, patch_size=8))
    for pool in ("mean", "central", "cls"):
        exact = embed(model, cutouts, pool=pool, precision="fp32").vectors
        half = embed(model, cutouts, pool=pool, precision="bf16").vectors
        one, two = exact - exact.mean(axis=0), half - half.mean(axis=0)  # what tells the objects apart
        cosine = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        assert np.median(cosine) > 0.999, pool
        assert cosine.min() > 0.99, pool
    default = embed(model, cutouts)
    assert default.meta["precision"] == fast_precision(torch.device("cpu"))
    np.testing.assert_array_equal(default.vectors, embed(model, cutouts, precision=default.meta["precision"]).vectors)
    with pytest.raises(ValueError, match="precision='fp16': one of 'auto', 'bf16', 'fp32'"):
        embed(model, cutouts, precision="fp16")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__, reason="needs a C++ compiler, in a path without spaces"
)
def test_a_compiled_model_gives_the_same_vectors_and_fills_the_last_batch_up(cutouts, monkeypatch):
    monkeypatch.setitem(VIT_SIZES, "nano", (128, 2, 4))  # of fewer blocks, which the compiler takes less time for
    model = build_model(ModelConfig(**{**CONFIG.__dict__, "size": "nano"}))
    plain = embed(model, cutouts, batch_size=100, precision="fp32").vectors  # 100, 100 and 40
    compiled = embed(model, cutouts, batch_size=100, precision="fp32", compile=True).vectors
    np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-4)


def test_a_model_that_cannot_be_compiled_embeds_as_it_is_and_says_why(cutouts, monkeypatch):
    def broken(encode, **_):
        def run(*_, **__):
            raise RuntimeError("no compiler found")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = build_model(CONFIG)
    with pytest.warns(UserWarning, match="not compiled, and slower: RuntimeError: no compiler found"):
        found = embed(model, cutouts, batch_size=100, precision="fp32", compile=True).vectors
    np.testing.assert_allclose(found, embed(model, cutouts, precision="fp32").vectors, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """What is held while embedding: a few batches, whatever the file holds."""
    position = {"ra": np.zeros(2000), "dec": np.zeros(2000)}
    file = write_cutouts(tmp_path / "many.h5", np.zeros((2000, 5, 16, 16), np.float32), bands="grizy", **position)
    held, most = [], 0
    read = CutoutLoader.flux

    def flux(self, rows):
        nonlocal most
        images = read(self, rows)
        held.append(weakref.ref(images))
        most = max(most, sum(len(image()) for image in held if image() is not None))
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutoutLoader, "flux", flux)
        assert len(embed(build_model(CONFIG), file, batch_size=50)) == 2000
    assert len(held) == 40
    assert most <= 6 * 50


def test_reading_ahead_keeps_order_passes_errors_on_and_ends(cutouts):
    def items():
        yield from range(5)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    before = threading.active_count()
    for item in ahead(iter(range(1000))):
        if item == 3:
            break
    assert threading.active_count() == before


def test_permuted_bands_give_the_same_embeddings(tmp_path):
    flux = np.random.default_rng(0).normal(size=(9, 5, 16, 16)).astype(np.float32)
    position = {"ra": np.zeros(9), "dec": np.zeros(9)}
    ordered = write_cutouts(tmp_path / "a.h5", flux, bands="grizy", **position)
    permuted = write_cutouts(tmp_path / "b.h5", flux[:, [0, 2, 1, 4, 3]], bands="giryz", **position)
    extra = write_cutouts(
        tmp_path / "c.h5", flux[:, [4, 0, 1, 2, 3, 0]], bands=["y", "g", "r", "i", "z", "NB0816"], **position
    )
    model = build_model(CONFIG)
    vectors = embed(model, ordered).vectors
    np.testing.assert_array_equal(vectors, embed(model, permuted).vectors)
    np.testing.assert_array_equal(vectors, embed(model, extra).vectors)
    lacking = write_cutouts(tmp_path / "d.h5", flux[:, :4], bands="griz", **position)
    assert np.abs(vectors - embed(model, lacking).vectors).max() > 1e-3


def test_real_hsc_pixels_embed(shared_data):
    from skylib import CutoutFile

    real = CutoutFile(shared_data / "hsc_cosmos" / "hsc_cosmos_grizy_64.h5")
    vectors = embed(build_model(CONFIG), real).vectors
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) == len(real)


def test_some_rows_are_embedded_as_in_the_whole(cutouts):
    model = build_model(ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1))
    whole, some = (
        embed(model, cutouts, precision="fp32"),
        embed(model, cutouts, rows=np.array([7, 2]), precision="fp32"),
    )
    np.testing.assert_allclose(some.vectors, whole.vectors[[7, 2]], rtol=1e-4, atol=1e-5)
    assert some.column("object_id").tolist() == whole.column("object_id")[[7, 2]].tolist()
    assert some.ra.tolist() == whole.ra[[7, 2]].tolist()


def test_a_model_knows_its_data_and_says_how_others_differ(tmp_path, caplog):
    flux = np.random.default_rng(0).normal(size=(40, 3, 16, 16))
    place = {"ra": np.arange(40) / 100, "dec": np.zeros(40)}
    ours = write_cutouts(tmp_path / "a.h5", flux, bands="gri", seeing=np.full(40, 0.6), **place)
    config = PretrainConfig(steps=1, batch_size=8, log_every=1)
    small = ModelConfig(bands=("g", "r", "i"), size="nano", image_size=16, decoder_width=32, decoder_depth=1)
    model = pretrain(small, config, train=ours, run_dir=tmp_path / "run", device="cpu").model
    known = {"survey": "", "bands": ["g", "r", "i"], "pixel_scale": 0.168, "unit": "counts at AB zero-point 27"}
    assert model.origin["trained_on"] == known | {"seeing": 0.6}
    shared = save_weights(model, tmp_path / "shared.safetensors", card={})
    assert load_model(shared, device="cpu").origin["trained_on"] == known | {"seeing": 0.6}
    embed(model, ours)
    assert caplog.text == ""
    other = write_cutouts(tmp_path / "b.h5", flux[..., 2:14, 2:14], bands="uri", pixel_scale=0.396, **place)
    vectors = embed(model, other).vectors
    embed(model, other)
    assert [record.getMessage() for record in caplog.records] == [
        f"{other.path}: pixels of 0.396 arcsec, but the model was trained with 0.168; "
        "skylib.at_scale(cutouts, 0.168), or skylib embed --rescale, resamples them; "
        "bands g of the model are missing and count as no data; bands u are left out, the model has g r i; "
        "cutouts of 12 pixels are padded with no data to 16"
    ]
    padded = np.full((40, 3, 16, 16), np.nan)
    padded[:, 1:, 2:14, 2:14] = flux[:, 1:, 2:14, 2:14]
    whole = write_cutouts(tmp_path / "c.h5", padded, bands="gri", **place)
    np.testing.assert_array_equal(embed(model, whole).vectors, vectors)


def test_the_same_sky_in_other_pixels_gives_the_same_embedding(tmp_path):
    y, x = np.mgrid[:64, :64] - 32

    def image(scale, wide=1.0):  # an ellipse at the centre, flux per pixel
        return scale**2 * np.exp(-((x * scale) ** 2 + (y * scale / wide) ** 2) / (2 * 0.8**2))

    place = {"ra": np.zeros(2), "dec": np.zeros(2), "bands": "i"}
    fine = write_cutouts(tmp_path / "f.h5", np.stack([[image(0.1)], [image(0.1, 2)]]), pixel_scale=0.1, **place)
    coarse = write_cutouts(tmp_path / "c.h5", np.stack([[image(0.2)], [image(0.2, 2)]]), pixel_scale=0.2, **place)
    scaled = at_scale(fine, 0.2)
    assert (scaled.size, scaled.pixel_scale, scaled.bands) == (32, 0.2, ("i",))
    np.testing.assert_allclose(scaled.flux(), coarse.flux(size=32), atol=1e-3)
    np.testing.assert_allclose(at_scale(coarse, 0.1).flux(size=32), fine.flux(size=32), atol=1e-3)
    np.testing.assert_allclose(scaled.flux().sum(axis=(1, 2, 3)), fine.flux().sum(axis=(1, 2, 3)), rtol=1e-3)
    assert np.isnan(at_scale(coarse, 0.4).flux(size=48, pad=True)[:, :, 0]).all()
    with pytest.raises(ValueError, match="pixel_scale=0.0: must be 0.001 to 3600 arcsec"):
        at_scale(fine, 0)


def test_embed_from_the_command_line(tmp_path, capsys):
    flux = np.random.default_rng(0).normal(size=(6, 5, 20, 20))
    cutouts = write_cutouts(
        tmp_path / "a.h5", flux, bands="grizy", ra=np.arange(6.0), dec=np.zeros(6), z=np.arange(6.0)
    )
    out = tmp_path / "e.h5"
    assert main(["embed", str(cutouts.path), "--model", "sky-nano", "-o", str(out), "--pool", "central"]) == 0
    assert "Embeddings(6 x 128; columns: z)" in capsys.readouterr().out
    found = Embeddings.load(out)
    assert found.meta["weights"] == "sky-nano"
    np.testing.assert_array_equal(found.ra, np.arange(6.0))
    assert main(["embed", str(tmp_path / "no.h5"), "--model", "sky-nano"]) == 2
    assert "no.h5: no such file of cutouts" in capsys.readouterr().err
