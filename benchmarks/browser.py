"""The browser in a real JupyterLab in Chromium: milliseconds from a click to the grid redrawn, among 100,000 objects.

The clock starts when the kernel receives the click and stops when the window reports that it has drawn.
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
from skylib import CutoutFile, Embeddings, SimilarityBrowser
browser = SimilarityBrowser(Embeddings.load('embeddings.h5'), CutoutFile('cutouts.h5'), query=3, run_dir='run')
browser
"""
SAVE = "import json, pathlib; n = pathlib.Path('response.json').write_text(json.dumps(browser.response_ms))"


def prepare(folder: Path, n: int, width: int) -> None:
    sky = simulate_sky(folder / "sky", n_tiles=1, tile_size=256, n_objects=200)
    few = make_cutouts(find_tiles(sky.tiles), sky.catalogue, folder / "few.h5", size=32)
    rng = np.random.default_rng(0)
    which = rng.integers(0, len(few), n)
    write_cutouts(folder / "cutouts.h5", few.flux()[which], ra=few.ra[which], dec=few.dec[which], bands=few.bands)
    vectors = rng.standard_normal((n, width), dtype=np.float32)
    Embeddings(vectors, ra=few.ra[which], dec=few.dec[which]).save(folder / "embeddings.h5")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_code_cell(SHOW.strip()), new_code_cell(SAVE)]
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
    return json.loads((folder / "response.json").read_text())[1:]  # the first one made the index ready


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--n", type=int, default=100_000)
    given = options.parse_args()
    n, width, n_clicks = (2_000, 64, 3) if given.quick else (given.n, 768, 12)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), n, width)
        times = click_around(Path(folder), n_clicks)
    row: dict[str, Any] = {"median ms": float(np.median(times)), "slowest ms": max(times), "clicks": len(times), "n": n}
    report("From a click to the grid redrawn", {"new query": row}, json_file=given.json)


if __name__ == "__main__":
    main()
