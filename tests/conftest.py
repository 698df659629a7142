"""The rule that CI skips nothing it is meant to run. The sky that tests share is in conftest.py of the project."""

import os
from pathlib import Path

import pytest

MAY_SKIP = ("needs a CUDA device", "needs ../shared", "needs transformers", "needs a C++ compiler")


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
