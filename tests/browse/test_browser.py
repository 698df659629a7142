"""The similarity browser: driven by calls, and clicked in a real JupyterLab and a real Voila in Chromium."""

import base64
import csv
import io
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from skylib import Embeddings, SimilarityBrowser, find_object, write_objects
from skylib.browse.details import facts
from skylib.browse.pictures import Pictures
from skylib.browse.state import BrowserState, Question, objects_name
from skylib.browse.worker import Worker
from skylib.search.export import ds9_regions, sky_links

SHOTS = Path(__file__).parents[2] / "test-artifacts"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU, for the map
]


@pytest.fixture(scope="module")
def embeddings(cutouts):
    vectors = np.random.default_rng(0).normal(size=(len(cutouts), 8))
    columns = {name: cutouts.column(name) for name in ("class", "mag_i", "rare", "object_id")}
    return Embeddings(vectors, ra=cutouts.ra, dec=cutouts.dec, columns=columns)


def rows_of(browser):
    assert browser.wait()
    return [item["row"] for item in browser._grid.items]


def send(browser, event, row=-1):
    """As the grid's JavaScript does."""
    browser._on_event({"event": event, "row": row})
    assert browser.wait()


def test_a_click_asks_and_back_returns(cutouts, embeddings):
    browser = SimilarityBrowser(embeddings, cutouts, query=3)
    first = rows_of(browser)
    assert first[0] == 3
    assert len(first) == 25
    send(browser, "click", first[4])
    assert rows_of(browser)[0] == first[4]
    browser._controls["click"].value = "add to query"
    send(browser, "click", first[7])
    assert rows_of(browser)[:2] == [first[4], first[7]]
    for _ in range(2):
        send(browser, "back", 0)
    assert rows_of(browser) == first
    browser._on_button("next")
    assert not set(rows_of(browser)) & set(first)


def test_nothing_but_a_mark_changes_a_mark(cutouts, embeddings, tmp_path):
    browser = SimilarityBrowser(embeddings, cutouts, query=3, run_dir=tmp_path)
    rows = rows_of(browser)
    send(browser, "yes", rows[1])
    send(browser, "yes", rows[2])
    send(browser, "no", rows[3])
    for event, row in (("click", rows[5]), ("query", rows[6]), ("back", 0), ("focus", rows[8])):
        send(browser, event, row)
    browser._order.value = "marks"
    browser._controls["filter"].value = "mag_i 0..1"
    assert rows_of(browser) == []
    browser._controls["filter"].value = "this is no filter"
    assert browser.wait()
    assert "must be 'column low..high'" in browser._error.value
    browser._controls["filter"].value = ""
    assert len(rows_of(browser)) == 24
    assert browser._error.value == ""
    assert browser.state.marks == {rows[1]: "yes", rows[2]: "yes", rows[3]: "no"}
    assert browser.selected["index"].tolist() == rows[1:3]
    assert browser.selected["class"].tolist() == embeddings.column("class")[rows[1:3]].tolist()
    send(browser, "yes", rows[1])  # again: off
    assert browser.selected["index"].tolist() == [rows[2]]
    again = SimilarityBrowser(embeddings, cutouts, run_dir=tmp_path)
    assert again.wait()
    assert again.state.marks == browser.state.marks
    assert again.state.question == browser.state.question
    assert again.state.history == browser.state.history
    with pytest.raises(ValueError, match=r"browser\.json: marks of 240 objects, not of these 10"):
        BrowserState.load(tmp_path / "browser.json", like=BrowserState(10, "x"))
    with pytest.raises(ValueError, match="10 embeddings for 240 cutouts"):
        SimilarityBrowser(embeddings[:10], cutouts)


