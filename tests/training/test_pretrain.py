import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from skylib import CutoutLoader, Interrupted, ModelConfig, PretrainConfig, Probe, TileLoader, load_model, pretrain
from skylib.config import VIT_SIZES
from skylib.model.checkpoint import load_checkpoint, load_last, save_checkpoint
from skylib.training import optimise
from skylib.training.monitor import read_metrics
from skylib.training.pretrain import Trainer

MODEL = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, mask_ratio=0.5)


def config(steps=12, **values):
    return PretrainConfig(
        **(
            {
                "steps": steps,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "warmup_steps": 2,
                "precision": "fp32",
                "log_every": 2,
                "checkpoint_every": 3,
                "validate_every": 6,
            }
            | values
        )
    )


def weights(run_dir):
    return load_checkpoint(run_dir / "checkpoints" / "last.pt")["model"]


def different(one, two):
    """Return by how much tensors of the same name differ, where they do."""
    return {k: float((one[k] - two[k]).abs().max()) for k in one if not torch.equal(one[k], two[k])}


def same(one, two):
    return not different(one, two)


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


RUNS = """
import json, os, signal, sys, threading
import skylib.plotting, torch._dynamo  # which a training loads late: once, not in each child
from skylib import CutoutFile, pretrain
from skylib.training.pretrain import Trainer
from tests.training.test_pretrain import MODEL, config
advance = Trainer._advance
def run(folder, stop, late):
    steps = iter(range(stop))
    def killed(self, *arguments):
        if next(steps, None) is None:  # a little later: within a step, a validation, or the writing of a checkpoint
            threading.Timer(late, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return advance(self, *arguments)
    Trainer._advance = killed
    data = CutoutFile(sys.argv[1])
    pretrain(MODEL, config(), train=data, validation=data, run_dir=folder)
for folder, stop, late in json.loads(sys.argv[2]):
    child = os.fork()  # a fresh process for each, which need not import everything anew
    if child == 0:
        code = 1
        try:
            run(folder, stop, late)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def test_killed_twenty_times_and_resumed_equals_uninterrupted(cutouts, tmp_path):
    rng, never = np.random.default_rng(0), 10**6
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Steps 0 to 4 after the start, so that runs get past a checkpoint (every 3 steps) now and then
    kills = [(str(killed), int(rng.integers(0, 5)), round(rng.uniform(0, 0.15), 3)) for _ in range(20)]
    # Both ends in processes of one kind: what else a process has loaded may change how sums are rounded.
    runs = [(str(whole), never, 0), *kills, (str(killed), never, 0)]
    arguments = [str(cutouts.path), json.dumps(runs)]
    done = subprocess.run([sys.executable, "-c", RUNS, *arguments], cwd=ROOT, capture_output=True, text=True)
    first, *codes, last = [int(line) for line in done.stdout.split()]
    assert (first, len(codes), last) == (0, 20, 0), done.stderr
    assert set(codes) <= {0, -signal.SIGKILL}, done.stderr
    assert codes.count(-signal.SIGKILL) >= 5
    assert different(weights(killed), weights(whole)) == {}
    metrics, wanted = read_metrics(killed), read_metrics(whole)
    for name in ("step", "loss", "gradient_norm", "validation_loss"):
        np.testing.assert_array_equal(metrics[name], wanted[name], err_msg=name)


def test_a_line_of_the_log_cut_by_a_kill_is_written_anew(whole_run, cutouts, tmp_path):
    def stopped(model, **options):
        raise Interrupted("here")

    with pytest.raises(Interrupted):
        pretrain(MODEL, config(), train=cutouts, validation=cutouts, probes=[stopped], run_dir=tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    result = pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    np.testing.assert_array_equal(result.metrics["loss"], whole_run.metrics["loss"])


def test_a_stop_file_ends_the_run_and_it_goes_on(whole_run, cutouts, tmp_path):
    (tmp_path / "STOP").touch()  # before anything has begun, as Slurm's warning may come
    with pytest.raises(Interrupted, match="stopped by a STOP file after step 1 of 12"):
        pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert not (tmp_path / "STOP").exists()
    pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_ends_the_run_and_it_goes_on(whole_run, cutouts, tmp_path, monkeypatch, name):
    before, advance = signal.getsignal(signal.SIGTERM), Trainer._advance

    def warned(self, *arguments):
        if self.step == 4:
            os.kill(os.getpid(), getattr(signal, name))
        return advance(self, *arguments)

    monkeypatch.setattr(Trainer, "_advance", warned)
    with pytest.raises(Interrupted, match=f"stopped by {name} after step 5 of 12"):
        pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    result = pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))
    np.testing.assert_array_equal(result.metrics["loss"], whole_run.metrics["loss"])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole_run, cutouts, tmp_path, caplog):
    pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    path, checkpoint = load_last(tmp_path)
    assert (path.name, checkpoint["step"]) == ("previous.pt", 9)
    assert "last.pt: cannot be read as a checkpoint" in caplog.text
    pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    with pytest.raises(OSError, match=r"previous\.pt: cannot be read"):
        pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path)


def test_parts_of_a_batch_give_the_same_as_the_whole(whole_run, cutouts, tmp_path):
    result = pretrain(MODEL, config(accumulate=4), train=cutouts, run_dir=tmp_path)
    np.testing.assert_allclose(result.metrics["loss"], whole_run.metrics["loss"], rtol=1e-4)
    with pytest.raises(ValueError, match="batch_size=32: must be a multiple of accumulate=5"):
        config(accumulate=5)


def test_two_processes_give_the_same_as_one(whole_run, cutouts, tmp_path):
    assert MODEL.hide_bands > 0 < MODEL.flux_weight  # all terms of the loss take part
    result = pretrain(MODEL, config(), train=cutouts, validation=cutouts, run_dir=tmp_path, processes=2, device="cpu")
    assert result.metrics["step"].tolist() == whole_run.metrics["step"].tolist()
    np.testing.assert_allclose(result.metrics["loss"], whole_run.metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(
        result.metrics["validation_loss"].dropna(), whole_run.metrics["validation_loss"].dropna(), rtol=1e-3
    )
    assert (tmp_path / "workers.log").is_file()
    with pytest.raises(
        RuntimeError, match=r"2 processes: one failed .*: ValueError: batch_size=33: cannot be divided among 2"
    ):
        pretrain(MODEL, config(batch_size=33), train=cutouts, run_dir=tmp_path / "odd", processes=2, device="cpu")


def test_processes_that_are_asked_to_stop_do(whole_run, cutouts, tmp_path):
    (tmp_path / "STOP").touch()
    with pytest.raises(Interrupted, match="stopped by a STOP file after step 2 of 12"):
        pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path, processes=2, device="cpu")
    result = pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path)  # and one goes on where two stood
    np.testing.assert_allclose(result.metrics["loss"], whole_run.metrics["loss"], rtol=1e-4)


def test_averaged_weights_are_validated_and_loaded(cutouts, tmp_path):
    result = pretrain(MODEL, config(ema=0.5), train=cutouts, validation=cutouts, run_dir=tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert same(result.model.state_dict(), checkpoint["optimiser"]["average"])
    assert not same(checkpoint["model"], checkpoint["optimiser"]["average"])
    best = load_model(tmp_path / "checkpoints" / "best.pt")
    assert same(best.state_dict(), result.model.state_dict())  # the loss falls to the end


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_a_compiled_step_is_the_same_step(cutouts, tmp_path, monkeypatch):
    monkeypatch.setitem(VIT_SIZES, "nano", (128, 2, 4))  # of six blocks the compiler takes a minute
    plain = pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path / "plain")
    # Torch's linker call breaks at a space in its own path, and without a C++ compiler there is none at all.
    able = shutil.which("g++") is not None and " " not in torch.__file__
    with nullcontext() if able else pytest.warns(UserWarning, match="training is not compiled, and slower"):
        result = pretrain(MODEL, config(compile=True), train=cutouts, run_dir=tmp_path / "compiled")
    np.testing.assert_allclose(result.metrics["loss"], plain.metrics["loss"], rtol=1e-3)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(whole_run, cutouts, tmp_path, monkeypatch):
    def broken(step, **_):
        def run(*_):
            raise RuntimeError("no compiler found")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="not compiled, and slower: RuntimeError: no compiler found"):
        pretrain(MODEL, config(compile=True), train=cutouts, validation=cutouts, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))


def test_figures_follow_the_run(whole_run):
    for name in ("progress", "reconstruction"):
        assert (whole_run.run_dir / "figures" / f"{name}.png").stat().st_size > 10_000


def test_probes_and_validation_do_not_touch_the_training(whole_run, cutouts, tmp_path):
    split = np.arange(len(cutouts)) % 3
    probes = [Probe("class", cutouts, "classification", split), Probe("z_spec", cutouts, "regression", split)]
    result = pretrain(MODEL, config(), train=cutouts, probes=probes, run_dir=tmp_path)
    assert same(weights(tmp_path), weights(whole_run.run_dir))
    assert result.metrics["probe_class_accuracy"].dropna().between(0, 1).all()
    assert result.metrics["probe_z_spec_r2"].notna().sum() == 2
    assert result.metrics["rank"].dropna().between(1, 128).all()


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
        loader = CutoutLoader(cutouts, batch_size=32)
        pretrain(
            ModelConfig(bands=("g", "r"), size="nano", image_size=32), config(), train=loader, run_dir=whole_run.run_dir
        )


def test_a_gradient_that_stays_bad_stops_the_run(cutouts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        optimise.SummedLoss,
        "forward",
        lambda self, flux, *_: (sum(p.sum() for p in self.model.parameters()) * torch.nan, torch.tensor(1.0)),
    )
    with pytest.raises(FloatingPointError, match="not finite in 4 steps in a row, up to step 4"):
        pretrain(MODEL, config(max_bad_steps=3), train=cutouts, run_dir=tmp_path)
    assert "2 steps without a finite gradient were skipped" in caplog.text


def test_training_on_tiles_in_half_precision(tiles, tmp_path):
    loader = TileLoader(tiles, batch_size=32, size=32)
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held["model"].popitem(), "cannot be resumed: RuntimeError: Error.*Missing key"),
        (lambda held: held.update(model_config="x"), "cannot be read as the checkpoint of a training: .* mappings"),
        (
            lambda held: held.update(step="6"),
            "cannot be read as the checkpoint of a training: step='6' must be a whole",
        ),
        (
            lambda held: held["model_config"].update(x=1),
            "cannot be resumed: ValueError: unknown fields of ModelConfig: x",
        ),
        (lambda held: held.pop("optimiser"), "cannot be resumed: KeyError: 'optimiser'"),
        (lambda held: held.pop("pretrain_config"), "cannot be resumed: KeyError: 'pretrain_config'"),
    ],
)
def test_checkpoints_of_odd_content_are_named(tmp_path, whole_run, cutouts, damage, message):
    held = load_checkpoint(whole_run.run_dir / "checkpoints" / "last.pt")
    damage(held)
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", held)
    with pytest.raises(OSError, match=rf"(?s)last\.pt: {message}"):
        pretrain(MODEL, config(), train=cutouts, run_dir=tmp_path)


def test_a_missing_last_checkpoint_gives_way_with_a_warning(tmp_path, whole_run, caplog):
    held = load_checkpoint(whole_run.run_dir / "checkpoints" / "last.pt")
    save_checkpoint(tmp_path / "checkpoints" / "previous.pt", held)
    load_model(tmp_path)
    assert "last.pt: no such checkpoint; going back to" in caplog.text


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1, "x": torch.zeros(10)})
    code = f"import torch\nfrom skylib.model.checkpoint import save_checkpoint\nprint('go', flush=True)\nwhile True: save_checkpoint({str(path)!r}, {{'step': 2, 'x': torch.zeros(3_000_000)}})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    for _ in range(20):
        time.sleep(0.01)
        assert load_checkpoint(path)["step"] in (1, 2)
    process.kill()
    process.communicate()
    assert load_checkpoint(path)["step"] in (1, 2)
