"""The job scripts on a real Slurm: two nodes on this machine with pretended GPUs (tests/slurm/slurm_lab.sh)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement

from skylib.__main__ import main
from skylib.model.checkpoint import load_checkpoint
from skylib.runner.runs import CHAIN

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sh"), ROOT / "tests" / "slurm" / "slurm_lab.sh"])
LAB = ROOT / "tests" / "slurm" / "slurm_lab.sh"
RESOURCES = (
    "--cpus-per-task=1",
    "--mem=500M",
    "--time=20",
    "--gres=gpu:1",
)  # of the lab, where the scripts ask for much
TRAINING = ("image_size=16", "batch_size=16", "steps=120", "warmup_steps=2", "decoder_width=32", "checkpoint_every=100")
TRAINING += ("validate_every=60", "faint_limit=26.5", "precision=fp32")
SKY = ("n_tiles=4", "tile_size=256", "size=16")
STUDY = ("methods=['linear']", "n_labels=[8, 16]", "seeds=[0]", "epochs=1", "min_steps=2", "length_factors=[1.0]")
LESS = ("pools=['central']", "layers=[-1]", "k=6")  # of the evaluation and the search


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--external-sources", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [p for p in SCRIPTS if "#SBATCH" in p.read_text()], ids=lambda path: path.name)
def test_jobs_are_warned_requeued_and_keep_their_log(script):
    text = script.read_text()
    for option in ("--signal=B:USR1@300", "--requeue", "--open-mode=append", "--time=", "--mem=", "--cpus-per-task="):
        assert option in text


@pytest.mark.parametrize(
    ("tasks", "given", "message"),
    [
        ((0, 7, 8), (), "shard=3 n_shards=8"),
        ((3, 5, 2), ("n_shards=8",), "n_shards=8 shard=3"),
        ((3, 5, 2), (), "say n_shards=N"),
    ],
)
def test_failed_shards_can_be_submitted_again(tasks, given, message, tmp_path):
    names = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    array = {"SLURM_ARRAY_TASK_ID": "3", **dict(zip(names, map(str, tasks), strict=True))}
    environ = {**os.environ, **array, "SKYLIB_PYTHON": shutil.which("echo")}  # says what it would have run
    command = ["bash", "slurm/search_sky.sh", f"run_dir={tmp_path}", *given]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert message in done.stdout + done.stderr
    assert (done.returncode == 0) == message.startswith(("shard", "n_shards"))


def test_a_job_needs_nothing_that_the_project_does_not():
    names = {line for line in (ROOT / "slurm" / "requirements.txt").read_text().splitlines() if line[0] != "#"}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert names < {Requirement(text).name for text in dependencies}


class Slurm:
    """The lab, as a user meets it: by sbatch, squeue and scancel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cores = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        cores |= {"SKYLIB_PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "lo", "SLURM_CONF": str(folder / "slurm.conf")}
        self.environ = {**os.environ, **cores}

    def call(self, *command: str | Path, cwd: Path = ROOT) -> str:
        done = subprocess.run(command, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), cwd: Path = ROOT) -> str:
        output = (
            f"--output={self.folder}/%x-%A-%a.log" if "--array" in str(options) else f"--output={self.folder}/%j.log"
        )
        return self.call(
            "sbatch", "--parsable", *RESOURCES, output, *options, f"slurm/{script}.sh", *arguments, cwd=cwd
        )

    def state(self, job: str) -> str:
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def log(self, job: str) -> str:
        return (self.folder / f"{job}.log").read_text()

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """Wait until a job, or each task of an array, is in one of these states."""
        wait_for(lambda: set(self.state(job).split()) <= set(states), lambda: self.describe(job), seconds)
        return self.state(job)

    def describe(self, job: str) -> str:
        logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
        return f"job {job} is {self.state(job)}\n{self.call('squeue', '--states=all')}\n{logs}"

    def warn(self, job: str) -> None:
        """Send what Slurm sends before the time limit."""
        self.call("scancel", "--batch", "--signal=USR1", job)

    def start_again(self, job: str) -> None:
        """Start a requeued job, which Slurm would let wait for two minutes."""
        self.wait(job, "PENDING")
        time.sleep(3)  # sooner it fails, with "job credential revoked"
        self.call("scontrol", "update", f"jobid={job}", "StartTime=now")


