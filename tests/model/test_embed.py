import shutil
import threading
import weakref

import numpy as np
import pytest
import torch

from skylib import CutoutLoader, ModelConfig, build_model, embed, write_cutouts
from skylib.device import ahead, fast_precision

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
def test_a_compiled_model_gives_the_same_vectors_and_fills_the_last_batch_up(cutouts):
    model = build_model(ModelConfig(**{**CONFIG.__dict__, "size": "nano"}))
    plain = embed(model, cutouts, batch_size=100, precision="fp32").vectors  # 100, 100 and 40
    compiled = embed(model, cutouts, batch_size=100, precision="fp32", compile=True).vectors
    np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-4)


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
