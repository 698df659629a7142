"""Fixtures for all tests, and the rule that CI skips nothing in silence."""

import os
from pathlib import Path

import pytest

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib

ALLOWED_SKIPS = ("needs a CUDA device", "needs ../shared", "needs a Slurm")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside the repository on some machines: see its README.md."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs ../shared data: {path}")
    return path


class NoSilentSkips:
    """With SKYLIB_CI=1, a test that was skipped for want of something that CI must have fails the session."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.note(report)

    def note(self, report):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            self.skipped.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session, exitstatus):
        if self.skipped and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.skipped:
            terminalreporter.section("skipped, but SKYLIB_CI=1 allows only: " + "; ".join(ALLOWED_SKIPS), red=True)
            for line in self.skipped:
                terminalreporter.line(line)


def pytest_configure(config):
    if os.environ.get("SKYLIB_CI") == "1":  # a plugin, since hooks of this file see nothing of the doctests of skylib
        config.pluginmanager.register(NoSilentSkips(), "no-silent-skips")
