"""The order of the tests, and that CI skips nothing. The sky that tests share is in conftest.py of the project."""

import os
from pathlib import Path

import pytest

MAY_SKIP = ("needs a CUDA device", "needs ../shared", "needs transformers", "needs a C++ compiler")

# The files that take longest, the longest first: of two processes (-n 2 --dist loadfile) none works alone at the end.
LONGEST = (
    "notebooks/test_notebooks",
    "slurm/test_slurm",
    "browse/test_browser",
    "training/test_pretrain",
    "test_benchmarks",
    "test_recipes",
    "evaluation/test_label_study",
    "search/test_index",
    "search/test_sky_search",
    "test_docs",
    "runner/test_runs",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files that hold the most tests


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture
def shared_data():
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs ../shared data, which is not at {path.parent.name}/{path.name} beside the project")
    return path


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MAY_SKIP):
            _wrongly_skipped.append(f"{report.nodeid}: {reason}")


_wrongly_skipped: list[str] = []


def pytest_sessionfinish(session, exitstatus):
    if os.environ.get("SKYLIB_CI") and _wrongly_skipped and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("SKYLIB_CI") and _wrongly_skipped:
        terminalreporter.section("skipped, but meant to run in CI")
        for line in _wrongly_skipped:
            terminalreporter.line(line)
