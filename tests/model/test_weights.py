import logging
import zipfile

import numpy as np
import pytest
import torch

from skylib import ModelConfig, build_model, load_model, read_card, save_weights
from skylib.config import to_dict
from skylib.device import keyed_generator
from skylib.model import weights
from skylib.model.checkpoint import fingerprint, load_last, save_checkpoint
from skylib.model.weights import start_from

CONFIG = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1)


def checkpoint_of(model, **values):
    return {"step": 1, "model": model.state_dict(), "model_config": to_dict(model.config)} | values


@pytest.mark.parametrize("half", [True, False])
def test_shared_weights_are_those_of_the_model(tmp_path, half):
    model = build_model(CONFIG, seed=3).eval()
    model.set_sky_noise(torch.tensor([0.011, 0.012, 0.013, 0.014, 0.015]))
    model.origin = {"checkpoint": "/home/someone/run/last.pt", "step": 7, "pretrain": {"seed": 0}}
    path = save_weights(model, tmp_path / "sky.safetensors", card={"licence": "MIT"}, half=half)
    found = load_model(path, device="cpu")
    assert not found.training
    assert torch.equal(found.sky_sigma, model.sky_sigma)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    flux = torch.randn(4, 5, 32, 32, generator=keyed_generator(0)) * 0.05
    one, two = (m.embed(flux, pool="mean_central") for m in (model, found))
    torch.testing.assert_close(one, two, **({"rtol": 0.01, "atol": 0.01} if half else {}))
    torch.testing.assert_close(
        found(flux, generator=keyed_generator(1)).parts["flux"],
        model(flux, generator=keyed_generator(1)).parts["flux"],
        rtol=0.01,
        atol=0.01,
    )
    card = read_card(path)
    assert (card["licence"], card["step"], card["pretrain"]) == ("MIT", 7, {"seed": 0})
    assert "someone" not in str(card)
    assert card["fingerprint"] == fingerprint(found)
    assert path.stat().st_size < (2.2 if half else 4.4) * sum(p.numel() for p in found.parameters()) + 20_000


def test_a_shipped_model_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    for name in ("sky-nano", "sky-tiny"):
        save_weights(build_model(CONFIG), tmp_path / f"{name}.safetensors", card={})
    assert load_model("sky-nano", device="cpu").origin["weights"] == "sky-nano"
    assert read_card("sky-nano")["model"]["size"] == "nano"
    for unknown in ("sky-huge", tmp_path / "no" / "last.pt"):
        with pytest.raises(FileNotFoundError, match=r"no such run, checkpoint or model; .*: sky-nano, sky-tiny"):
            load_model(unknown)


def test_all_shipped_models_load():
    for name in weights.shipped_models():
        model, card = load_model(name, device="cpu"), read_card(name)
        assert {"data", "metrics", "licence", "limits", "model"} <= set(card)
        c = model.config
        vectors = model.embed(torch.randn(2, len(c.bands), c.image_size, c.image_size))
        assert vectors.isfinite().all()


def test_damaged_weights_are_named(tmp_path):
    path = save_weights(build_model(CONFIG), tmp_path / "sky.safetensors", card={})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x40
    for content, message in [
        (flipped, "damaged: the weights have the fingerprint"),
        (whole[:1000], "cannot be read as weights"),
        (b"", "cannot be read as weights"),
    ]:
        path.write_bytes(content)
        with pytest.raises(OSError, match=rf"sky\.safetensors: {message}"):
            load_model(path)
    with pytest.raises(ValueError, match=r"sky\.pt: must end with \.safetensors"):
        save_weights(build_model(CONFIG), tmp_path / "sky.pt", card={})


def test_a_flipped_bit_in_a_checkpoint_is_found_and_the_one_before_taken(tmp_path, caplog):
    model, last = build_model(CONFIG), tmp_path / "checkpoints" / "last.pt"
    last.parent.mkdir()
    for step in (1, 2):
        save_checkpoint(last, checkpoint_of(model, step=step), keep=last.with_name("previous.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0x40
    last.write_bytes(content)
    assert zipfile.ZipFile(last).testzip()
    with pytest.raises(OSError, match=r"last\.pt: cannot be read as a checkpoint: the checksum of .* is wrong"):
        load_model(last)
    with caplog.at_level(logging.WARNING):
        path, checkpoint = load_last(tmp_path)
    assert (path.name, checkpoint["step"]) == ("previous.pt", 1)
    assert load_model(tmp_path, device="cpu").origin["step"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "cannot be read as the checkpoint of a training: it is a list"),
        ({"step": 1}, "cannot be read as the checkpoint of a training: it lacks model, model_config"),
        ({"model_config": {"size": "giant", "bands": ["g"]}}, "its weights and settings make no model: size='giant'"),
        (
            {"model_config": to_dict(CONFIG) | {"size": "tiny"}},
            "its weights and settings make no model: .*size mismatch",
        ),
        ({"model": {}}, "its weights and settings make no model: .*Missing key"),
        ({"model": "nan"}, "hold values that are not finite, the first is encoder.blocks.0.qkv.weight"),
    ],
)
def test_a_checkpoint_of_another_structure_is_named(tmp_path, content, message):
    model = build_model(CONFIG)
    if content == {"model": "nan"}:
        with torch.no_grad():
            model.encoder.blocks[0].qkv.weight[3] = np.nan
        content = {}
    whole = content if isinstance(content, list) or content == {"step": 1} else checkpoint_of(model) | content
    save_checkpoint(tmp_path / "best.pt", whole)
    with pytest.raises(OSError, match=rf"(?s)best\.pt: .*{message}"):
        load_model(tmp_path / "best.pt", device="cpu")


def test_a_start_with_other_bands_keeps_those_that_both_have(caplog):
    old = build_model(ModelConfig(**{**CONFIG.__dict__, "bands": ("r", "g", "y")}), seed=1)
    new = build_model(CONFIG, seed=2)
    before = {name: x.clone() for name, x in new.state_dict().items()}
    start_from(new, old)
    assert "bands g r y, this model g r i z y: the weights of g r y are kept; those of other bands" in caplog.text
    of_old, of_new, fresh = (
        x.unflatten(1, (-1, 64))
        for x in (old.encoder.embed.weight, new.encoder.embed.weight, before["encoder.embed.weight"])
    )
    assert torch.equal(of_new[:, [0, 1, 4]], of_old)
    assert torch.equal(of_new[:, [2, 3]], fresh[:, [2, 3]])
    for name in ("encoder.blocks.3.qkv.weight", "encoder.cls", "encoder.embed.bias", "decoder.blocks.0.fc1.weight"):
        assert torch.equal(new.state_dict()[name], old.state_dict()[name]), name
    for name in ("decoder.head.weight", "flux_head.layers.1.bias", "sky_sigma"):
        assert torch.equal(new.state_dict()[name], before[name]), name
    with pytest.raises(ValueError, match="start: that model has patch_size=8, this one 4"):
        start_from(build_model(ModelConfig(**{**CONFIG.__dict__, "patch_size": 4})), old)
