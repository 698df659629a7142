import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest

from skylib import run_notebook
from skylib.__main__ import main
from skylib.lock import node
from skylib.runner import runs
from skylib.runner.execute import NotebookError, NotebookInterrupted
from skylib.runner.parameters import Parameter, check_value, notebook_parameters, parse_overrides
from skylib.runner.provenance import data_checksums
from skylib.runner.report import _clean, write_report
from skylib.runner.runs import demo, run

PARAMETERS = """\
run_dir: str = "papermill_runs/demo"  # where results go
tiles: str = ""  # a folder; "#" is no comment here
learning_rate: float = 1.5e-4  # peak, AdamW
steps: int = 300
interactive: bool = False
n_labels: list[int] = [10, 100]
bands: tuple[str, ...] = (
    "g",
    "r",
)  # in any order
size: tuple[int, int] = (64, 64)
column: str | None = None
limit: int | None = (
    None  # of rows; None: all
)
"""


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Write a notebook; a cell that begins with # or * is prose."""
    new = nbformat.v4
    sources = [new.new_markdown_cell(c) if c.startswith(("#", "*")) else new.new_code_cell(c) for c in cells]
    tagged = new.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new.new_notebook(cells=[tagged, *sources], metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "01_pretrain.ipynb", "pass")


def status(run_dir: Path) -> dict:
    return json.loads((run_dir / "status.json").read_text())


def test_parameters_are_read_with_types_defaults_and_comments(notebook):
    found = notebook_parameters(notebook)
    assert list(found)[:3] == ["run_dir", "tiles", "learning_rate"]
    assert found["learning_rate"] == Parameter("learning_rate", "float", 1.5e-4, "peak, AdamW")
    assert found["tiles"].comment == 'a folder; "#" is no comment here'
    assert found["bands"] == Parameter("bands", "tuple[str, ...]", ("g", "r"), "in any order")
    assert found["limit"] == Parameter("limit", "int | None", None, "of rows; None: all")
    assert found["steps"].comment == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps = 3", "must read 'name: type = literal"),
        ("steps: int", "must read 'name: type = literal"),
        ("print(3)", "must read 'name: type = literal"),
        ("steps: int = 2 * 3", "must be a literal"),
        ("steps: Path = 3", "unknown type"),
        ("steps: int = 'three'", "must be int"),
        ("steps: int = (", "parameters"),
    ],
)
def test_a_parameter_that_cannot_be_checked_is_refused(tmp_path, line, message):
    path = write_notebook(tmp_path / "a.ipynb", parameters=f"run_dir: str = ''\n{line}")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        notebook_parameters(path)
    assert str(path) in str(error.value)


