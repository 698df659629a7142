"""Several processes that train one model: joining them, and starting them from a notebook."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, start_processes

from skylib.device import pick_device
from skylib.stopping import Interrupted, StopRequest

_MEET = "SKYLIB_MEET"  # variable for the workers of one node: where they meet
_PATIENCE = 10.0  # seconds that the other workers have to end after one has failed


@dataclass(frozen=True)
class World:
    """The processes that train together: this one's number, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def part(self, values: Tensor) -> Tensor:
        """Return this process's part of a tensor that is the same in all of them."""
        return values.chunk(self.size)[self.rank]

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]


def rank_and_size() -> tuple[int, int]:
    """Return which process this is, from 0, of how many that were started together; (0, 1) for one on its own."""
    size = _number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", 1)
    return _number("RANK", "SLURM_PROCID", 0) if size > 1 else 0, size


def _number(of_torch: str, of_slurm: str, default: int) -> int:
    return int(os.environ.get(of_torch, os.environ.get(of_slurm, default)))


@contextmanager
def join(device: str | torch.device | None = None) -> Iterator[World]:
    """Meet the other processes that `launch`, ``torchrun`` or ``srun`` started, if any.

    Parameters
    ----------
    device : optional
        As in `pick_device`; with several processes on CUDA each takes a GPU of its own.
    """
    (rank, size), device = rank_and_size(), pick_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        # Slurm may show each task one GPU alone, or all of them.
        device = torch.device("cuda", _number("LOCAL_RANK", "SLURM_LOCALID", 0) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    owned = not dist.is_initialized()
    if owned:
        if _MEET not in os.environ and "MASTER_ADDR" not in os.environ:  # started by srun
            os.environ |= _meeting_point(os.environ["SLURM_STEP_NODELIST"])
        one_node = _MEET in os.environ or os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1")
        if one_node and sys.platform == "linux":  # then nobody outside this machine can reach the processes
            os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        # The others wait while the first validates, draws and saves.
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=os.environ.get(_MEET, "env://"),
            rank=rank,
            world_size=size,
            timeout=timedelta(hours=6),
        )
    try:
        yield World(rank, size, device)
    finally:
        if owned:
            dist.destroy_process_group()


def launch(
    function: str,
    arguments: Mapping[str, Any],
    *,
    run_dir: str | Path,
    processes: int,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Run a function in several processes and wait for it.

    Inside a Slurm allocation of several nodes, `processes` run on each node, started by ``srun``.

    Parameters
    ----------
    function : str
        As ``module:name``.
    arguments : mapping
        By keyword; anything that can be pickled.
    run_dir : path
        Gets what the processes print, as ``workers.log``.
    processes : int
        On each node.
    watch : callable
        Called a few times per second while they run.

    Raises
    ------
    Interrupted
        If the processes were asked to stop, and did.
    RuntimeError
        If one of them fails; with its error, or the end of the log.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    log, failure = run_dir / "workers.log", run_dir / "workers.error"
    failure.unlink(missing_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environ = {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ}
    command = [sys.executable, "-m", __name__, str(failure), str(processes)]
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if nodes > 1:
        environ |= _meeting_point(os.environ["SLURM_JOB_NODELIST"])
        srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            srun.append(f"--cpus-per-task={cpus}")  # srun does not take it over from the job (Slurm 22.05)
        command = [*srun, *command]
    # The task comes from a file without a name: what only this process can have written.
    with open(log, "ab") as file, tempfile.TemporaryFile() as task, StopRequest(run_dir) as stop:
        start = file.tell()
        pickle.dump((function, dict(arguments)), task)
        task.seek(0)
        streams: dict[str, Any] = {"stdin": task, "stdout": file, "stderr": subprocess.STDOUT}
        end = _end_with_parent if sys.platform == "linux" else None
        node = subprocess.Popen(command, env=environ, preexec_fn=end, start_new_session=True, **streams)
        try:
            while node.poll() is None:
                time.sleep(0.3)
                watch()
                stop.why()
                stop.spread()  # they look for the file, save, and end
        except BaseException:
            node.terminate()
            node.wait()
            raise
    if stop.why():
        stop.done()
    if node.returncode == 0:
        return
    kind, why = json.loads(failure.read_text()) if failure.is_file() else ("", "")
    failure.unlink(missing_ok=True)
    if kind == Interrupted.__name__:
        raise Interrupted(why)
    if not kind and stop.why():
        raise Interrupted(f"{run_dir}: ended by {stop.why()} before it could save; run it again to resume")
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    why = f"{kind}: {why}" if kind else "\n" + "\n".join(lines[-30:])
    raise RuntimeError(f"{processes} processes: one failed (all they printed is in {log}): {why}")


def _meeting_point(nodes: str) -> dict[str, str]:
    """Return torch's variables for a port on the first of the nodes, a list as Slurm writes it."""
    first = _scontrol("show", "hostnames", nodes).split()[0]
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", first))
    port = 20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    return {"MASTER_ADDR": found[1] if found else first, "MASTER_PORT": str(port)}


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout


def _end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies, such as a kernel that was killed.

    Else the workers would train on, beside those of the next call.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run_node(failure: str, processes: int) -> int:
    """Run the workers of this node, each with the task from the standard input; return 1 unless all end well."""
    node, nodes = int(os.environ.get("SLURM_NODEID", 0)), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    os.environ["WORLD_SIZE"] = str(nodes * processes)
    with tempfile.TemporaryDirectory(prefix="skylib-") as folder:
        if nodes == 1:  # nobody outside this machine, and no other user, can reach them
            os.environ[_MEET] = f"file://{folder}/meet"
        arguments = sys.stdin.buffer.read(), failure, node * processes
        workers = start_processes(_work, arguments, processes, join=False, start_method="spawn")

        def terminate(*_: object) -> None:
            for worker in workers.processes:
                worker.terminate()

        signal.signal(signal.SIGTERM, terminate)
        try:
            while not workers.join(grace_period=_PATIENCE):
                pass
        except ProcessException as error:
            print(error, file=sys.stderr)  # such as by which signal a worker was killed
            return 1
    return 0


def _work(local: int, task: bytes, failure: str, first: int) -> None:
    """Do in this process what `launch` was asked for; keep the first error of all processes."""
    os.environ |= {"RANK": str(first + local), "LOCAL_RANK": str(local)}
    name, arguments = pickle.loads(task)
    module, attribute = name.split(":")
    code = 0
    try:
        getattr(importlib.import_module(module), attribute)(**arguments)
    except Exception as error:
        code = 1
        with suppress(FileExistsError), open(failure, "x") as file:
            json.dump([type(error).__name__, str(error)], file)
        if not isinstance(error, Interrupted):
            traceback.print_exc()
    # Not by the interpreter's own end: threads of process groups that are still referred to are then torn down in any
    # order, which now and again aborts a process that has done all it should.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(_run_node(sys.argv[1], int(sys.argv[2])))
