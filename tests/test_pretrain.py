import importlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from skylib import CutoutLoader, ModelConfig, PretrainConfig, Probe, TileLoader, load_model, pretrain
from skylib.checkpoint import load_checkpoint, save_checkpoint
from skylib.pretrain import read_metrics

MODEL = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, mask_ratio=0.5)


def config(steps=12, **values):
    return PretrainConfig(**({"steps": steps, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32",
                              "log_every": 2, "checkpoint_every": 3, "validate_every": 6} | values))  # fmt: skip


def weights(run_dir):
    return load_checkpoint(run_dir / "checkpoints" / "last.pt")["model"]


def same(one, two):
    return all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def whole_run(cutouts, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    return pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=run_dir)


def test_a_run_leaves_what_the_layout_says(whole_run):
    run_dir = whole_run.run_dir
    assert json.loads((run_dir / "config.json").read_text())["model"]["size"] == "nano"
    assert read_metrics(run_dir)["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert whole_run.metrics["loss"].iloc[-1] < whole_run.metrics["loss"].iloc[0]
    assert whole_run.metrics["validation_loss"].notna().sum() == 2
    model = load_model(run_dir)
    assert not model.training
    assert same(model.state_dict(), weights(run_dir))
    assert (model.sky_sigma[:4] < 0.3).all()


KILLED = """
import sys, os, signal
import importlib
from skylib import CutoutFile, ModelConfig
from tests.test_pretrain import MODEL, config
p = importlib.import_module("skylib.pretrain")  # skylib.pretrain is the function
stop, done = int(sys.argv[3]), 0
step = p._loss
def killed_at(*arguments):
    global done
    done += 1
    if done > stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
p._loss = killed_at
p.pretrain(MODEL, config(), train=CutoutFile(sys.argv[1]), run_dir=sys.argv[2])
"""


@pytest.mark.parametrize("stop", [2, 7])
def test_killed_and_resumed_equals_uninterrupted(whole_run, cutouts, tmp_path, stop):
    root = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(cutouts.path), str(tmp_path), str(stop)], cwd=root, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # what a kill may leave of a line
    result = pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))
    assert result.metrics["loss"].tolist() == pytest.approx(whole_run.metrics["loss"].tolist(), abs=0.05)
    assert result.metrics["step"].is_unique


def test_probes_and_validation_do_not_touch_the_training(whole_run, cutouts, tmp_path):
    split = np.arange(len(cutouts)) % 3
    probes = [Probe("class", cutouts, "classification", split), Probe("z_spec", cutouts, "regression", split)]
    result = pretrain(MODEL, config(), train=cutouts, probes=probes, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))
    assert result.metrics["probe_class_accuracy"].dropna().between(0, 1).all()
    assert result.metrics["probe_z_spec_r2"].notna().sum() == 2


def test_a_finished_run_is_not_run_again(whole_run, cutouts):
    before = (whole_run.run_dir / "checkpoints" / "last.pt").stat().st_mtime_ns
    again = pretrain(MODEL, config(), train=cutouts, run_dir=whole_run.run_dir)
    assert again.step == 12
    assert (whole_run.run_dir / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_another_model_is_refused_with_the_difference(whole_run, cutouts):
    other = ModelConfig(**{**MODEL.__dict__, "patch_size": 4})
    with pytest.raises(ValueError, match=r"another model \(patch_size: 8 -> 4\)"):
        pretrain(other, config(), train=cutouts, run_dir=whole_run.run_dir)
    with pytest.raises(ValueError, match="training data holds bands g r i z y, the model g r"):
        loader = CutoutLoader(cutouts, batch_size=8)
        pretrain(
            ModelConfig(bands=("g", "r"), size="nano", image_size=32), config(), train=loader, run_dir=whole_run.run_dir
        )


def test_a_loss_that_is_not_finite_stops_the_run(cutouts, tmp_path, monkeypatch):
    module = importlib.import_module("skylib.pretrain")  # skylib.pretrain is the function
    monkeypatch.setattr(module, "_loss", lambda model, *_: sum(p.sum() for p in model.parameters()) * torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path)


def test_every_setting_reaches_the_training(cutouts, tmp_path):
    def final(name, **values):
        pretrain(MODEL, config(steps=5, **values), train=cutouts, run_dir=tmp_path / name)
        return weights(tmp_path / name)

    base = final("base")
    for name, value in {"learning_rate": 2e-3, "weight_decay": 10.0, "warmup_steps": 0, "clip_grad": 1e-3, "seed": 1,
                        "precision": "bf16", "final_learning_rate": 1e-3, "betas": (0.5, 0.5), "batch_size": 16}.items():  # fmt: skip
        assert not same(base, final(name, **{name: value})), name


def test_training_on_tiles_in_half_precision(tiles, tmp_path):
    loader = TileLoader(tiles, batch_size=16, size=32)
    result = pretrain(MODEL, config(steps=6, precision="bf16"), train=loader, run_dir=tmp_path)
    assert result.metrics["loss"].notna().all()
    assert result.step == 6


def test_damaged_checkpoints_are_named(tmp_path, whole_run):
    whole = (whole_run.run_dir / "checkpoints" / "last.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"cut\.pt: cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match=r"last\.pt: no such checkpoint"):
        load_model(tmp_path)


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1, "x": torch.zeros(10)})
    code = f"import torch\nfrom skylib.checkpoint import save_checkpoint\nprint('go', flush=True)\nwhile True: save_checkpoint({str(path)!r}, {{'step': 2, 'x': torch.zeros(3_000_000)}})"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    for _ in range(20):
        time.sleep(0.01)
        assert load_checkpoint(path)["step"] in (1, 2)
    process.kill()
    process.communicate()
    assert load_checkpoint(path)["step"] in (1, 2)
