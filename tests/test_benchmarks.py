"""Every benchmark runs; what it measures here is not looked at."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "case", "quantity"),
    [
        ("training", "nano mae", "x Hugging Face"),
        ("embedding", "nano, embed", "x plain loop"),
        ("scaling", "embed 1000 images", "memory MB"),
    ],
)
def test_a_benchmark_runs_and_writes_what_it_found(tmp_path, script, case, quantity):
    if script == "training":
        pytest.importorskip("transformers", reason="needs transformers, of the extra benchmark")
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found[case][quantity] is None or found[case][quantity] > 0
    assert {"cpu", "threads", "gpu", "torch", "revision", "date"} <= set(found["_where"])
    assert f"| {case}" in done.stdout


def test_the_benchmark_of_gpus_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick", "--out", str(tmp_path), "--side-by-side", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row.get("exit status") for row in found["jobs"].values()} == {0}, (tmp_path / "gpu.log").read_text()[-3000:]
    assert "errors" not in found
    assert {row["outcome"] for row in found["tests"].values()} <= {"passed", "skipped"}
    assert found["training"]["nano mae, from tiles"]["images/s"] > 0
    assert found["search"]["64 queries, plain product and topk"]["same answers"] > 0.99
    assert "| nano mae, from a file |" in (tmp_path / "gpu.md").read_text()


def test_the_busy_share_counts_each_moment_once():
    spec = importlib.util.spec_from_file_location("gpu_bench", FOLDER / "gpu_bench.py")
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    kernel = {"cat": "kernel", "name": "a"}
    events = [
        {**kernel, "ts": 0, "dur": 4},
        {**kernel, "ts": 2, "dur": 4, "name": "b"},
        {**kernel, "ts": 8, "dur": 2},
        {"cat": "gpu_user_annotation", "name": "step", "ts": 0, "dur": 100},
        {"ph": "M", "name": "meta"},
    ]
    assert gpu.read_trace(events) == (0.8, [("a", 2, 0.006, 0.6), ("b", 1, 0.004, 0.4)])
    assert gpu.read_trace([]) == (0.0, [])
