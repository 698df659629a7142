"""Several processes: on one node, and on several as Slurm starts them; nobody outside can tell them what to do."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from skylib.training.distributed import join, launch, rank_and_size

# As srun does it: the command on each of two nodes, each with a copy of the standard input. Both are this machine.
SRUN = """#!{python}
import os, subprocess, sys, tempfile
command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
task, nodes = sys.stdin.buffer.read(), []
for node in "01":
    with tempfile.TemporaryFile() as file:
        file.write(task)
        file.seek(0)
        environ = os.environ | {{"SLURM_NODEID": node, "SLURM_STEP_NUM_NODES": "2"}}
        nodes.append(subprocess.Popen(command, stdin=file, env=environ))
sys.exit(max(node.wait() for node in nodes))
"""
SCONTROL = """#!/bin/sh
if [ "$2" = hostnames ]; then echo localhost; else echo "NodeName=localhost NodeAddr=127.0.0.1 Port=1"; fi
"""
WORK = "tests.training.test_distributed:work"
LISTENING = "0A"  # a state in /proc/net/tcp


def work(folder):
    """What each process does: sum, agree, and write down what it is, and where it listens."""
    with join("cpu") as world:
        total, first = world.sum(torch.tensor(2.0 + world.rank)).item(), world.agree(world.rank)
        (Path(folder) / f"process-{world.rank}").write_text(repr((rank_and_size(), total, first, list(listening()))))


def listening():
    """Give the addresses at which this process takes connections: Linux only."""
    own = [os.path.realpath(f"/proc/self/fd/{fd}").rpartition("/")[2] for fd in os.listdir("/proc/self/fd")]
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and f"socket:[{words[9]}]" in own:
                yield words[1].partition(":")[0]


def found(folder):
    return [eval((folder / f"process-{rank}").read_text()) for rank in range(2)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_of_one_node_obey_only_their_parent_and_listen_to_nobody_else(tmp_path):
    tripped = tmp_path / "tripped"
    for name in ("workers.task", "workers.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(tripped)))
    launch(WORK, {"folder": str(tmp_path)}, run_dir=tmp_path, processes=2)
    loopback = {"0100007F", "0" * 24 + "01000000"}
    for rank, (place, total, first, addresses) in enumerate(found(tmp_path)):
        assert (place, total, first) == ((rank, 2), 5.0, 0)
        assert set(addresses) <= loopback
    assert not tripped.exists()


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_two_nodes_sum_and_agree_as_one_does(tmp_path, monkeypatch):
    for name, script in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for name, value in {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),  # decides the port
    }.items():
        monkeypatch.setenv(name, value)
    launch(WORK, {"folder": str(tmp_path)}, run_dir=tmp_path, processes=1)
    assert [(place, total, first) for place, total, first, _ in found(tmp_path)] == [((0, 2), 5.0, 0), ((1, 2), 5.0, 0)]
