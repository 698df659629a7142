"""What README and docs say is true: code runs, commands parse, links lead somewhere, messages exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

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

    import skylib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] == skylib.__version__
    assert f"## {skylib.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert np.all([name in citation for name in ("cff-version", "title", "authors", "message")])
