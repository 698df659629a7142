"""What tests share: a small simulated sky, and the rule that CI skips nothing it is meant to run."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

MAY_SKIP = ("needs a CUDA device", "needs ../shared", "needs transformers", "needs a C++ compiler")


@pytest.fixture(scope="session")
def sky(tmp_path_factory):
    """Two tiles of 256 x 256 pixels with 240 objects; the second lacks y and has a strip without data."""
    from skylib import simulate_sky

    return simulate_sky(tmp_path_factory.mktemp("sky"), n_tiles=2, tile_size=256, n_objects=240, seed=1)


@pytest.fixture(scope="session")
def tiles(sky):
    from skylib import find_tiles

    return find_tiles(sky.tiles, bands="grizy", min_bands=4)


@pytest.fixture(scope="session")
def cutouts(sky, tiles, tmp_path_factory):
    """The objects of `sky`, 32 pixels a side."""
    from skylib import make_cutouts

    return make_cutouts(tiles, sky.catalogue, tmp_path_factory.mktemp("cutouts") / "cutouts.h5", size=32)


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
