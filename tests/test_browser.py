"""The similarity browser, clicked in a real JupyterLab in a real Chromium."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from skylib import Embeddings, SimilarityBrowser

SHOTS = Path(__file__).parents[1] / "test-artifacts"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@pytest.fixture
def embeddings(cutouts):
    vectors = np.random.default_rng(0).normal(size=(len(cutouts), 8))
    return Embeddings(vectors, ra=cutouts.ra, dec=cutouts.dec, columns={"class": cutouts.column("class")})


def test_clicks_without_a_browser(cutouts, embeddings):
    """A change of query never loses what was kept."""
    browser = SimilarityBrowser(embeddings, cutouts, query=3)
    assert len(browser._grid.children) == 19
    card = browser._grid.children[2]
    like, keep = card.children[2].children
    keep.value = True
    kept = int(browser.selected["index"][0])
    like.click()
    assert "query 3" not in browser._status.value
    assert browser.selected["index"].tolist() == [kept]
    assert browser.selected["class"][0] == embeddings.column("class")[kept]
    browser._back.click()
    assert "query 3; 1 kept" in browser._status.value
    browser._grid.children[2].children[2].children[1].value = False
    assert len(browser.selected) == 0
    with pytest.raises(ValueError, match="10 embeddings for 240 cutouts"):
        SimilarityBrowser(embeddings[:10], cutouts)


@pytest.fixture
def lab(tmp_path, cutouts, embeddings):
    """A JupyterLab on loopback with one notebook that shows the browser."""
    shutil.copy(cutouts.path, tmp_path / "cutouts.h5")
    embeddings.save(tmp_path / "embeddings.h5")
    source = (
        "from skylib import CutoutFile, Embeddings, SimilarityBrowser\n"
        "browser = SimilarityBrowser(Embeddings.load('embeddings.h5'), CutoutFile('cutouts.h5'), query=3)\nbrowser"
    )
    book = new_notebook(
        cells=[new_code_cell(source)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nbformat.write(book, tmp_path / "browse.ipynb")
    home, token = tmp_path / ".jupyter", secrets.token_hex(16)
    settings = home / "lab/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "lab"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}", "--ServerApp.port_retries=0"]  # fmt: skip
    with open(tmp_path / "lab.log", "w") as log:
        process = subprocess.Popen(
            command, env=os.environ | places, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/api?token={token}", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.2)
        yield f"{url}/lab/tree/browse.ipynb?reset&token={token}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.browser
def test_clicks_in_jupyterlab(lab):
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium, which is not installed")
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_ARGUMENTS)
        page = window.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(lab)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=90_000)  # a run before that is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        status = page.locator(".sky-status")
        expect(status).to_contain_text("query 3; 0 kept", timeout=90_000)
        page.get_by_role("button", name="keep").nth(2).click()
        expect(status).to_contain_text("query 3; 1 kept", timeout=20_000)
        page.get_by_role("button", name="like").nth(4).click()
        expect(status).not_to_contain_text("query 3;", timeout=20_000)
        expect(status).to_contain_text("1 kept")
        page.screenshot(path=SHOTS / "browser.png")
        page.get_by_role("button", name="back").click()
        expect(status).to_contain_text("query 3; 1 kept", timeout=20_000)
        window.close()
