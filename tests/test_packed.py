import numpy as np
import pytest
import torch

from skylib import ModelConfig, build_model, embed
from skylib.device import PackedLinear, autocast, fast_precision, keyed_generator, packed
from skylib.model.embed import encode
from skylib.model.vit import GeluLinear

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(fast_precision(CPU) != "bf16", reason="needs a processor with instructions for bf16")


@needs_bf16
@pytest.mark.parametrize("kind", [torch.nn.Linear, GeluLinear])
@pytest.mark.parametrize("shape", [(1, 3), (7, 17, 40), (2, 65, 768)])
def test_a_packed_layer_computes_what_the_layer_does(kind, shape):
    layer = kind(shape[-1], 24)
    torch.nn.init.normal_(layer.bias, generator=keyed_generator(0))
    x = torch.randn(shape, generator=keyed_generator(1))
    with torch.inference_mode():
        rounded = kind(shape[-1], 24)  # the same numbers, computed exactly
        rounded.load_state_dict({name: p.bfloat16().float() for name, p in layer.state_dict().items()})
        exact = rounded(x.bfloat16().float())
        found = PackedLinear(layer)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-3)  # one rounding, at the end


@needs_bf16
@pytest.mark.parametrize("values", [{}, {"ra_dec": True}])
def test_a_packed_model_embeds_as_the_model_in_the_same_precision(values):
    model = build_model(ModelConfig(size="tiny", image_size=32, patch_size=8, **values)).eval()
    flux = torch.randn(16, 5, 32, 32, generator=keyed_generator(1))
    place = {"ra": torch.linspace(0, 300, 16), "dec": torch.linspace(-60, 60, 16)} if values else {}
    pools = ["mean", "cls", "central"]
    quick = packed(model, precision="bf16")
    for pool in pools:
        with torch.inference_mode():
            exact = model.embed(flux, pool=pool, **place)
            with autocast(CPU, "bf16"):
                plain, found = (m.embed(flux, pool=pool, **place).float() for m in (model, quick))
        error, allowed = (found - exact).square().mean().sqrt(), (plain - exact).square().mean().sqrt()
        assert 0 < error < 1.2 * allowed, pool


@needs_bf16
def test_packing_leaves_the_model_as_it_is():
    model = build_model(ModelConfig(size="nano", image_size=16, patch_size=4))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    quick = packed(model, precision="bf16")
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(isinstance(module, torch.nn.Linear) for module in quick.encoder.modules())
    assert quick.decoder is model.decoder
    quick.encoder.blocks[0].register_forward_hook(lambda *_: None)
    assert not model.encoder.blocks[0]._forward_hooks
    flux = torch.randn(3, 5, 16, 16, generator=keyed_generator(2))
    with autocast(CPU, "bf16"):
        one, two = (m.reconstruct(flux, generator=keyed_generator(3))[0] for m in (quick, model))
    torch.testing.assert_close(one, two, rtol=0.1, atol=0.1)
    assert quick.encoder.positions is model.encoder.positions
    model(torch.ones(2, 5, 16, 16)).loss.backward()  # and it still learns
    assert model.encoder.blocks[0].fc1.weight.grad is not None


def test_in_full_precision_the_model_itself_is_used():
    model = build_model(ModelConfig(size="nano", image_size=16, patch_size=4))
    assert packed(model, precision="fp32") is model


@needs_bf16
def test_embedding_uses_packed_layers_and_reads_all_of_them(cutouts, monkeypatch):
    calls = []
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    model = build_model(ModelConfig(size="nano", image_size=16, patch_size=4))
    rows = np.arange(20)
    read = encode(model, cutouts, rows=rows, pools=("mean", "cls"), layers=(1, -1), precision="bf16")
    assert len(calls) == 1 + 4 * len(model.encoder.blocks)
    for (layer, pool), vectors in read.items():
        calls.clear()
        alone = embed(model, cutouts, rows=rows, pool=pool, layer=layer, precision="bf16").vectors
        assert calls
        np.testing.assert_allclose(vectors, alone, rtol=0.02, atol=0.02)