def test_a_slow_drawing_does_not_undo_a_click(cutouts, embeddings, monkeypatch):
    browser = SimilarityBrowser(embeddings, cutouts, query=3)
    row = rows_of(browser)[1]
    send(browser, "yes", row)
    begun, gate, thumbnails = threading.Event(), threading.Event(), browser._pictures.thumbnails

    def slowly(*args):
        begun.set()
        assert gate.wait(20)
        return thumbnails(*args)

    monkeypatch.setattr(browser._pictures, "thumbnails", slowly)
    browser._on_button("next")
    assert begun.wait(20)
    browser._order.value = "marks"
    browser._on_event({"event": "no", "row": 7})
    gate.set()
    assert browser.wait()
    assert browser._order.value == browser.state.question.order == "marks"
    assert len(browser.state.history) == 1
    assert browser._grid.marks == {row: "yes", 7: "no"}


def test_marks_belong_to_a_catalogue_and_two_browsers_share_them(cutouts, embeddings, tmp_path):
    one, other = (SimilarityBrowser(embeddings, cutouts, run_dir=tmp_path) for _ in range(2))
    for browser, event, row in ((one, "yes", 1), (one, "yes", 2), (other, "no", 3), (one, "yes", 2), (other, "yes", 4)):
        send(browser, event, row)
    assert other.state.marks == other._grid.marks == {1: "yes", 3: "no", 4: "yes"}
    send(one, "no", 4)  # where both have marked one, the later counts
    saved = BrowserState.load(tmp_path / "browser.json", like=one.state)
    assert saved.marks == {1: "yes", 3: "no", 4: "no"}
    backwards = embeddings[::-1]
    with pytest.raises(ValueError, match=r"browser\.json: marks of another catalogue"):
        SimilarityBrowser(backwards, cutouts, run_dir=tmp_path)
    backwards.columns.pop("object_id")
    with pytest.raises(ValueError, match=r"browser\.json: marks of another catalogue"):
        BrowserState(len(backwards), objects_name(backwards)).save(tmp_path / "browser.json")


def test_orders_filters_map_and_pictures(cutouts, embeddings):
    xy = np.random.default_rng(1).normal(size=(len(embeddings), 2))
    xy[:20] = np.nan  # not on the map
    browser = SimilarityBrowser(embeddings, cutouts, query=3, xy=xy, colour_by="class")
    rows = rows_of(browser)
    browser._order.value = "marks"
    assert browser.wait()
    assert "mark at least one object" in browser._error.value
    browser._order.value = "odd"
    odd = rows_of(browser)
    distance = np.linalg.norm((embeddings.vectors - embeddings.vectors.mean(0)) / embeddings.vectors.std(0), axis=1)
    assert distance[odd].mean() > 1.2 * distance.mean()
    browser._controls["filter"].value = "class = 2"
    assert (embeddings.column("class")[rows_of(browser)] == 2).all()
    browser._controls["filter"].value = ""
    browser._map.scatter.widget.selection = np.array([0, 5, 9])
    assert sorted(rows_of(browser)) == [20, 25, 29]
    send(browser, "focus", 30)
    assert np.asarray(browser._map.scatter.widget.selection).tolist() == [0, 5, 9, 10]  # the answer, and this one
    assert sorted(rows_of(browser)) == [20, 25, 29], "showing an object on the map is no lasso"
    send(browser, "focus", 31)
    browser._map._on_selection({"new": np.array([10])})  # the page tells the mark before the last back, late
    assert browser.wait()
    assert sorted(rows_of(browser)) == [20, 25, 29]
    send(browser, "focus", 30)
    before = browser._grid.items[0]["src"]
    browser._controls["stretch"].value = 0.1
    assert browser.wait()
    assert browser._grid.items[0]["src"] != before
    assert bytes(browser._picture.value).startswith(b"\x89PNG")
    assert "object 30" in browser._facts.value
    assert len(rows) == 25


