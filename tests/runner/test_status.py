import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from skylib.__main__ import main
from skylib.files import write_json
from skylib.lock import SILENT
from skylib.runner.status import earlier_record, format_status, read_status


def write_record(run_dir, notebook, *, task=None, age=0.0, **content):
    """Write a record as the runner does, with a heartbeat so many seconds ago."""
    default = {"state": "running", "notebook": notebook, "task": task, "started": "2026-01-01T00:00:00+00:00"}
    default |= {"host": "n7", "pid": 1, "job": "42", "restarts": 0, "parameters": {}, "source": ""}
    path = run_dir / "status" / f"{notebook.removesuffix('.ipynb')}{f'.{task}' if task else ''}.json"
    write_json(path, default | content)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def runs(tmp_path):
    """A folder of runs: one trains, one failed after others had been done, one is silent, one is an array."""
    trains = tmp_path / "trains"
    write_record(trains, "00_make_cutouts.ipynb", state="done", age=900)
    write_record(trains, "01_pretrain.ipynb", restarts=2, age=20)
    (trains / "config.json").write_text('{"pretrain": {"steps": 1000}}')
    lines = [
        {"step": 25, "loss": 0.9, "images_per_s": 100.0},
        {"step": 50, "probe_class_accuracy": 0.75},
        {"step": 75, "loss": 0.8, "images_per_s": 120.0},
    ]
    (log := trains / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 100, "lo')
    os.utime(log, (time.time() - 20,) * 2)
    write_record(tmp_path / "failed", "01_pretrain.ipynb", state="done", age=7200)
    write_record(
        tmp_path / "failed", "02_evaluate.ipynb", state="failed", cell=4, error="KeyError: 'no column'", age=300
    )
    write_record(tmp_path / "silent", "01_pretrain.ipynb", age=SILENT + 5)
    for row, state in enumerate(["done", "running", "done"]):
        write_record(tmp_path / "deep" / "array", "04_label_efficiency.ipynb", task=str(row), state=state)
    return tmp_path


def test_the_table_tells_how_runs_stand(runs):
    table = pd.DataFrame(read_status(runs)).set_index("run")
    states = {"trains": "running", "failed": "failed", "silent": "silent", "deep/array": "running"}
    assert table["state"].to_dict() == states
    row = table.loc["trains"]
    assert (row["notebook"], row["step"], row["steps"], row["restarts"]) == ("01_pretrain", 75, 1000, 2)
    assert (row["loss"], row["probe"], row["images_per_s"]) == (0.8, 0.75, 120.0)
    assert 19 < row["silent_for"] < 60
    assert table.loc["deep/array", "notebook"] == "04_label_efficiency (2/3 tasks)"
    text = format_status(read_status(runs))
    assert "75/1000" in text
    assert text.splitlines()[-1] == "failed: 02_evaluate failed in cell [4]: KeyError: 'no column'"


def test_a_run_folder_gives_a_row_a_notebook(runs):
    table = pd.DataFrame(read_status(runs / "trains")).set_index("run")
    assert table["state"].to_dict() == {"00_make_cutouts": "done", "01_pretrain": "running"}
    assert table.loc["01_pretrain", "loss"] == 0.8
    assert table["loss"].isna().to_dict() == {"00_make_cutouts": True, "01_pretrain": False}


def test_the_command_shows_it_and_watches(runs, capsys):
    assert main(["status", str(runs)]) == 0
    assert "deep/array" in capsys.readouterr().out
    assert main(["status", str(runs / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (runs / "empty").mkdir()
    assert main(["status", str(runs / "empty")]) == 2
    assert "holds no run" in capsys.readouterr().err
    command = [sys.executable, "-m", "skylib", "status", str(runs), "--watch", "0.1"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    shown = ""
    for line in watching.stdout:
        shown += line
        if shown.count("heartbeat") == 2:
            break
    watching.terminate()
    watching.communicate(timeout=30)
    assert "running" in shown


def test_a_run_that_still_gives_heartbeats_is_running_however_old_its_record(runs):
    assert read_status(runs / "silent")[0]["state"] == "silent"
    (runs / "silent" / "status" / "01_pretrain.lock").touch()
    (row,) = read_status(runs / "silent")
    assert row["state"] == "running"
    assert row["silent_for"] < 60


@pytest.mark.parametrize(
    "damage", ["", '{"state": "runn', "null", "\x00" * 50, '{"state": "x"}', "{}", '{"state": "done", "parameters": 3}']
)
def test_a_damaged_record_is_set_aside_and_left_out(tmp_path, caplog, damage):
    write_record(tmp_path, "00_make_cutouts.ipynb", state="done")
    path = tmp_path / "status" / "01_pretrain.json"
    path.write_text(damage)
    assert [row["run"] for row in read_status(tmp_path)] == ["00_make_cutouts"]
    assert f"{path}: " in caplog.text
    assert earlier_record(path) == {}
    assert path.with_suffix(".damaged").read_text() == damage
    assert not path.exists()
