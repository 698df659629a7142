"""The benchmark of recipes runs from end to end, with the packages alone that a bare machine for computing has."""

import json
import logging
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "recipes.py"
# Runs a script where notebooks, widgets, maps and downloads are not installed.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder

ABSENT = {"IPython", "anywidget", "ipykernel", "ipywidgets", "jscatter", "jupyter_client", "nbconvert", "nbformat", "papermill",
          "pooch", "pyarrow", "requests", "tensorboard", "traitlets", "umap"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_recipe_is_trained_and_measured_beside_its_rivals_with_few_packages(tmp_path, monkeypatch, capsys):
    survey, out, log = str(tmp_path / "survey"), str(tmp_path / "results"), logging.getLogger("skylib")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))

    def script(command, *arguments):
        """Run the script in this process, and return what it prints."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), command, *arguments])
        level = log.level  # which the script changes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(SCRIPT), run_name="__main__")
        log.setLevel(level)
        return capsys.readouterr().out

    script("survey", "--out", survey, "--quick", "--tiles", "5", "--extra-tiles", "1", "--workers", "1")
    training = ("--survey", survey, "--out", out, "--steps", "4", "--batch", "16")
    alone = ("run", *training, "--recipe", "patch", "--extra", "--attentive")
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(SCRIPT), *alone], capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = script("study", *training, "--recipes", "plain,nonsense,original", "--seeds", "0", "--minutes", "10")
    assert "left out: recipe 'nonsense'" in printed
    assert "| original | 1 |" in printed
    script("rivals", "--survey", survey, "--out", out)
    printed = script("table", "--out", out)
    for name in ("patch", "plain", "original", "random weights", "pixel PCA", "upper bound: noise-free magnitudes"):
        assert f"| {name} |" in printed
    rows = {path.stem: json.loads(path.read_text()) for path in Path(out, "rows").iterdir()}
    assert rows["original-0"]["steps"] < rows["plain-0"]["steps"] == 4
    assert rows["original-0"]["training TFLOP"] < 2 * rows["plain-0"]["training TFLOP"]
    assert 0 < rows["patch-0"]["class attentive"] <= 1
    for name in ("plain-0", "pixel PCA-0"):
        assert {"class", "class kNN star", "z R2", "z sigma_mad", "RankMe", "recall@100 arc", "R2 of seeing"} <= set(
            rows[name]
        )
    truth, measured = (
        rows[f"{name}-0"] for name in ("upper bound noise-free magnitudes", "magnitudes measured on the pixels")
    )
    assert truth["class"] > measured["class"]