def test_an_object_is_found_by_position_name_or_row(cutouts, embeddings):
    names = np.array([f"NGC {i}" for i in range(len(embeddings))])
    e = Embeddings(
        embeddings.vectors, ra=embeddings.ra, dec=embeddings.dec, columns=embeddings.columns | {"name": names}
    )
    place = f"{e.ra[17] + 1e-5:.6f} {e.dec[17]:.6f}"
    sexagesimal = SkyCoord(e.ra[18], e.dec[18], unit="deg").to_string("hmsdms", sep=":", precision=4)
    for text, row in ((place, 17), (sexagesimal, 18), (str(e.column("object_id")[21]), 21), ("ngc 7", 7), ("#9", 9)):
        assert find_object(e, text)[0] == row, text
    assert find_object(cutouts, place) == find_object(e, place)  # also in a file of cutouts
    for text, why in (
        ("10 10", "no object within 60 arcsec"),
        ("#999", "rows are 0 to 239"),
        ("M31", "no object_id or name"),
    ):
        with pytest.raises(ValueError, match=why):
            find_object(e, text)
    e.columns["name"][8] = "NGC 7"
    with pytest.raises(ValueError, match="2 objects have name = 'NGC 7'"):
        find_object(e, "NGC 7")
    browser = SimilarityBrowser(e, cutouts, query=3)
    browser._find.value = place
    assert rows_of(browser)[0] == 17
    assert "0.0 arcsec" in browser._files.value
    browser._find.value = "nowhere"
    assert browser.wait()
    assert "no object_id or name" in browser._error.value
    browser.ask(e.vectors[33])  # as of an object that is not in the catalogue
    assert rows_of(browser)[0] == 33
    assert "look-alikes of your own" in browser._status.value
    with pytest.raises(ValueError, match=r"must be a vector \(8,\)"):
        browser.ask(np.zeros(5))
    with pytest.raises(ValueError, match="needs the model"):
        browser.ask(np.zeros((5, 32, 32)))


