"""Several processes that train one model: joining them, and starting them from a notebook."""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skylib.device import pick_device
from skylib.stopping import TOLD, Interrupted, StopRequest


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

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]


def world_size() -> int:
    """Return how many processes ``torchrun`` or ``srun`` started of this program; 1 for a program on its own."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", 1)))


def process_number() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) if world_size() > 1 else 0


@contextmanager
def join(device: str | torch.device | None = None) -> Iterator[World]:
    """Meet the other processes that ``torchrun`` or ``srun`` started, if any.

    Parameters
    ----------
    device : optional
        As in `pick_device`; with several processes on CUDA each takes a GPU of its own.
    """
    size, device = world_size(), pick_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    _adopt_slurm(os.environ)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        # Slurm may show each task one GPU alone, or all of them.
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    owned = not dist.is_initialized()
    if owned:
        # The others wait while the first validates, draws and saves.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield World(rank, size, device)
    finally:
        if owned:
            dist.destroy_process_group()


def _adopt_slurm(environ: Any) -> None:
    """Give torch's variables, which ``torchrun`` would have set, from those of ``srun``."""
    if "RANK" in environ:
        return
    environ["RANK"], environ["LOCAL_RANK"] = environ["SLURM_PROCID"], environ["SLURM_LOCALID"]
    environ["WORLD_SIZE"] = environ["SLURM_STEP_NUM_TASKS"]
    if "MASTER_ADDR" not in environ:
        environ["MASTER_ADDR"] = _first_node(environ["SLURM_STEP_NODELIST"])
    environ.setdefault("MASTER_PORT", str(20_000 + int(environ["SLURM_JOB_ID"]) % 20_000))


def launch(
    function: str, arguments: Mapping[str, Any], *, run_dir: str | Path, processes: int,
    watch: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
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
        Called about twice a second while they run.

    Raises
    ------
    Interrupted
        If the processes were asked to stop, and did.
    RuntimeError
        If one of them fails; with the end of the log.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    task, log, tell = (run_dir / f"workers.{kind}" for kind in ("pickle", "log", "stop"))
    task.write_bytes(pickle.dumps((function, dict(arguments))))
    tell.unlink(missing_ok=True)
    # They are told by a file in the run folder, since the process that looks may be on another node.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environ = {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ, TOLD: str(tell)}
    with open(log, "ab") as file, StopRequest(run_dir) as stop:
        start = file.tell()
        workers = subprocess.Popen(
            [*_torchrun(processes), "-m", "skylib.training.distributed", str(task)],
            stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ, start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        try:
            while workers.poll() is None:
                time.sleep(0.5)
                watch()
                if (why := stop.why()) and not tell.exists():
                    tell.write_text(why)  # they look for it, save, and end
        except BaseException:
            workers.terminate()  # torchrun hands it on; the workers save
            workers.wait()
            raise
        finally:
            task.unlink(missing_ok=True)
            tell.unlink(missing_ok=True)
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = text.strip().splitlines()
    told = {kind: [line for line in lines if line.startswith(kind)] for kind in ("Failed: ", "Interrupted: ")}
    if told["Interrupted: "] and not told["Failed: "]:  # whatever torchrun, which got the signal too, made of it
        raise Interrupted(told["Interrupted: "][0].removeprefix("Interrupted: "))
    if workers.returncode and stop.why() and not told["Failed: "]:
        raise Interrupted(f"{run_dir}: ended by {stop.why()} before it could save; goes on from the last checkpoint")
    if workers.returncode:
        why = told["Failed: "][0].removeprefix("Failed: ") if told["Failed: "] else "\n" + "\n".join(lines[-30:])
        raise RuntimeError(f"{processes} processes: one failed (all they printed is in {log}): {why}")


def _torchrun(processes: int) -> list[str]:
    """Return the command that starts processes here, or in a Slurm allocation of several nodes on each of them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if nodes == 1:
        return [
            *torchrun,
            "--standalone",
            "--local-addr=127.0.0.1",
        ]  # else by the name of this host, and over its network
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        srun.append(f"--cpus-per-task={cpus}")  # srun does not take it over from the job (Slurm 22.05)
    port = 20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    meet = f"{_first_node(os.environ['SLURM_JOB_NODELIST'])}:{port}"
    return [*srun, *torchrun, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}"]


def _end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies, such as a kernel that was killed.

    Else the workers would train on, beside those of the next call.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _first_node(nodes: str) -> str:
    """Return the address of the first of the nodes, a list as Slurm writes it."""
    first = _scontrol("show", "hostnames", nodes).split()[0]
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", first))
    return found[1] if found else first


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout


def _work(task: Path) -> None:
    """Do in this process what `launch` was asked for."""
    import importlib

    name, arguments = pickle.loads(task.read_bytes())
    module, attribute = name.split(":")
    try:
        getattr(importlib.import_module(module), attribute)(**arguments)
    except Interrupted as stopped:
        if int(os.environ["RANK"]) == 0:
            print(f"Interrupted: {stopped}", flush=True)
    except Exception as error:
        print(f"Failed: {type(error).__name__}: {error}", flush=True)
        raise


def _leave() -> None:
    """End this process once its work is done and told.

    Not by the interpreter's own end: threads of process groups that are still referred to are then torn down in any
    order, which now and again aborts a process that has done all it should.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
    _leave()
