"""The path through a GPU, against the one through the CPU."""

import numpy as np
import pytest
import torch

from skylib import TileLoader, embed, load_model, pretrain
from skylib.config import ModelConfig
from tests.training.test_pretrain import MODEL, config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it compiles
]


@pytest.mark.parametrize("objective", ["mae", "simmim"])
def test_a_compiled_run_in_bf16_learns_and_its_embeddings_are_those_of_the_cpu(cutouts, tmp_path, objective):
    model = ModelConfig(**{**MODEL.__dict__, "objective": objective})
    run = pretrain(model, config(precision="bf16"), train=cutouts, validation=cutouts, run_dir=tmp_path, device="cuda")
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0]
    here = embed(load_model(tmp_path, device="cpu"), cutouts, precision="fp32").vectors
    there = embed(load_model(tmp_path, device="cuda"), cutouts, precision="bf16", compile=True).vectors
    cosine = (here * there).sum(axis=1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    assert cosine.min() > 0.99


def test_a_run_on_tiles_resumes_on_a_gpu(tiles, tmp_path):
    for steps in (4, 8):
        loader = TileLoader(tiles, batch_size=16, size=32, device="cuda", variance=True)
        run = pretrain(MODEL, config(steps=steps), train=loader, run_dir=tmp_path, device="cuda")
    assert run.metrics["step"].tolist() == [2, 4, 6, 8]
    assert run.metrics["loss"].notna().all()
