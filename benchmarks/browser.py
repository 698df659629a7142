"""The browser in a real JupyterLab in Chromium: milliseconds from a click to the grid redrawn, among 100,000 objects.

The clock starts when the kernel receives the click and stops when the window reports that it has drawn. "opened" is from
the start of the cell that reads the files to the first grid drawn.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from harness import parser, report
from nbformat.v4 import new_code_cell, new_notebook

from skylib import Embeddings, find_tiles, make_cutouts, simulate_sky, write_cutouts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browse"))
from test_browser import LAB, chromium, serving

SHOW = """
import time
began = time.perf_counter()
from skylib import CutoutFile, Embeddings, SimilarityBrowser
browser = SimilarityBrowser(Embeddings.load('embeddings.h5'), CutoutFile('cutouts.h5'), query=3, run_dir='run')
made = time.perf_counter() - began
browser
"""
SAVE = """
import json, pathlib
first, *later = browser.response_ms  # the first made the index ready
n = pathlib.Path('response.json').write_text(json.dumps([1e3 * made + first, *later]))
"""
LARGE = 200_000  # objects, beyond which cutouts are of 8 pixels, to fit in memory and on the disk


def prepare(folder: Path, n: int, width: int) -> None:
    sky = simulate_sky(folder / "sky", n_tiles=1, tile_size=256, n_objects=200)
    few = make_cutouts(find_tiles(sky.tiles), sky.catalogue, folder / "few.h5", size=32 if n <= LARGE else 8)
    rng = np.random.default_rng(0)
    flux, (ra, dec) = few.flux()[rng.integers(0, len(few), n)], rng.uniform(size=(2, n)) * 10
    write_cutouts(folder / "cutouts.h5", flux, ra=ra, dec=dec, bands=few.bands)
    vectors = rng.standard_normal((n, width), dtype=np.float32)
    Embeddings(vectors, ra=ra, dec=dec).save(folder / "embeddings.h5")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_code_cell(SHOW.strip()), new_code_cell(SAVE.strip())]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "browse.ipynb")


def click_around(folder: Path, n_clicks: int) -> list[float]:
    from playwright.sync_api import expect

    with serving(folder, LAB, "/api") as (url, token), chromium(viewport={"width": 1400, "height": 1400}) as page:
        page.goto(f"{url}/lab/tree/browse.ipynb?reset&token={token}")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        status, cards = page.locator(".sky-status"), page.locator(".sky-card")
        expect(status).to_contain_text("look-alikes of 3: 1 to 24", timeout=240_000)
        for number in range(n_clicks):
            card = cards.nth(2 + number % 20)
            row = card.get_attribute("data-row")
            card.locator("img").click()
            expect(status).to_contain_text(f"look-alikes of {row}: 1 to 24", timeout=60_000)
            page.wait_for_timeout(300)
        page.locator(".jp-CodeCell").nth(1).click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(3000)
    return json.loads((folder / "response.json").read_text())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--n", type=int, default=100_000)
    options.add_argument("--width", type=int, default=768)
    given = options.parse_args()
    n, width, n_clicks = (2_000, 64, 3) if given.quick else (given.n, given.width, 12)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), n, width)
        opened, *times = click_around(Path(folder), n_clicks)
    row: dict[str, Any] = {"median ms": float(np.median(times)), "slowest ms": max(times), "clicks": len(times), "n": n}
    row |= {"width": width, "opened ms": opened}
    report("From a click to the grid redrawn", {"new query": row}, json_file=given.json)


if __name__ == "__main__":
    main()
