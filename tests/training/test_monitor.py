import base64
import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from skylib.training.monitor import Recorder, read_metrics

CELL = """\
from skylib import CutoutFile, ModelConfig, PretrainConfig, pretrain
data = CutoutFile({cutouts!r})
model = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, mask_ratio=0.5)
config = PretrainConfig(steps=8, batch_size=32, warmup_steps=1, precision="fp32", log_every=1, validate_every=2)
result = pretrain(model, config, train=data, validation=data, run_dir={run_dir!r})"""


def test_in_a_notebook_the_figures_are_updated_in_place(cutouts, tmp_path):
    run_dir, book = tmp_path / "run", tmp_path / "book.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    source = CELL.format(cutouts=str(cutouts.path), run_dir=str(run_dir))
    nbformat.write(new_notebook(cells=[new_code_cell(source)], metadata=kernel), book)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(book)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = json.loads(book.read_text())["cells"][0]["outputs"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    shown = [output["data"]["image/png"] for output in pictures]
    assert len(shown) == 2  # drawn four times each
    assert all(output["metadata"]["live"] for output in pictures)
    for image, name in zip(shown, ("progress", "reconstruction"), strict=True):
        assert base64.b64decode(image) == (run_dir / "figures" / f"{name}.png").read_bytes(), name


@pytest.mark.parametrize(
    "damage", [b"null\n[1]\n{}\n", b'{"step": "x"}\n{"loss"\n', bytes(range(128, 200)) + b"\n\x00\x00\n"]
)
def test_a_damaged_log_is_set_aside_and_what_can_be_read_goes_on(tmp_path, caplog, damage):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 2, "loss": 0.5}\n' + damage + b'{"step": 9, "loss": 0.4}\n')
    assert read_metrics(tmp_path)["step"].tolist() == [2, 9]
    recorder = Recorder(tmp_path, step=4)
    assert "metrics.jsonl: " in caplog.text
    assert (tmp_path / "metrics.damaged.jsonl").is_file()
    recorder.write({"step": 6, "loss": 0.3})
    assert log.read_text() == '{"step": 2, "loss": 0.5}\n{"step": 6, "loss": 0.3}\n'
