"""The whole chain as a user runs it: every notebook, headless, on the simulated sky."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.table import Table

from skylib import (
    CutoutFile,
    Embeddings,
    SearchIndex,
    build_model,
    embed,
    load_model,
    measure_sky_noise,
    run_notebook,
    simulate_sky,
)
from skylib.runner.report import write_report
from skylib.runner.runs import CHAIN

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
LESS = ("steps=60", "n_labels=[32]", "min_steps=8", "pools=['central', 'mean_central']")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The demo, run once from the command line, in a path with a space; with fewer steps and labels than by default."""
    run_dir = tmp_path_factory.mktemp("a demo") / "run"
    command = [sys.executable, "-m", "skylib", "demo", "--run-dir", str(run_dir), *LESS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "index.html" in done.stdout
    return run_dir


def results(run_dir):
    return json.loads((run_dir / "results.json").read_text())


def test_every_notebook_ran_and_left_its_products(run_dir):
    assert json.loads((run_dir / "status.json").read_text())["state"] == "done"
    for name in CHAIN:
        book = json.loads((run_dir / f"{name}.ipynb").read_text())
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code if "".join(cell["source"]).strip()), name
        assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    products = """cutouts.h5 config.json checkpoints/last.pt metrics.jsonl embeddings.h5 evaluation.csv summary.json
        missing_bands.csv label_efficiency.csv umap.npy candidates.csv environment.json"""
    assert [name for name in products.split() if not (run_dir / name).is_file()] == []
    data, embeddings = CutoutFile(run_dir / "cutouts.h5"), Embeddings.load(run_dir / "embeddings.h5")
    assert len(data) == len(embeddings) > 3000
    chosen = {name: embeddings.meta[name] for name in ("pool", "layer")}
    again = embed(load_model(run_dir), data, rows=np.arange(10), **chosen).vectors
    np.testing.assert_allclose(embeddings.vectors[:10], again, atol=0.02 * np.abs(again).max())


def test_pretraining_goes_on_from_the_shipped_weights(run_dir):
    """The loss begins far below that of random weights, and stays there."""
    metrics = pd.DataFrame(map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()))
    trained, flux = load_model(run_dir), torch.from_numpy(CutoutFile(run_dir / "cutouts.h5").flux(slice(0, 256)))
    untrained = build_model(trained.config)
    untrained.sky_sigma.copy_(trained.sky_sigma)
    with torch.no_grad():
        untrained_loss = float(untrained(flux).loss)
    loss = metrics["loss"].dropna()
    assert loss.max() < 0.8 * untrained_loss
    assert loss.iloc[-3:].mean() < loss.iloc[:3].mean() + 0.05
    assert metrics["validation_loss"].dropna().iloc[-1] < 0.8 * untrained_loss


@pytest.mark.parametrize(
    ("target", "metric", "floor"), [("class", "balanced_accuracy", "majority class"), ("z_spec", "r2", "mean")]
)
def test_the_embeddings_know_class_and_redshift(run_dir, target, metric, floor):
    """A linear probe beats a constant guess by more than both intervals."""
    found = results(run_dir)
    pretrained = found[f"{target}, pretrained, linear: {metric}"]
    assert pretrained["n"] > 150
    assert pretrained["interval"][0] > found[f"{target}, {floor}: {metric}"]["interval"][1] + 0.1