def test_sorted_filtered_and_folded(cutouts, embeddings):
    browser = SimilarityBrowser(embeddings, cutouts, query=3)
    browser._controls["sort"].value = "mag_i"
    browser._order.value = "column"
    browser._controls["filter"].value = "class = galaxy; mag_i < 23"
    rows, mag = rows_of(browser), embeddings.column("mag_i")
    assert (embeddings.column("class")[rows] == 0).all()
    assert (np.diff(mag[rows]) >= 0).all()
    assert mag[rows].max() < 23
    assert browser._grid.items[0]["caption"] == f"{mag[rows[0]]:.5g}"
    browser._controls["descending"].value = True
    rows = rows_of(browser)
    assert (np.diff(mag[rows]) <= 0).all()
    browser._controls["filter"].value = "class = galxy"
    assert browser.wait()
    assert "the column holds numbers, called galaxy, qso, star" in browser._error.value
    twins = Embeddings(embeddings.vectors, ra=150 + np.arange(240) // 2 * 0.01, dec=np.zeros(240))
    browser = SimilarityBrowser(twins, cutouts, query=4)
    one = rows_of(browser)  # by default
    browser._controls["fold"].value = 0.0
    both = rows_of(browser)
    browser._controls["fold"].value = 2.0
    assert rows_of(browser) == one
    assert len(one) == 25
    assert len({row // 2 for row in one}) == 25
    assert len({row // 2 for row in both}) < 25
    browser._on_button("next")
    assert not {row // 2 for row in one} & {row // 2 for row in rows_of(browser)}


def test_marks_and_tags_are_undone_filtered_exported_and_restored(cutouts, embeddings, tmp_path):
    browser = SimilarityBrowser(embeddings, cutouts, query=3, run_dir=tmp_path)
    browser._controls["tag"].value = "lens <b>"
    for event, row in (("yes", 5), ("tag", 5), ("tag", 6), ("no", 7)):
        send(browser, event, row)
    send(browser, "undo")
    assert browser._grid.marks == {5: "yes"}
    send(browser, "redo")
    assert browser._grid.marks == {5: "yes", 7: "no"}
    for _ in range(9):
        send(browser, "undo")
    assert (browser._grid.marks, browser._grid.tags) == ({}, {})
    assert "nothing to undo" in browser._status.value
    for _ in range(4):
        send(browser, "redo")
    assert browser.selected["tags"].tolist() == ["lens <b>"]
    browser._controls["filter"].value = "tag = 'lens <b>'"
    browser._order.value = "column"
    assert sorted(rows_of(browser)) == [5, 6]
    browser._controls["filter"].value = "mark = no"
    assert rows_of(browser) == [7]
    send(browser, "focus", 5)
    assert "lens &lt;b&gt;" in browser._facts.value
    assert "<b>lens" not in browser._facts.value
    assert {path.name for path in browser.export()} >= {"selection.csv", "selection_tagged.reg"}
    browser._controls["tag"].value = "a; b"
    send(browser, "tag", 5)
    assert "without ',' and ';'" in browser._error.value
    browser._controls["stretch"].value = 0.1
    assert browser.wait()
    again = SimilarityBrowser(embeddings, cutouts, run_dir=tmp_path)
    assert again.wait()
    assert again.state == browser.state
    assert (again._grid.marks, again._grid.tags) == (browser._grid.marks, browser._grid.tags)
    assert rows_of(again) == [7]
    assert again._focus == 5
    assert again._controls["stretch"].value == 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"question": {"order": "alike", "targets": ['<img src=x onerror="alert(1)">'], "rows": []}},
        {"question": {"order": "alike", "targets": [240], "rows": []}},
        {"question": {"order": "<script>", "targets": [3], "rows": []}},
        {"marks": [[3, "<script>"]]},
        {"marks": [[-1, "yes"]]},
        {"marks": [[True, "yes"]]},
        {"tags": [[3, [7]]]},
        {"settings": {"filter": ["<script>"]}},
        {"history": 5},
        {"question": None},
    ],
)
def test_a_state_of_a_stranger_is_checked(cutouts, embeddings, tmp_path, change):
    browser = SimilarityBrowser(embeddings, cutouts, query=3, run_dir=tmp_path)
    assert browser.wait()
    saved = json.loads((tmp_path / "browser.json").read_text())
    (tmp_path / "browser.json").write_text(json.dumps(saved | change))
    with pytest.raises(ValueError, match=r"browser\.json: cannot be read as the state of a browser"):
        SimilarityBrowser(embeddings, cutouts, run_dir=tmp_path)


def test_processes_that_mark_at_the_same_time_lose_nothing(tmp_path):
    code = """
        import os
        from skylib.browse.state import BrowserState
        first = os.fork() > 0  # two processes, which import everything once
        state = BrowserState(1000, "x")
        for k in range(20):
            state.mark(100 * first + k, "yes")
            state.save("browser.json")
        if not first:
            os._exit(0)
        assert os.wait()[1] == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, timeout=120, check=True)
    assert len(BrowserState.load(tmp_path / "browser.json", like=BrowserState(1000, "x")).marks) == 40


def test_facts_are_escaped_without_files_and_linked_on_a_real_sky(cutouts, embeddings):
    labels = {
        "class": np.int64(1),
        "note": "<script>",
        "file": "/data/calexp-HSC-I.fits",
        "z": np.float32(0.5),
        "w": np.nan,
    }
    text = facts(3, 150.1, -2.2, labels=labels, names={"class": ("galaxy", "qso")}, links=True)
    assert "<td>class</td><td>qso (1)</td>" in text
    assert "&lt;script&gt;" in text
    assert "calexp" not in text
    assert "<td>w</td>" not in text
    assert text.count("<a href") == 3
    assert "<a href" not in facts(3, 150.1, -2.2, labels={}, names={}, links=False)
    assert SimilarityBrowser(embeddings, cutouts)._links is False  # simulated
    assert "unknown" in facts(3, np.nan, np.nan, labels={}, names={}, links=True)


def test_objects_of_another_catalogue_are_known(cutouts, embeddings):
    catalogue = Table({"ra": embeddings.ra[[4, 9]], "dec": embeddings.dec[[4, 9]] + 1e-4, "name": ["A", "B"]})
    browser = SimilarityBrowser(embeddings, cutouts, catalogue=catalogue)
    browser._controls["fold"].value = 0.0  # another object lies within 1 arcsec of one of them
    browser._controls["filter"].value = "known = A, B"
    browser._order.value = "column"
    assert {4, 9} <= set(rows_of(browser))
    with pytest.raises(ValueError, match="catalogue has no column 'dec'"):
        SimilarityBrowser(embeddings, cutouts, catalogue=Table({"ra": [1.0]}))


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("xy", [np.nan, np.inf], "xy holds no finite place"),
        ("xy", ["a", None], "xy has shape .* and type"),
        (
            "catalogue",
            [Table({"ra": ["x"], "dec": ["y"]}), Table({"ra": [1.0], "dec": [100.0]})],
            "catalogue: .*(column 'ra'|values of dec)",
        ),
        ("catalogue", [3, 1.5, object()], "catalogue"),
        ("odd", ["x", Table(), Table({"index": [1]})], "odd="),
        ("device", ["gpu7", 1.5], "device="),
    ],
)
def test_arguments_that_are_wrong_are_named(cutouts, embeddings, argument, values, message):
    for value in values:
        value = np.full((len(embeddings), 2), value) if argument == "xy" else value
        with pytest.raises(ValueError, match=message):
            SimilarityBrowser(embeddings, cutouts, **{argument: value})


def test_methods_name_the_argument_that_is_wrong(cutouts, embeddings):
    browser = SimilarityBrowser(embeddings, cutouts)
    for call, message in ((browser.save, "path=3"), (browser.export, "stem=3"), (browser.ask, "query")):
        with pytest.raises(ValueError, match=message):
            call(3 if call != browser.ask else {})
    with pytest.raises(ValueError, match="timeout='x'"):
        browser.wait("x")


def test_pictures_show_what_the_network_saw(cutouts):
    whole, part = (Pictures(cutouts, size=size) for size in (None, 16))
    look = (1.0, ("i", "r", "g"), False)
    sides = [Image.open(io.BytesIO(base64.b64decode(p.thumbnails([3], look)[0][22:]))).size for p in (whole, part)]
    assert sides == [(32, 32), (16, 16)]
    own, same = (whole.thumbnails([0, 3], (1.0, ("i", "r", "g"), own)) for own in (True, False))
    assert all(a != b for a, b in zip(own, same, strict=True))


def test_a_worker_serves_the_latest_and_tells_errors():
    told, done, begun, gate = [], [], threading.Event(), threading.Event()
    worker = Worker(told.append)
    worker.submit("grid", lambda: (begun.set(), gate.wait()))
    assert begun.wait(10)
    for number in range(5):
        worker.submit("grid", lambda number=number: done.append(number))
    worker.submit("detail", lambda: {}["missing"])
    assert not worker.wait(0.05)
    gate.set()
    assert worker.wait(10)
    assert done == [4]
    assert told == ["missing"]


def test_questions_are_checked_and_objects_are_written(embeddings, tmp_path):
    with pytest.raises(ValueError, match="order='best'"):
        Question("best")
    table = Table({"index": [4, 9], "ra": [150.1, 150.2], "dec": [2.1, -2.2], "rare": ["arc", "none"]})
    paths = write_objects(table, tmp_path / "list")
    assert [path.suffix for path in paths] == [".csv", ".vot", ".fits", ".reg"]
    for path in paths[:3]:
        back = Table.read(path)
        assert back["index"].tolist() == [4, 9]
        np.testing.assert_allclose(back["dec"], [2.1, -2.2])
        assert [str(kind) for kind in back["rare"]] == ["arc", "none"]
    assert str(Table.read(paths[2])["ra"].unit) == "deg"
    assert 'circle(150.2000000,-2.2000000,3") # text={9}' in ds9_regions(table)
    links = sky_links(150.1, -2.2)
    assert "ra=150.100000&dec=-2.200000" in links["Legacy viewer"]
    assert "Coord=150.100000-2.200000" in links["SIMBAD"]
    assert f"{math.radians(150.1):.9f}" in links["HSC map"]


# In a real browser

SOURCE = """
import numpy as np
from skylib import CutoutFile, Embeddings, SimilarityBrowser
embeddings = Embeddings.load('embeddings.h5')
cutouts, xy = CutoutFile('cutouts.h5'), np.load('umap.npy')
browser = SimilarityBrowser(embeddings, cutouts, query=3, xy=xy, run_dir='run', links=True)
browser
"""


@contextmanager
def serving(folder, command, ready):
    """Run a Jupyter server on loopback with settings of its own; yield its address and token."""
    home, token = folder / ".jupyter", secrets.token_hex(16)
    settings = home / "lab/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "lab"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", *(part.format(port=port, token=token, folder=folder) for part in command)]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            command, env=os.environ | places, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}{ready}?token={token}", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield url, token
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def chromium(**options):
    """Yield a page of a headless Chromium, which reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs chromium, which is not installed")
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_ARGUMENTS)
        yield window.new_page(**options)
        window.close()


@pytest.fixture
def folder(tmp_path, cutouts, embeddings):
    """A folder with one notebook that shows the browser."""
    shutil.copy(cutouts.path, tmp_path / "cutouts.h5")
    embeddings.save(tmp_path / "embeddings.h5")
    np.save(tmp_path / "umap.npy", np.random.default_rng(1).normal(size=(len(embeddings), 2)))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[new_code_cell(SOURCE.strip())], metadata=kernel), tmp_path / "browse.ipynb")
    return tmp_path