def wait_for(condition, describe=lambda: "", seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm():
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if not shutil.which(program):
            pytest.skip(f"no {program} is installed (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm")
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))  # a socket's path must be short
    try:
        subprocess.run([LAB, "start", folder], check=True, timeout=90)
        yield Slurm(folder)
    finally:
        subprocess.run([LAB, "stop", folder], check=True, timeout=90)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def chain(slurm, tmp_path_factory):
    """The whole chain, submitted at the start: its run folder, and its jobs by name. It runs beside all other tests."""
    run_dir = tmp_path_factory.mktemp("chain") / "run"
    options = (*RESOURCES, f"--output={slurm.folder}/%x-%j.log")
    printed = slurm.call("slurm/submit_all.sh", *options, f"run_dir={run_dir}", *SKY, *TRAINING, *STUDY, *LESS)
    return run_dir, dict(line.split() for line in printed.splitlines())


@pytest.fixture(scope="session")
def by_hand(slurm, chain, tmp_path_factory):
    """The same cutouts, training and label study, run as from the command line, without Slurm."""
    run_dir = tmp_path_factory.mktemp("by_hand")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(variable, slurm.environ[variable])
        for name in ("00_make_cutouts", "01_pretrain", "04_label_efficiency"):
            command = ["run", str(ROOT / f"notebooks/{name}.ipynb"), "--run-dir", str(run_dir), "--shared"]
            assert main([*command, *SKY, *TRAINING, *STUDY]) == 0
    return run_dir


def record(run_dir, name):
    return json.loads((run_dir / "status" / f"{name}.json").read_text())


def weights(run_dir):
    checkpoint = load_checkpoint(run_dir / "checkpoints" / "last.pt")
    return checkpoint["step"], checkpoint["model"]


def assert_same(run_dir, reference, **tolerance):
    (step, model), (wanted_step, wanted) = weights(run_dir), weights(reference)
    assert step == wanted_step == 120
    for name, value in wanted.items():
        torch.testing.assert_close(model[name], value, **{"rtol": 0, "atol": 0, **tolerance})


pytestmark = pytest.mark.timeout(900)