def test_the_summary_says_what_pretraining_brought(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    number = r"\d\.\d{3}"
    pattern = rf"Pretraining raises the balanced accuracy of classes from {number} with random weights to {number} \(\+"
    assert re.match(pattern, summary["text"]), summary["text"]
    assert (run_dir / summary["figure"]).is_file()
    assert summary["alt"]


def test_saved_embeddings_are_those_that_were_chosen(run_dir):
    """The layer and pooling with the lowest loss on validation."""
    meta = Embeddings.load(run_dir / "embeddings.h5").meta
    book = json.loads((run_dir / "02_evaluate.ipynb").read_text())
    text = "".join(t for cell in book["cells"] for o in cell.get("outputs", []) for t in o.get("text", []))
    assert f"pooling {meta['pool']!r}, encoder block {meta['layer'] + 1 or '(last)'}" in text


def margin(run_dir, name):
    """The lower end of the interval of what pretraining adds to random weights, on the same objects."""
    return results(run_dir)[name]["interval"][0]


def test_pretraining_taught_classes(run_dir):
    assert margin(run_dir, "class, pretrained minus random weights: balanced_accuracy") > 0


def test_pretraining_taught_redshift(run_dir):
    assert margin(run_dir, "z_spec, pretrained minus random weights: r2") > 0


def test_pretraining_helps_where_labels_are_few(run_dir):
    table = pd.read_csv(run_dir / "label_efficiency.csv")
    assert set(table["method"]) == {"supervised", "finetune", "attentive", "linear"}
    few = table[table["n_labels"] == table["n_labels"].min()].groupby("method")["balanced_accuracy"].mean()
    assert few.drop("supervised").max() > few["supervised"]


def test_search_finds_rare_objects_better_than_chance(run_dir):
    found = pd.read_csv(run_dir / "candidates.csv")
    assert (np.diff(found["score"]) >= 0).all()
    book = json.loads((run_dir / "05_similarity.ipynb").read_text())
    text = "".join(t for cell in book["cells"] for o in cell.get("outputs", []) for t in o.get("text", []))
    hits, others, chance = re.search(
        r"first 100: (\d+) of (\d+) other dwarf objects; by chance ([\d.]+)", text
    ).groups()
    assert int(others) >= 3
    assert int(hits) > 2 * float(chance)


def test_search_beats_pixels_and_colours(run_dir):
    """Recall of planted objects within the first 100, from 3 targets: embeddings beside pixels and measured colours."""
    data, embeddings = CutoutFile(run_dir / "cutouts.h5"), Embeddings.load(run_dir / "embeddings.h5")
    flux = np.nan_to_num(data.flux())
    sigma = measure_sky_noise(data.flux(slice(0, 500)))
    pixels = np.arcsinh(flux / sigma[:, None, None])[:, :, 4:-4, 4:-4].reshape(len(data), -1)
    aperture = np.arcsinh(flux[:, :, 8:-8, 8:-8].sum(axis=(2, 3)) / (16 * sigma))
    colours = np.column_stack([np.diff(aperture, axis=1), aperture[:, 2]])
    rare, recall = embeddings.column("rare"), {}
    for name, vectors in {"embeddings": embeddings.vectors, "pixels": pixels, "colours": colours}.items():
        index = SearchIndex(Embeddings(vectors, ra=data.ra, dec=data.dec, columns={"rare": rare}))
        for kind in ("dwarf", "arc"):
            members = np.flatnonzero(rare == kind)
            found = []
            for draw in range(10):
                targets = np.random.default_rng(draw).permutation(members)[:3]
                hits = (index.search(targets, k=100, metric="cosine")["rare"] == kind).sum()
                found.append(hits / (len(members) - 3))
            recall[name, kind] = np.mean(found)
    for kind in ("dwarf", "arc"):
        assert recall["embeddings", kind] > max(recall["pixels", kind], recall["colours", kind]) + 0.1, recall


def test_the_page_of_results_stands_alone(run_dir):
    page = (run_dir / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 15
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    for title in ("Cutouts", "Pretraining", "Evaluation", "Diagnostics", "Maps", "Label efficiency", "Similarity"):
        assert title in page


def test_a_catalogue_of_positions_alone_is_enough(tmp_path):
    """Sections that need a column which the catalogue lacks are skipped with a sentence; the rest runs."""
    sky = simulate_sky(tmp_path / "sky", n_tiles=2, tile_size=320, n_objects=400, seed=3)
    catalogue = Table.read(sky.catalogue)["ra", "dec"]
    catalogue.write(tmp_path / "positions.csv")
    given = {
        "00_make_cutouts": {"tiles": str(sky.tiles), "catalogue": str(tmp_path / "positions.csv")},
        "01_pretrain": {"steps": 4, "warmup_steps": 1, "batch_size": 16, "validate_every": 4, "split_cell": 32768},
        "02_evaluate": {"split_cell": 32768},
        "02b_diagnostics": {"split_cell": 32768},
        "03_umap": {},
        "04_label_efficiency": {"split_cell": 32768},
        "05_similarity": {},
    }
    printed = {}
    for name, values in given.items():
        book = json.loads(run_notebook(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "run", **values).read_text())
        outputs = [o for cell in book["cells"] for o in cell.get("outputs", [])]
        printed[name] = "".join(t for o in outputs for t in o.get("text", []))
    assert "has no column 'class': no classification." in printed["02_evaluate"]
    assert "has no column 'z_spec': no regression." in printed["02_evaluate"]
    assert "only observing conditions are tested" in printed["02b_diagnostics"]
    assert "there is nothing to learn" in printed["04_label_efficiency"]
    assert "there is nothing to count" in printed["05_similarity"]
    assert (tmp_path / "run" / "umap.npy").is_file()
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "The query object and its look-alikes" in page, "without labels the page opens with them"
    assert 'href="candidates.csv"' in page
    assert "mean completeness of the classes" not in page, "a caption without its figure"
