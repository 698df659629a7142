"""Trainings without figures, which take longer than the few steps of a test, unless a test asks for them."""

import pytest

from skylib.training.monitor import Recorder


@pytest.fixture
def figures():
    """Ask for figures."""


@pytest.fixture(autouse=True)
def _without_figures(request, monkeypatch):
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("skylib.training.monitor.draw_reconstruction", lambda *_, **__: None)
        monkeypatch.setattr(Recorder, "draw", lambda _: None)