@pytest.mark.slurm
def test_warned_before_the_kernel_is_up_and_again_while_it_trains(slurm, by_hand, tmp_path):
    """Nothing is lost: it is requeued both times, and ends with the weights of a run that was left in peace."""
    run_dir, local = tmp_path / "run", tmp_path / "node"
    options = (f"--export=ALL,SLURM_TMPDIR={local}",)
    job = slurm.submit("pretrain", f"run_dir={run_dir}", f"cutouts={by_hand}/cutouts.h5", *TRAINING, options=options)
    wait_for(lambda: (slurm.folder / f"{job}.log").exists() and slurm.log(job), lambda: slurm.describe(job))
    slurm.warn(job)
    slurm.start_again(job)
    assert record(run_dir, "01_pretrain")["state"] == "interrupted"
    assert not (run_dir / "metrics.jsonl").exists()

    wait_for((run_dir / "metrics.jsonl").exists, lambda: slurm.describe(job))
    slurm.warn(job)
    slurm.start_again(job)
    said = record(run_dir, "01_pretrain")
    assert (said["state"], said["restarts"]) == ("interrupted", 1)
    assert "stopped by SIGUSR1 after step" in said["error"]
    assert 0 < weights(run_dir)[0] < 120
    assert "queued again" in slurm.log(job)

    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED", slurm.describe(job)
    assert_same(run_dir, by_hand)
    said = record(run_dir, "01_pretrain")
    assert (said["state"], said["restarts"], said["job"]) == ("done", 2, job)
    attempts = sorted(path.name for path in (run_dir / "attempts").iterdir())
    assert attempts == ["01_pretrain.0.ipynb", "01_pretrain.1.ipynb"]
    book = nbformat.read(run_dir / "01_pretrain.ipynb", as_version=4)
    for fact in (f"job {job}, node n", "started again 2 times", "git revision", "torch ", "`steps` | `120`"):
        assert fact in book.cells[0].source
    (given,) = (cell.source for cell in book.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert f"cutouts = '{local}/cutouts/cutouts.h5'  # a copy on the node" in given
    assert said["parameters"]["cutouts"] == f"{by_hand}/cutouts.h5"

    again = slurm.submit("pretrain", f"run_dir={run_dir}", f"cutouts={by_hand}/cutouts.h5", *TRAINING)
    assert slurm.wait(again, "COMPLETED", "FAILED") == "COMPLETED"
    assert "not run again" in slurm.log(again)
    assert record(run_dir, "01_pretrain") == said


@pytest.mark.slurm
def test_two_nodes_train_what_one_process_does(slurm, by_hand, tmp_path):
    run_dir, options = tmp_path / "run", ("--nodes=2",)
    job = slurm.submit("pretrain", f"run_dir={run_dir}", f"cutouts={by_hand}/cutouts.h5", *TRAINING, options=options)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED", slurm.describe(job)
    assert (run_dir / "workers.log").is_file()
    assert_same(run_dir, by_hand, rtol=0.05, atol=2e-3)  # sums in another order, over 120 steps
    assert "(of n[1-2])" in nbformat.read(run_dir / "01_pretrain.ipynb", as_version=4).cells[0].source


@pytest.mark.slurm
def test_a_cancelled_job_has_saved_and_stays_cancelled(slurm, by_hand, tmp_path):
    run_dir = tmp_path / "run"
    long = [text.replace("steps=120", "steps=100000") for text in TRAINING]
    job = slurm.submit("pretrain", f"run_dir={run_dir}", f"cutouts={by_hand}/cutouts.h5", *long)
    wait_for((run_dir / "metrics.jsonl").exists, lambda: slurm.describe(job))
    table = slurm.call(sys.executable, "-m", "skylib", "status", tmp_path)
    assert "running" in table
    assert "/100000" in table
    slurm.call("scancel", job)
    assert slurm.wait(job, "CANCELLED", "PENDING", "FAILED") == "CANCELLED", slurm.describe(job)
    said = record(run_dir, "01_pretrain")
    assert said["state"] == "interrupted"
    assert f"stopped by SIGTERM after step {weights(run_dir)[0]} of" in said["error"]
    assert "not queued again" in slurm.log(job)


@pytest.mark.slurm
def test_a_failed_job_says_why_and_nothing_follows(slurm, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.submit("pretrain", f"run_dir={run_dir}", "cutouts=missing.h5", *TRAINING)
    after = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{job}")
    follower = slurm.submit("evaluate", f"run_dir={run_dir}", options=after)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "FAILED"
    assert "01_pretrain.ipynb failed in cell [4]: FileNotFoundError: missing.h5" in slurm.log(job)
    assert slurm.wait(follower, "CANCELLED", "COMPLETED", "FAILED") == "CANCELLED"
    assert not (slurm.folder / f"{follower}.log").exists()


@pytest.fixture
def project(tmp_path):
    """A folder like the project's, with two small notebooks that show what the tasks of an array were given."""
    for name in ("slurm", "skylib"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "papermill_runs").mkdir()
    write = "import time\nfrom pathlib import Path\nparts = Path(run_dir, 'parts')\nparts.mkdir(exist_ok=True)\n"
    merge = "_ = Path(run_dir, 'merged').write_text(' '.join(sorted(p.read_text() for p in parts.iterdir())))"
    hold = "while row == 1 and not Path(run_dir, 'go').exists():\n    time.sleep(0.1)"
    rows = f"if row is not None:\n    parts.joinpath(str(row)).write_text(str(row))\nelse:\n    {merge}"
    shards = f"if not merge:\n    parts.joinpath(str(shard)).write_text(f'{{shard}}/{{n_shards}}')\nelse:\n    {merge}"
    write_book(tmp_path, "04_label_efficiency", "row: int | None = None", write + hold, rows)
    write_book(tmp_path, "06_search_sky", "shard: int = 0\nn_shards: int = 1\nmerge: bool = False", write, shards)
    return tmp_path


def write_book(project, name, parameters, *cells):
    new, tags = nbformat.v4, {"tags": ["parameters"]}
    sources = [new.new_code_cell(f"run_dir: str = ''\n{parameters}", metadata=tags), *map(new.new_code_cell, cells)]
    (project / "notebooks").mkdir(exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new.new_notebook(cells=sources, metadata={"kernelspec": kernel}), project / "notebooks" / f"{name}.ipynb"
    )


@pytest.mark.slurm
def test_arrays_are_put_together_and_one_task_can_be_stopped(slurm, project, tmp_path):
    run_dir = tmp_path / "run"

    def submit(script, *arguments, options):
        return slurm.submit(script, f"run_dir={run_dir}/{script}", *arguments, options=options, cwd=project)

    rows = submit("label_efficiency", options=("--array=0-1",))
    table = submit("label_efficiency", options=(f"--dependency=afterok:{rows}",))
    shards = submit("search_sky", options=("--array=0-1",))
    merged = submit("search_sky", "merge=True", "n_shards=2", options=(f"--dependency=afterok:{shards}",))
    study = run_dir / "label_efficiency"
    wait_for((study / "parts").exists, lambda: slurm.describe(rows))
    slurm.wait(f"{rows}_0", "COMPLETED")
    wait_for((study / "status" / "04_label_efficiency.1.json").exists)
    slurm.warn(f"{rows}_1")
    wait_for(lambda: "asked to stop" in (slurm.folder / f"label_efficiency-{rows}-1.log").read_text())
    (study / "go").touch()
    slurm.start_again(f"{rows}_1")
    assert slurm.state(f"{rows}_0") == "COMPLETED"  # the requeue did not touch it
    assert not (study / "merged").exists()
    for job in (table, merged):
        assert slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", slurm.describe(job)
    assert (study / "merged").read_text() == "0 1"
    assert (run_dir / "search_sky" / "merged").read_text() == "0/2 1/2"
    executed = sorted(path.name for path in (study / "tasks").iterdir())
    assert executed == ["04_label_efficiency.0.ipynb", "04_label_efficiency.1.ipynb"]
    assert [record(study, f"04_label_efficiency.{k}")["restarts"] for k in range(2)] == [0, 1]


@pytest.mark.slurm
def test_a_stop_file_counts_and_a_job_is_requeued_so_often_only(slurm, project, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "STOP").touch()
    job = slurm.submit("search_sky", f"run_dir={run_dir}", options=("--export=ALL,SKYLIB_MAX_RESTARTS=0",), cwd=project)
    assert slurm.wait(job, "COMPLETED", "FAILED", seconds=120) == "FAILED", slurm.describe(job)
    assert "ExitCode=75:0" in slurm.call("scontrol", "show", "job", job)
    assert "not queued again, after 0 times" in slurm.log(job)
    assert record(run_dir, "06_search_sky")["state"] == "interrupted"
    assert not (run_dir / "STOP").exists()


@pytest.mark.slurm
def test_the_chain_gives_the_numbers_of_a_run_by_hand(slurm, chain, by_hand):
    run_dir, jobs = chain
    for name, job in jobs.items():
        states = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=600)
        assert set(states.split()) == {"COMPLETED"}, f"{name}: {slurm.describe(job)}"
    assert_same(run_dir, by_hand)
    study, wanted = (
        pd.read_csv(folder / "label_efficiency.csv").drop(columns=["seconds", "study"]) for folder in (run_dir, by_hand)
    )
    pd.testing.assert_frame_equal(study, wanted)  # but for the name of the study, which knows its file of cutouts
    assert len(study) == 2
    assert json.loads((run_dir / "results.json").read_text())
    states = {path.stem: record(run_dir, path.stem)["state"] for path in (run_dir / "status").iterdir()}
    names = set(CHAIN)
    assert states == dict.fromkeys([*names, "04_label_efficiency.0", "04_label_efficiency.1"], "done")
    table = slurm.call(sys.executable, "-m", "skylib", "status", run_dir.parent)
    assert "done" in table
    assert "120/120" in table


@pytest.mark.slurm
def test_what_is_misspelt_is_told_before_anything_is_submitted(slurm, tmp_path):
    before = slurm.call("squeue", "--states=all", "--noheader")
    command = ["slurm/submit_all.sh", f"run_dir={tmp_path}", "stepss=3"]
    done = subprocess.run(command, cwd=ROOT, env=slurm.environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr
    assert slurm.call("squeue", "--states=all", "--noheader").count("\n") == before.count("\n")