def test_a_missing_or_untagged_notebook_is_told(notebook, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"02_eval\.ipynb: no such notebook; in its folder: 01_pretrain\.ipynb"):
        notebook_parameters(notebook.with_name("02_eval.ipynb"))
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "bare.ipynb")
    with pytest.raises(ValueError, match="0 cells are tagged 'parameters'"):
        notebook_parameters(tmp_path / "bare.ipynb")
    (tmp_path / "text.ipynb").write_text("no notebook")
    with pytest.raises(ValueError, match=r"text\.ipynb: not a notebook"):
        notebook_parameters(tmp_path / "text.ipynb")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tiles=007", "007"),
        ("tiles='007'", "007"),
        ('tiles="with = and space"', "with = and space"),
        ("tiles=a=b", "a=b"),
        ("tiles=", ""),
        ("tiles=it's", "it's"),
        ("learning_rate=3e-4", 3e-4),
        ("learning_rate=1", 1.0),
        ("steps=-1", -1),
        ("interactive=True", True),
        ("n_labels=[1, 2]", [1, 2]),
        ("n_labels=[]", []),
        ("bands=('g', 'r', 'i')", ("g", "r", "i")),
        ("size=(32, 64)", (32, 64)),
        ("column=None", None),
        ("column='None'", "None"),
        ("column=z_spec", "z_spec"),
        ("limit=None", None),
        ("limit=5", 5),
    ],
)
def test_overrides_are_read_by_the_declared_type(notebook, text, value):
    (read,) = parse_overrides([text], notebook).values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interactive=true", "must be bool (True or False)"),
        ("interactive=1", "must be bool (True or False)"),
        ("steps=True", "steps=True is of type bool: must be int"),
        ("steps=3.0", "steps=3.0 is of type float: must be int"),
        ("steps=abc", "steps='abc' is of type str: must be int"),
        ("steps=None", "must be int"),
        ("learning_rate=True", "must be float"),
        ("learning_rate='1e-3'", "must be float"),
        ("n_labels=(1, 2)", "must be list[int]"),
        ("n_labels=[1, True]", "must be list[int]"),
        ("size=(1, 2, 3)", "must be tuple[int, int]"),
        ("tiles=None", "tiles=None: must be str"),
        ("limit=5.5", "must be int | None"),
    ],
)
def test_values_of_another_type_are_refused(notebook, text, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        parse_overrides([text], notebook)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["steps"], "must read name=value"),
        (["=3"], "must read name=value"),
        (["steps=1", "steps=2"], "given twice"),
        (["learning_rate=1e999"], "must be finite"),
        (["run_dir=elsewhere"], "run_dir: is given as the run folder"),
        (["learnin_rate=1"], r"unknown parameter 'learnin_rate'; did you mean 'learning_rate'?"),
        (["nonsense=1"], "known are tiles: str, learning_rate: float, steps: int"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(notebook, texts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_overrides(texts, notebook)


def test_values_from_python_become_plain(notebook):
    known = notebook_parameters(notebook)
    assert check_value(known["tiles"], Path("a") / "b") == str(Path("a") / "b")
    rate = check_value(known["learning_rate"], np.float64(0.5))
    assert type(rate) is float
    with pytest.raises(TypeError, match=r"steps=0\.5 is of type float"):
        run_notebook(notebook, notebook.parent / "run", steps=0.5)
    assert not (notebook.parent / "run").exists()


def test_a_notebook_must_say_where_results_go(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", parameters="steps: int = 1")
    with pytest.raises(ValueError, match="no parameter 'run_dir: str'"):
        run_notebook(path, tmp_path / "run")
    path = write_notebook(tmp_path / "b.ipynb")
    with pytest.raises(ValueError, match="would overwrite"):
        run_notebook(path, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the run folder cannot be written"):
        run_notebook(path, tmp_path / "file")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run whose name and place are hard to get right, beside a kernel that must not be taken."""
    folder = tmp_path_factory.mktemp("runs")
    write_notebook(
        folder / "notebooks" / "01_pretrain.ipynb",
        "# A first *look* at <b>stars</b> & galaxies\n\nWith $x < y$, [a page](https://example.org/), "
        "![a picture](https://example.org/a.png) and <script>alert('no')</script>.",
        "## Figures",
        "import importlib.util, os, sys\nprint(sys.executable, importlib.util.find_spec('skylib') is not None, os.getcwd())",
        "print(repr((tiles, learning_rate, steps, bands, size)))",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "*A line that rises to `2`.*\n\nMore about it.",
        "from IPython.display import display\nplt.ioff()\ndisplay(plt.figure(), metadata={'live': True})",
        "import pandas as pd\npd.DataFrame({'band': ['<g>'], 'depth': [26.5]})",
        "print(*range(100), sep='\\n')\nprint('not shown', file=sys.stderr)",
    )
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "stray", "language": "python"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        patch.chdir(folder)
        (page := folder / "a {run} ü" / "index.html").parent.mkdir()
        page.write_text("of an earlier run")
        out = run_notebook(
            Path("notebooks/01_pretrain.ipynb"),
            Path("a {run} ü"),
            tiles="007 \\ \" '",
            learning_rate=1,
            bands=("i", "g"),
        )
    assert out == folder / "a {run} ü" / "01_pretrain.ipynb"
    return out.parent


@pytest.mark.notebook
def test_a_run_gets_its_parameters_and_keeps_everything(finished):
    book = nbformat.read(finished / "01_pretrain.ipynb", as_version=4)
    nbformat.validate(book)
    printed = [o.text for c in book.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert printed[0] == f"{sys.executable} True {finished.parent}\n"
    assert printed[1] == repr(("007 \\ \" '", 1.0, 300, ("i", "g"), (64, 64))) + "\n"
    assert book.metadata.papermill.parameters["run_dir"] == str(finished)
    assert {"state": "done", "notebook": "01_pretrain.ipynb"}.items() <= status(finished).items()
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["git"] is None or set(environment["git"]) == {"revision", "dirty"}
    assert environment["device"]
    assert environment["cpus"] >= 1
    assert environment["command"]
    assert environment["data"] == {}
    assert not list(finished.glob("*.partial"))
    assert "A first look" in (finished / "index.html").read_text()  # the page that was there is written again


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.mark.notebook
def test_the_report_stands_alone(finished):
    results = {
        "star/galaxy <accuracy>": {"value": 0.91234, "interval": [0.9, 0.92], "n": 700, "note": "linear probe"},
        "redshift R2": {"value": 0.5},
    }
    (finished / "results.json").write_text(json.dumps(results))
    text = write_report(finished).read_text()
    tags = Page(text).tags
    loaded = [a.get("src") or a.get("href") for t, a in tags if t in ("img", "script", "link", "iframe", "source")]
    assert loaded
    assert all(source.startswith("data:image/") for source in loaded)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert not re.search(r"url\(|@import", text)
    assert "A first look at &lt;b&gt;stars" in text  # the title, escaped
    assert "star/galaxy &lt;accuracy&gt;" in text
    assert "0.900 to 0.920" in text
    assert "&lt;g&gt;" in text  # of the table
    assert [a["alt"] for tag, a in tags if tag == "img"] == ["Figures. A line that rises to 2."]
    assert "alert" not in text
    assert "not shown" not in text
    assert "\n98\n" not in text  # long listings stay in the notebook
    assert ("a", {"href": "01_pretrain.ipynb"}) in tags
    assert ("a", {"href": "https://example.org/"}) in tags  # a link to follow is no file to load


def test_links_lead_to_pages_and_nowhere_else():
    for address in ("https://example.org/?q=1", "mailto:a@b.org", "#top", "../figures/map_1.png", "01_pretrain.ipynb"):
        assert _clean(f'<a href="{address}">x</a>') == f'<a href="{address}">x</a>'
    for address in ("javascript:alert(1)", "java&#10;script:alert(1)", " JavaScript:alert(1)", "data:text/html,x"):
        assert _clean(f'<a href="{address}">x</a>') == "<a>x</a>"


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        write_report(tmp_path)


@pytest.mark.notebook
def test_a_failing_cell_ends_the_run_with_one_line(tmp_path, capfd):
    path = write_notebook(
        tmp_path / "02.ipynb", "print('before')", "raise KeyError('<no such column>')", "print('after')"
    )
    run_dir = tmp_path / "run"
    assert main(["run", str(path), "--run-dir", str(run_dir), "steps=3"]) == 1
    err = capfd.readouterr().err
    line = f"skylib: error: 02.ipynb failed in cell [4]: KeyError: '<no such column>' (executed up to there: {run_dir / '02.ipynb'})"
    assert err.strip().splitlines()[-1] == line
    ours = re.sub(r"Exception ignored in.*(?=skylib: error)", "", err, flags=re.DOTALL)  # of ipykernel as it ends
    assert "Traceback" not in ours
    said = status(run_dir)
    assert (said["state"], said["cell"], said["error"]) == ("failed", 4, "KeyError: '<no such column>'")
    assert said["parameters"]["steps"] == 3
    outputs = [c.get("outputs") for c in nbformat.read(run_dir / "02.ipynb", as_version=4).cells]
    assert any(o and o[0].get("text") == "before\n" for o in outputs)
    assert not any(o and o[0].get("text") == "after\n" for o in outputs)
    assert "KeyError: '&lt;no such column&gt;'" in write_report(run_dir).read_text().replace("&#x27;", "'")


@pytest.mark.notebook
def test_a_cell_that_saved_and_stopped_is_told_from_one_that_failed(tmp_path):
    stops = "from skylib import Interrupted\nraise Interrupted('stopped by SIGUSR1 after step 7 of 9')"
    path = write_notebook(tmp_path / "01.ipynb", stops, "print('after')")
    with pytest.raises(NotebookInterrupted, match="after step 7 of 9"):
        run_notebook(path, tmp_path / "run")
    assert status(tmp_path / "run")["state"] == "interrupted"


@pytest.mark.notebook
def test_a_kernel_that_dies_is_told(tmp_path):
    path = write_notebook(tmp_path / "02.ipynb", "x = 1", "import os; os._exit(1)")
    with pytest.raises(NotebookError, match=r"cell \[4\]: the kernel died") as error:
        run_notebook(path, tmp_path / "run")
    assert error.value.cell == 4
    assert status(tmp_path / "run")["state"] == "failed"


def start(*arguments: str | Path, grace: float = 15.0) -> subprocess.Popen:
    """Start the command line in another process, with so many seconds for a cell to end by itself after SIGTERM."""
    code = "import sys; from skylib.runner import execute; from skylib.__main__ import main\n"
    code += f"execute.GRACE['SIGTERM'] = {grace}; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=runs.ROOT)


def wait_for(process: subprocess.Popen, path: Path, content: str = "") -> None:
    """Wait until a process has written a file with some content."""
    deadline = time.monotonic() + 240
    while not (path.is_file() and (text := path.read_text()) and content in text):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.notebook
def test_a_terminated_run_is_reported_and_leaves_no_kernel(tmp_path):
    path = write_notebook(
        tmp_path / "02.ipynb",
        "import os, time\nfrom pathlib import Path\n_ = Path(run_dir, 'pid').write_text(str(os.getpid()))\ntime.sleep(300)",
    )
    run_dir = tmp_path / "run"
    process = start("run", path, "--run-dir", run_dir, grace=1.0)
    wait_for(process, run_dir / "pid")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "02.ipynb stopped in cell [3]: interrupted, since it did not end by itself after SIGTERM" in err
    assert status(run_dir)["state"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int((run_dir / "pid").read_text()), 0)


@pytest.mark.notebook
def test_ctrl_c_lets_a_training_save_before_its_first_checkpoint(tmp_path):
    """One Ctrl-C is a request to stop; nothing of the steps made is lost."""
    training = """
import numpy as np
from pathlib import Path
from skylib import ModelConfig, PretrainConfig, pretrain, write_cutouts
flux = np.random.default_rng(0).normal(size=(64, 5, 16, 16)).astype("float32")
data = write_cutouts(Path(run_dir, "c.h5"), flux, ra=np.zeros(64), dec=np.zeros(64), bands=tuple("grizy"))
config = PretrainConfig(steps=10**6, batch_size=32, checkpoint_every=10**6, checkpoint_minutes=1e6, log_every=1)
pretrain(ModelConfig(size="nano", image_size=16, decoder_width=32, decoder_depth=1), config, train=data, run_dir=run_dir)"""
    path, run_dir = write_notebook(tmp_path / "01.ipynb", training.strip()), tmp_path / "run"
    process = start("run", path, "--run-dir", run_dir)
    wait_for(process, run_dir / "metrics.jsonl", '"step": 2,')
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert re.search(r"stopped by Ctrl-C after step \d+ of 1000000; saved in checkpoints/last\.pt", err)
    assert (run_dir / "checkpoints" / "last.pt").is_file()
    assert status(run_dir)["state"] == "interrupted"
    assert not (run_dir / "training.lock").exists()


@pytest.mark.notebook
def test_a_stop_file_ends_any_notebook_between_two_cells(tmp_path, capfd):
    run_dir = tmp_path / "run"
    path = write_notebook(
        tmp_path / "02.ipynb",
        "import time\nfrom pathlib import Path\nPath(run_dir, 'STOP').touch()\ntime.sleep(2)\nprint('ended')",
        "print('after')",
    )
    assert main(["run", str(path), "--run-dir", str(run_dir)]) == 75
    assert "02.ipynb stopped in cell [4]: asked to stop by a STOP file" in capfd.readouterr().err
    book = nbformat.read(run_dir / "02.ipynb", as_version=4)
    printed = [output.text for cell in book.cells for output in cell.get("outputs", [])]
    assert printed == ["ended\n"]
    assert not (run_dir / "STOP").exists()
    assert status(run_dir)["state"] == "interrupted"


@pytest.mark.notebook
def test_what_is_done_is_not_done_again(tmp_path, caplog):
    """Skipped is a notebook that is done, unless it, its parameters, or what it takes up has changed."""
    run_dir, copy = tmp_path / "run", tmp_path / "copy.h5"
    path = write_notebook(tmp_path / "02_evaluate.ipynb", "print(tiles, steps)")
    caplog.set_level("INFO", logger="skylib")
    (run_dir / "STOP").parent.mkdir()
    (run_dir / "STOP").touch()
    with pytest.raises(NotebookInterrupted, match="stopped before the first cell"):  # no kernel is started
        run(path, run_dir, {"tiles": "sky"}, skip_done=True)

    def again(task=None, **values):
        """Run, and return what was printed, or None if it was skipped."""
        caplog.clear()
        out = run(path, run_dir, {"tiles": "sky", **values}, skip_done=True, task=task, local={"tiles": copy})
        assert out == (run_dir / "tasks" / f"02_evaluate.{task}.ipynb" if task else run_dir / path.name)
        if "not run again" in caplog.text:
            return None
        (printed,) = (o.text for c in nbformat.read(out, as_version=4).cells for o in c.get("outputs", []))
        return printed

    assert again(steps=3) == f"{copy} 3\n"  # the copy is read, the original is recorded
    assert "re-running: steps changed from its default to 3" in caplog.text
    assert status(run_dir)["parameters"]["tiles"] == "sky"
    assert again(steps=3) is None
    opening = nbformat.read(run_dir / path.name, as_version=4).cells[0].source
    assert opening.startswith("**Where and with what this was run**")
    for fact in ("| `steps` | `3` |", "| `tiles` | `'sky'` |", "node ", "torch ", "git revision"):
        assert fact in opening
    assert (run_dir / "STOP").exists() is False
    assert again(task="7", steps=3) == f"{copy} 3\n"
    assert status(run_dir)["task"] is None
    assert (run_dir / "status" / "02_evaluate.7.json").is_file()
    assert again(steps=3) == f"{copy} 3\n"  # which may put the tasks' results together
    assert "02_evaluate.7 was run after it" in caplog.text


def test_a_notebook_that_ran_after_those_that_build_on_it_is_seen(tmp_path):
    path = write_notebook(tmp_path / "02_evaluate.ipynb")
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "01_pretrain.json").write_text('{"ended": "2026-01-01T00:00:09+00:00"}')
    assert runs._newer(tmp_path, path, {"started": "2026-01-01T00:00:10+00:00"}, None) == ""
    assert "01_pretrain" in runs._newer(tmp_path, path, {"started": "2026-01-01T00:00:08+00:00"}, None)
    (tmp_path / "status" / "01_pretrain.json").write_text('{"state": "running"}')
    assert "01_pretrain" in runs._newer(tmp_path, path, {"started": "2026-01-01T00:00:10+00:00"}, None)


def test_a_notebook_is_run_once_at_a_time(tmp_path, monkeypatch):
    path, run_dir = write_notebook(tmp_path / "02.ipynb"), tmp_path / "run"
    other = subprocess.Popen(["sleep", "60"])
    (run_dir / "status").mkdir(parents=True)

    def left(**holder):
        """Leave the lock of another process, and say who is at work."""
        (run_dir / "status" / "02.lock").write_text(json.dumps({"host": node(), "job": None, "pid": 1} | holder))
        try:
            run(path, run_dir, {})
        except ValueError as error:
            return str(error)
        return None

    monkeypatch.setattr(runs, "execute", lambda out, **_: None)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert re.search(rf"02\.ipynb is at work there already, on .* \(process {other.pid}", left(pid=other.pid))
    assert not (run_dir / "02.ipynb").exists()
    other.kill()
    other.wait()
    assert left(pid=other.pid) is None
    assert "on n7 (job 41, process 1" in left(host="n7", job="41")
    assert left(host="n7", job="42") is None  # this very job, requeued from there
    assert status(run_dir)["state"] == "done"
    assert sorted(p.name for p in (run_dir / "status").iterdir()) == ["02.json"]


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A folder with the six notebooks, and a list of what `demo` runs instead of running it."""
    for name in runs.CHAIN:
        extra = {"00_make_cutouts": "catalogue: str = ''", "01_pretrain": "epochs: int = 1"}.get(name, "")
        write_notebook(
            tmp_path / "notebooks" / f"{name}.ipynb", parameters=f"run_dir: str = ''\nseed: int = 0\n{extra}"
        )
    path = tmp_path / "notebooks" / "00_make_cutouts.ipynb"
    write_notebook(path, parameters="run_dir: str = ''\nseed: int = 0\ntiles: str = ''\ncatalogue: str = ''")
    done = []

    def note(notebook, run_dir, values, *, skip_done):
        assert not skip_done
        done.append((notebook.stem, values))
        Path(run_dir).mkdir(exist_ok=True)
        return write_notebook(Path(run_dir) / notebook.name)

    monkeypatch.setattr(runs, "run", note)
    return tmp_path / "notebooks", done


def test_demo_runs_all_notebooks_and_hands_out_the_overrides(chain, tmp_path):
    notebooks, done = chain
    tiles, catalogue = tmp_path / "tiles", tmp_path / "catalogue.fits"
    tiles.mkdir()
    catalogue.touch()
    texts = ["seed=3", "epochs=2"]
    page = demo(tmp_path / "run", tiles=tiles, catalogue=catalogue, overrides=texts, notebooks=notebooks)
    assert page == tmp_path / "run" / "index.html"
    assert [name for name, _ in done] == list(runs.CHAIN)
    assert done[0][1] == {"seed": 3, "tiles": str(tiles), "catalogue": str(catalogue)}
    assert done[1][1] == {"seed": 3, "epochs": 2}
    assert done[2][1] == {"seed": 3}
    done.clear()
    demo(tmp_path / "run", overrides={"seed": 4}, notebooks=notebooks)
    assert [values for _, values in done] == [{"seed": 4}] * len(runs.CHAIN)


def test_demo_keeps_what_was_finished_before_it_was_interrupted(chain, tmp_path, monkeypatch):
    notebooks, _ = chain
    (tmp_path / "run" / "status").mkdir(parents=True)
    for name, state in zip(runs.CHAIN, ("done", "done", "interrupted"), strict=False):
        (tmp_path / "run" / "status" / f"{name}.json").write_text(json.dumps({"state": state}))
    kept = []

    def note(notebook, run_dir, values, *, skip_done):
        kept.append((notebook.stem, skip_done))
        return write_notebook(Path(run_dir) / notebook.name)

    monkeypatch.setattr(runs, "run", note)
    demo(tmp_path / "run", notebooks=notebooks)
    assert kept == [(name, True) for name in runs.CHAIN]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"overrides": ["sed=3"]}, ValueError, "the notebooks: unknown parameter 'sed'; did you mean 'seed'?"),
        ({"overrides": ["seed=x"]}, TypeError, "seed='x' is of type str: must be int"),
        ({"overrides": {"seed": 1.5}}, TypeError, "must be int"),
        ({"overrides": ["seed=1", "seed=2"]}, ValueError, "given twice"),
        ({"overrides": ["run_dir=x"]}, ValueError, "run_dir: is given as the run folder"),
        ({"tiles": "nowhere", "catalogue": "nowhere"}, FileNotFoundError, "tiles=nowhere: no such file or folder"),
        ({"tiles": "."}, ValueError, "give both, or none for a simulated sky"),
        ({"notebooks": "nowhere"}, FileNotFoundError, "nowhere: must hold the notebooks 00_make_cutouts"),
    ],
)
def test_demo_checks_everything_before_it_begins(chain, tmp_path, arguments, error, message):
    notebooks, done = chain
    with pytest.raises(error, match=re.escape(message)):
        demo(tmp_path / "run", **{"notebooks": notebooks, **arguments})
    assert not done
    assert not (tmp_path / "run").exists()