LAB = [
    "jupyterlab",
    "--no-browser",
    "--ip=127.0.0.1",
    "--port={port}",
    "--allow-root",
    "--ServerApp.port_retries=0",
    "--IdentityProvider.token={token}",
    "--ServerApp.root_dir={folder}",
]
VOILA = [
    "voila",
    "--no-browser",
    "--port={port}",
    "--Voila.ip=127.0.0.1",
    "--token={token}",
    "--strip_sources=True",
    "--Voila.root_dir={folder}",
    "{folder}",
]


@pytest.mark.browser
def test_a_session_in_jupyterlab(folder):
    from playwright.sync_api import expect

    with serving(folder, LAB, "/api") as (url, token), chromium(viewport={"width": 1400, "height": 1500}) as page:
        page.goto(f"{url}/lab/tree/browse.ipynb?reset&token={token}")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=90_000)  # a run before that is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        status, cards, marks = page.locator(".sky-status"), page.locator(".sky-card"), folder / "run" / "browser.json"
        expect(status).to_contain_text("look-alikes of 3: 1 to 24 of 240; 0 yes, 0 no", timeout=90_000)
        expect(cards).to_have_count(25)

        # mouse: yes, no, and a click on a picture, which loses neither
        cards.nth(2).locator(".sky-yes").click()
        cards.nth(4).locator(".sky-no").click()
        expect(status).to_contain_text("1 yes, 1 no", timeout=20_000)
        expect(cards.nth(2)).to_have_attribute("data-mark", "yes")
        marked = int(cards.nth(2).get_attribute("data-row"))
        row = cards.nth(5).get_attribute("data-row")
        cards.nth(5).locator("img").click()
        expect(status).to_contain_text(f"look-alikes of {row}: 1 to 24", timeout=20_000)
        expect(status).to_contain_text("1 yes, 1 no")
        expect(page.locator(".sky-facts")).to_contain_text(f"object {row}", timeout=20_000)
        expect(page.locator(".sky-facts a")).to_have_count(3)
        page.screenshot(path=SHOTS / "lab_click.png")

        # keyboard: back, right, y (which moves on), right, n; then enter; the notebook's own keys (y, enter)
        # do not interfere
        grid = page.locator(".sky-grid")
        grid.focus()
        page.keyboard.press("Backspace")
        expect(status).to_contain_text("look-alikes of 3: 1 to 24", timeout=20_000)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("y")
        expect(status).to_contain_text("2 yes, 1 no", timeout=20_000)
        page.keyboard.press("ArrowRight")  # over the one that is marked already
        page.keyboard.press("n")
        expect(status).to_contain_text("2 yes, 2 no", timeout=20_000)
        page.keyboard.press("ArrowDown")
        row = page.locator(".sky-focus").get_attribute("data-row")
        page.keyboard.press("Enter")
        expect(status).to_contain_text(f"look-alikes of {row}: 1 to 24", timeout=20_000)
        expect(page.locator(".jp-CodeCell")).to_have_count(1)

        # slider: brighter pictures
        page.get_by_text("pictures and distance").click()
        source = cards.nth(1).locator("img").get_attribute("src")
        handle = page.locator(".jupyter-widgets:has(> .widget-label:text-is('stretch')) .noUi-handle")
        handle.focus()
        for _ in range(5):
            handle.press("ArrowLeft")
        expect(cards.nth(1).locator("img")).not_to_have_attribute("src", source, timeout=20_000)

        # ranked by what was marked
        page.get_by_role("button", name="my yes and no").click()
        expect(status).to_contain_text("my yes and no: 1 to 24 of 240; 2 yes, 2 no", timeout=20_000)
        assert str(marked) in [cards.nth(i).get_attribute("data-row") for i in range(24)]
        page.screenshot(path=SHOTS / "lab_feedback.png")

        # lasso on the map, by its tool button
        canvas = page.locator(".jp-OutputArea canvas:visible").first
        canvas.scroll_into_view_if_needed(timeout=30_000)
        page.wait_for_timeout(1500)
        page.locator("button[title*='asso' i]").first.click()
        box = canvas.bounding_box()
        x, y, r = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["height"] / 5
        page.mouse.move(x + r, y)
        page.mouse.down()
        for i in range(1, 41):
            page.mouse.move(x + r * math.cos(i * math.tau / 40), y + r * math.sin(i * math.tau / 40))
            page.wait_for_timeout(15)
        page.mouse.up()
        expect(status).to_contain_text(re.compile(r"chosen on the map: 1 to \d+ of \d+;"), timeout=20_000)
        chosen = int(re.search(r"of (\d+);", status.inner_text())[1])
        assert 5 < chosen < 200
        page.wait_for_timeout(500)  # the lasso ended at its beginning: no click on the point there counts
        assert f"of {chosen};" in status.inner_text()
        page.screenshot(path=SHOTS / "lab_lasso.png")

        # export: the files hold what was marked, and the state is on disk
        page.get_by_role("button", name="export").click()
        expect(page.locator(".sky-files")).to_contain_text("2 objects written", timeout=20_000)
        expect(page.locator(".sky-error")).to_have_count(0)
    with open(folder / "run" / "selection.csv") as file:
        rows = [int(line["index"]) for line in csv.DictReader(file)]
    saved = dict(json.loads(marks.read_text())["marks"])
    assert rows == [row for row, mark in saved.items() if mark == "yes"]
    assert marked in rows
    assert Table.read(folder / "run" / "selection.vot")["index"].tolist() == rows
    assert Table.read(folder / "run" / "selection.fits")["index"].tolist() == rows
    assert (folder / "run" / "selection.reg").read_text().count("circle(") == 2


@pytest.mark.browser
def test_a_session_in_voila(folder):
    from playwright.sync_api import expect

    with (
        serving(folder, VOILA, "/voila/tree") as (url, token),
        chromium(viewport={"width": 1300, "height": 1300}) as page,
    ):
        page.goto(f"{url}/voila/render/browse.ipynb?token={token}", timeout=90_000)
        status, cards = page.locator(".sky-status"), page.locator(".sky-card")
        expect(status).to_contain_text("look-alikes of 3: 1 to 24 of 240", timeout=90_000)
        cards.nth(1).locator(".sky-yes").click()
        expect(status).to_contain_text("1 yes, 0 no", timeout=20_000)
        row = cards.nth(6).get_attribute("data-row")
        cards.nth(6).locator("img").click()
        expect(status).to_contain_text(f"look-alikes of {row}: 1 to 24", timeout=20_000)
        expect(status).to_contain_text("1 yes, 0 no")
        page.locator("canvas:visible").first.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=SHOTS / "voila.png")
    assert len(json.loads((folder / "run" / "browser.json").read_text())["marks"]) == 1
