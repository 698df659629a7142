import json
import os
import signal
import subprocess
import sys
import time

import pytest

from skylib import lock
from skylib.lock import SILENT, locked, node

HOLD = "import sys, time\nfrom skylib.lock import locked\nwith locked(sys.argv[1], 'a training'):\n    print('held', flush=True)\n    time.sleep(60)"


def test_one_process_at_a_time_and_the_other_is_told_who(tmp_path):
    path = tmp_path / "training.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(
        ValueError, match=rf"a training is at work there already, on {node()} \(process {holder.pid}, since 20"
    ):
        locked(path, "a training").__enter__()
    holder.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # not waited for: a zombie is gone, too
    with locked(path, "a training"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(ValueError, match="in this very process"):
            locked(path, "a training").__enter__()
    holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_another_node_is_believed_as_long_as_it_gives_a_heartbeat(tmp_path, monkeypatch):
    path = tmp_path / "training.lock"

    def left(age, **values):
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "7", "since": "2026-01-01"} | values))
        os.utime(path, (time.time() - age,) * 2)

    left(60)
    with pytest.raises(ValueError, match=r"on elsewhere \(job 7, process 1, since 2026-01-01, last heartbeat 60 s ago"):
        locked(path, "a training").__enter__()
    left(SILENT + 1)
    with locked(path, "a training"):
        pass
    left(1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # requeued, after its node had failed
    with locked(path, "a training"):
        pass
    left(1, host=node(), pid=os.getppid(), began="1")  # the number belongs to another process by now
    monkeypatch.delenv("SLURM_JOB_ID")
    with locked(path, "a training"):
        pass


@pytest.mark.parametrize("content", ["", "null", '{"host"', "\x00" * 30, "[1]"])
def test_a_damaged_lock_does_not_block(tmp_path, content, caplog):
    (tmp_path / "training.lock").write_text(content)
    with locked(tmp_path / "training.lock", "a training"):
        pass
    assert "training.lock: the lock file cannot be read" in caplog.text


def test_a_heartbeat_is_given_as_long_as_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with locked(path := tmp_path / "training.lock", "a training"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
