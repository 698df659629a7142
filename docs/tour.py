"""Record the tour of the browser in ``docs/tour``: a real JupyterLab in Chromium, driven through one question.

``python docs/tour.py papermill_runs/demo`` writes one picture a step, in a light and in a dark theme. The run is not changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browse"))
from test_browser import LAB, chromium, serving  # noqa: E402

SHOW = """
from skylib import CutoutFile, EmbeddingMap, Embeddings, SimilarityBrowser
embeddings, cutouts = Embeddings.load('embeddings.h5'), CutoutFile('cutouts.h5')
row = int((embeddings.column('rare') == 'arc').argmax())
xy = EmbeddingMap.load('umap_map.npz').transform(embeddings)
browser = SimilarityBrowser(embeddings, cutouts, query=row, xy=xy, run_dir='browser')
browser
"""


def record(folder: Path, out: Path) -> None:
    """Walk through one question, and keep what the window shows at each step."""
    from playwright.sync_api import expect

    with serving(folder, LAB, "/api") as (url, token), chromium(viewport={"width": 1500, "height": 1350}) as page:

        def shot(name: str) -> None:
            page.wait_for_timeout(2500)
            page.locator(".sky-browser").first.screenshot(path=out / f"{name}.png")
            picture = Image.open(out / f"{name}.png").convert("RGB")
            picture.quantize(128).save(out / f"{name}.png", optimize=True)

        page.goto(f"{url}/lab/tree/browse.ipynb?reset&token={token}", timeout=300_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=300_000)
        page.keyboard.press("Control+b")  # no list of files
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        status, cards = page.locator(".sky-status"), page.locator(".sky-card")
        expect(status).to_contain_text("look-alikes of", timeout=300_000)
        expect(cards).to_have_count(25, timeout=300_000)
        page.locator(".sky-browser").first.scroll_into_view_if_needed()
        shot("1_question")
        for number in (1, 2, 4):
            cards.nth(number).locator(".sky-yes").click()
        for number in (3, 5):
            cards.nth(number).locator(".sky-no").click()
        expect(status).to_contain_text("3 yes, 2 no", timeout=60_000)
        shot("2_marks")
        page.get_by_role("button", name="my yes and no").click()
        expect(status).to_contain_text("my yes and no: 1 to 24", timeout=60_000)
        shot("3_learnt")
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        page.locator(".lm-Menu-itemLabel:text-is('Theme')").click()
        page.locator(".lm-Menu-itemLabel:text-is('JupyterLab Dark')").click()
        page.wait_for_timeout(4000)
        field = page.get_by_placeholder("mag_i < 22")
        field.fill("class = galaxy; mag_i < 22")
        field.press("Enter")
        page.get_by_role("button", name="odd ones").click()
        expect(status).to_contain_text("odd ones: 1 to", timeout=120_000)
        shot("4_odd_dark")
        page.locator(".sky-grid").focus()
        page.keyboard.press("?")
        shot("5_keys_dark")
        labels: Any = page.evaluate(
            "[...document.querySelectorAll('.sky-browser [aria-label]')].map(e => e.tagName + ': ' + e.ariaLabel)"
        )
        print(*sorted(set(labels))[:60], sep="\n")


def main() -> None:
    """Record the tour of one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run of the demo, with embeddings.h5, cutouts.h5 and umap_map.npz")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tour")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("embeddings.h5", "cutouts.h5", "umap_map.npz"):
            shutil.copy(given.run_dir / file, folder)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(new_notebook(cells=[new_code_cell(SHOW.strip())], metadata=kernel), folder / "browse.ipynb")
        record(folder, given.out)


if __name__ == "__main__":
    main()
