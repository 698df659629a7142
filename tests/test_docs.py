"""What README and docs say is true: code runs, commands parse, links lead somewhere, messages exist."""

import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import skylib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/*.md"))]
OF_OTHERS = ("CUDA out of memory", "No space left on device", "No module named", "NOTEBOOK.ipynb failed")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page; those without a language are commands."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_code_of_the_readme_runs(cutouts, tmp_path, monkeypatch, capsys):
    """On the small sky of the tests, with a few steps."""
    (code,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papermill_runs" / "demo").mkdir(parents=True)
    (tmp_path / "papermill_runs" / "demo" / "cutouts.h5").symlink_to(cutouts.path)
    for long, short in (
        ("steps=1000", "steps=4"),
        ("warmup_steps=50", "warmup_steps=1"),
        ("batch_size=64", "batch_size=8"),
        ("split_cutouts(cutouts)", "split_cutouts(cutouts, size=8, cell=32768)"),
    ):
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^[01]\.\d{3} \[[\d.]+, [\d.]+\]$", printed, re.MULTILINE)
    assert "score" in printed


def test_code_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """The pages that teach, one after the other, in one folder; on a smaller sky."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for page in ("start.md", "howto.md"):
        for code in blocks(ROOT / "docs" / page, "python"):
            exec(compile(code.replace("tile_size=512", "tile_size=256"), page, "exec"), names)
    assert re.search(r"balanced accuracy [01]\.\d{3} \[[\d.]+, [\d.]+\]$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "candidates.reg").is_file()
    assert (tmp_path / "figures" / "similar.png").is_file()


@pytest.fixture(scope="module")
def evaluation(examples):
    model, cutouts, split = (examples[name] for name in ("model", "cutouts", "split"))
    return skylib.evaluate(model, cutouts, "class", task="classification", split=split, pools=["mean"])


def examples_of_the_reference() -> dict[str, str]:
    """Return the examples of the API reference that are not in a docstring, by name."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    found = re.findall(r"^::: (\S+)\n+```pycon\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {name.rpartition(".")[2]: code for name, code in found}


@pytest.mark.parametrize("name", sorted(examples_of_the_reference()))
def test_example_of_the_reference_gives_what_it_says(name, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, names = examples_of_the_reference()[name], dict(request.getfixturevalue("examples"))
    if "evaluation" in code:
        names["evaluation"] = request.getfixturevalue("evaluation")
    test = doctest.DocTestParser().get_doctest(code, names, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test, out=said.append)
    assert not said, "".join(said)


def test_every_public_name_has_an_example():
    without = {name for name in skylib.__all__ if ">>>" not in (getattr(skylib, name).__doc__ or "")}
    assert without == examples_of_the_reference().keys()


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "img", "iframe", "source") or (tag == "link" and ("rel", "stylesheet") in attrs):
            self.addresses += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs mkdocs: pip install '.[docs]'")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    """Strictly: a missing page, link or anchor, or a name that is not in the library, is an error."""
    command = [sys.executable, "docs/build.py", "--run-dir", tmp_path, "--build-dir", tmp_path / "build"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    site = tmp_path / "build" / "site"
    for page in ("index.html", "docs/reference.html", "notebooks/02_evaluate.html"):
        (loaded := Loaded()).feed((site / page).read_text(encoding="utf-8"))
        assert loaded.addresses
        assert not [address for address in loaded.addresses if address.startswith(("http", "//"))], page
    assert 'id="skylib.search.index.search"' in (site / "docs" / "reference.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    stub = (ROOT / "skylib" / "__init__.pyi").read_text(encoding="utf-8")
    assert sorted(name.rpartition(".")[2] for name in listed) == skylib.__all__
    assert all(f"from {name.rpartition('.')[0]} import" in stub for name in listed)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "") for line in block.splitlines()]
    return sorted({line.strip() for line in lines if re.match(r"\s*(python -m )?skylib ", line)})


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line, monkeypatch, tmp_path):
    """Every command line is read without an error, up to where it would begin to work."""
    from skylib import __main__ as command_line
    from skylib.data import fetch
    from skylib.runner import runs, status

    asked = []
    monkeypatch.setattr(runs, "run", lambda *a, **k: asked.append(a) or tmp_path)
    monkeypatch.setattr(runs, "demo", lambda *a, **k: asked.append(a) or tmp_path)
    monkeypatch.setattr(status, "read_status", lambda *a, **k: asked.append(a) or [])
    monkeypatch.setattr(status, "format_status", lambda *a, **k: "")
    for name in ("_notebooks", "_embed"):
        monkeypatch.setattr(command_line, name, lambda *a, **k: asked.append(a))
    for name in ("fetch_zenodo", "fetch_hsc_tiles"):
        monkeypatch.setattr(fetch, name, lambda *a, **k: asked.append(a) or [])
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    words = words[words.index("skylib") + 1 :]
    assert command_line.main(words) == 0
    assert asked or "--help-parameters" in words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:skylib|notebooks|tests|slurm|docs|benchmarks)/[\w./]+\.\w+)`", text):
        assert "NN_name" in name or (ROOT / name).exists(), f"{page.name} names {name}"


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_]+/(?:[a-z_]+/)*[a-z_]*(?:\.py)?)`", text):
        assert (ROOT / "skylib" / name).exists() or (ROOT / name).exists(), name


def messages() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    return [m for m in found if not m.startswith(OF_OTHERS) and " " in m]


@pytest.mark.parametrize("message", messages())
def test_message_is_one_that_is_written(message):
    """Each piece of a message between the places where values stand is in the code."""
    sources = [*sorted((ROOT / "skylib").rglob("*.py")), ROOT / "Makefile"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r"\"\s*\n\s*f?\"", "", text)  # a message on several lines
    for piece in (piece.strip(" '") for piece in message.split("…")):
        assert not piece or piece in text, piece


def test_citation_and_version_agree():
    import tomllib

    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] == skylib.__version__
    assert f"## {skylib.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert np.all([name in citation for name in ("cff-version", "title", "authors", "message")])
