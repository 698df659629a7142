"""The files around the library agree with each other, with what is installed, and with our ways."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import chain
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler.package import BuildString

import skylib

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "python-isal": "isal"}  # conda-forge: PyPI
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, Requirement]:
    """Return what pyproject.toml asks for, by normalised name, without what only benchmarks and very many objects need."""
    extras = [
        texts for extra, texts in project()["optional-dependencies"].items() if extra not in ("benchmark", "scale")
    ]
    texts = [*project()["dependencies"], *chain(*extras)]
    return {canonicalize_name((r := Requirement(text)).name): r for text in texts}


def installed(name: str) -> str:
    try:
        return version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0
    except PackageNotFoundError:
        return "not installed"


def environment() -> tuple[list[str], list[str]]:
    """Return the conda specs and the pip requirements of environment.yml."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(content) == {"name", "channels", "dependencies"}
    assert content["name"] == "sky-embeddings"
    assert content["channels"] == ["conda-forge"]
    sections = [d for d in content["dependencies"] if isinstance(d, dict)]
    assert all(set(section) == {"pip"} for section in sections)
    return [d for d in content["dependencies"] if isinstance(d, str)], [
        d for section in sections for d in section["pip"]
    ]


def test_environment_asks_for_the_same_as_pyproject():
    conda, pip = environment()
    asked = {}
    for spec in conda:
        name, bound = re.fullmatch(r"([\w-]+)\s*(.*)", spec).groups()
        asked[canonicalize_name(CONDA_NAMES.get(name, name))] = bound
    assert "pip" in asked, "a pip section needs pip"
    del asked["pip"]
    assert asked.pop("python") == project()["requires-python"]
    asked |= {canonicalize_name(Requirement(text).name): str(Requirement(text).specifier) for text in pip}
    assert asked == {name: str(requirement.specifier) for name, requirement in requirements().items()}


def test_conda_reads_environment_and_the_tested_versions_satisfy_it():
    for spec in environment()[0]:
        match = rattler.MatchSpec(spec)
        name = match.name.normalized
        tested = (
            ".".join(map(str, sys.version_info[:3])) if name == "python" else installed(CONDA_NAMES.get(name, name))
        )
        record = rattler.PackageRecord(
            name=name, version=tested, build=BuildString("0"), build_number=0, subdir="linux-64"
        )
        assert match.matches(record), f"environment.yml asks for {spec}; installed is {tested}"


def test_constraints_pin_what_is_installed():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    for name, requirement in requirements().items():
        assert name in pins, f"constraints.txt lacks {name}: see the comment at its top"
        assert requirement.specifier.contains(pins[name]), (
            f"constraints.txt has {name}=={pins[name]}, asked is {requirement}"
        )
        assert installed(name) == pins[name], f"{name} {installed(name)} is installed, tested was {pins[name]}"


def test_what_the_library_imports_is_declared():
    """Not only as what another package needs today; ``faiss`` is of the extra ``scale``."""
    imported = set()
    for path in (ROOT / "skylib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0] for name in [*names, getattr(node, "module", None) or ""]}
    provided, declared = (
        packages_distributions(),
        {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]},
    )
    foreign = imported - set(sys.stdlib_module_names) - {"", "skylib", "faiss"}
    assert {name for name in foreign if not declared & set(map(canonicalize_name, provided.get(name, [])))} == set()


def tracked_files() -> list[Path]:
    """Return the files that are, or would be, in the repository."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_tells_of_the_machine_it_was_made_on():
    private = re.compile(
        "|".join(
            [
                r"(?<![\w.])/" + r"work/",
                r"(?<![\w.])/" + r"root/",
                r"--(extra-)?index" + "-url",
                r"issue" + r"s? #?\d+\b",
            ]
        )
    )
    found = []
    for path in tracked_files():
        if path.suffix in (".png", ".fits", ".h5", ".pt", ".safetensors"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found


@pytest.mark.parametrize("heavy", ["ipywidgets", "umap", "galsim", "papermill", "matplotlib"])
def test_importing_the_library_is_light(heavy, imported):
    assert heavy not in imported


def test_public_names_are_listed_once_for_python_and_type_checkers():
    """Each public name is re-exported by the stub, and is what it says: `from module import name as name`."""
    tree = ast.parse((ROOT / "skylib/__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert all(name.name == name.asname for node in imports for name in node.names)
    assert sorted(name.name for node in imports for name in node.names) == skylib.__all__
    assert len(set(skylib.__all__)) == len(skylib.__all__) >= 60


def test_the_search_of_the_library_is_the_function_whatever_is_imported_first():
    code = "from skylib.search import index as room; import skylib; assert skylib.search is room.search"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """What is loaded with every public name but those that need GalSim or ipywidgets."""
    code = """
import skylib, sys
assert "torch" not in sys.modules and "numpy" not in sys.modules
[getattr(skylib, n) for n in skylib.__all__ if n not in ("SimilarityBrowser", "SimulatedSky", "simulate_sky")]
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing skylib says something"
    return set(done.stdout.split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_in_our_manner(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["metadata"]["kernelspec"]["language"] == "python"
    tagged = [cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged parameters"
    assert "".join(book["cells"][0]["source"]).startswith("# "), "the first cell holds the title"
    total = 0
    for cell in (cell for cell in book["cells"] if cell["cell_type"] == "code"):
        assert cell["outputs"] == [], "make strip removes outputs"
        assert cell["execution_count"] is None
        source = "".join(cell["source"])
        assert not re.search(r"^\s*(def|class|async def) ", source, re.MULTILINE), f"belongs into the library: {source}"
        if cell is not tagged[0]:
            lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
            assert len(lines) <= 10, f"{len(lines)} lines in one cell: {source}"
            total += len(lines)
    assert total <= 60, f"{total} lines of code"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_of_notebook_are_typed_and_explained(path):
    from skylib.runner.parameters import notebook_parameters

    parameters = notebook_parameters(path)
    assert parameters["run_dir"].annotation == "str"
    assert all(parameter.comment for parameter in parameters.values()), "every parameter has a comment"