def test_demo_reports_what_there_is_when_a_notebook_fails(chain, tmp_path, monkeypatch):
    notebooks, _ = chain
    noted = runs.run

    def fail_third(notebook, run_dir, values, *, skip_done):
        out = noted(notebook, run_dir, values, skip_done=skip_done)
        if notebook.stem == "02_evaluate":
            raise NotebookError(out, 3, "ValueError: no")
        return out

    monkeypatch.setattr(runs, "run", fail_third)
    with pytest.raises(NotebookError, match=r"02_evaluate\.ipynb failed in cell \[3\]: ValueError: no"):
        demo(tmp_path / "run", notebooks=notebooks)
    assert "01_pretrain.ipynb" in (tmp_path / "run" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.ipynb", "--run-dir", "run"], "no.ipynb: no such notebook"),
        (["{notebook}"], "--run-dir DIR is missing"),
        (["{notebook}", "--run-dir", "run", "stepps=3"], "did you mean 'steps'?"),
        (["{notebook}", "steps=1", "--run-dir", "run", "interactive=true"], "True or False"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(notebook, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *(a.format(notebook=notebook) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("skylib: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_line_explains_itself(notebook, capsys):
    assert main(["run", str(notebook), "--help-parameters"]) == 0
    assert "learning_rate: float = 0.00015  # peak, AdamW" in capsys.readouterr().out
    for arguments, code in (
        (["--version"], 0),
        (["--help"], 0),
        (["run", "x", "--nonsense"], 2),
        (["nonsense"], 2),
        ([], 2),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
    assert "skylib 0." in capsys.readouterr().out


def test_data_are_identified(tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "a.fits").write_bytes(b"abc")
    (tmp_path / "catalogue.csv").write_bytes(b"abc")
    values = ["", "grizy", 3, str(tmp_path / "catalogue.csv"), tmp_path / "tiles", str(tmp_path / "none.h5")]
    found = data_checksums(values)
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert found[str(tmp_path / "catalogue.csv")] == {"bytes": 3, "sha256": sha}
    listing = found[str(tmp_path / "tiles")]
    assert (listing["files"], listing["bytes"]) == (1, 3)
    assert set(found) == {str(tmp_path / "catalogue.csv"), str(tmp_path / "tiles")}
    (tmp_path / "tiles" / "a.fits").write_bytes(b"abcd")
    assert data_checksums(values)[str(tmp_path / "tiles")] != listing


def test_notebooks_are_found_by_name_and_can_be_copied_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("01_pretrain", "01_pretrain.ipynb"):
        assert runs.find_notebook(name) == runs.NOTEBOOKS / "01_pretrain.ipynb"
    own = write_notebook(tmp_path / "01_pretrain.ipynb")
    assert runs.find_notebook("01_pretrain.ipynb") == Path("01_pretrain.ipynb")  # what is there comes first
    assert main(["notebooks", str(tmp_path)]) == 0
    copied = capsys.readouterr().out
    assert "02_evaluate.ipynb" in copied
    assert "01_pretrain" not in copied
    assert notebook_parameters(own)["size"].annotation == "tuple[int, int]"


def test_every_command_and_option_is_explained():
    import argparse

    from skylib.__main__ import _parser

    def commands(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, sub in action.choices.items():
                    yield name, sub
                    yield from commands(sub)

    found = dict(commands(_parser()))
    assert {"run", "status", "demo", "notebooks", "hsc-tiles"} <= found.keys()
    for name, sub in found.items():
        assert name == "fetch" or f"skylib {'fetch ' * (name in ('galaxiesml', 'hsc-tiles'))}{name}" in sub.epilog
        assert all(action.help for action in sub._actions if action.metavar != "DATA"), name


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "."]])
def test_what_needs_no_data_loads_nothing_large(arguments, tmp_path):
    code = f"import sys, contextlib\nfrom skylib.__main__ import main\nwith contextlib.suppress(SystemExit):\n    main({arguments})\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "pandas", "astropy", "papermill"} & set(loaded)
