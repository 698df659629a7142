import numpy as np
import pytest

from skylib import ModelConfig, build_model, embed, write_cutouts

CONFIG = ModelConfig(size="nano", image_size=16, patch_size=4, decoder_width=32, decoder_depth=1)


def test_embedding_a_file_keeps_order_labels_and_positions(cutouts):
    model = build_model(CONFIG)
    embeddings = embed(model, cutouts, batch_size=50)
    assert embeddings.vectors.shape == (len(cutouts), 128)
    np.testing.assert_array_equal(embeddings.ra, cutouts.ra)
    np.testing.assert_array_equal(embeddings.column("object_id"), cutouts.column("object_id"))
    np.testing.assert_allclose(embeddings.vectors, embed(model, cutouts, batch_size=7).vectors, rtol=1e-3, atol=1e-4)
    assert np.isfinite(embeddings.vectors).all()  # one tile lacks a band
    assert embeddings.meta["model"]["size"] == "nano"
    assert model.training
    with pytest.raises(ValueError, match="pool='tokens'"):
        embed(model, cutouts, pool="tokens")


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
