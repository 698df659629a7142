"""One self-contained page of results, made from the executed notebooks of a run."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

from skylib.files import read_json, replaced

log = logging.getLogger(__name__)

PAGE = "index.html"  # of a run folder
MAX_LINES = 30  # of printed text; longer is for the notebook
MAX_ROWS = 12  # of a table that is not folded
_TAGS = """
a p br hr em strong b i u s del sub sup code pre blockquote ul ol li dl dt dd table caption thead tbody tfoot tr th td
h1 h2 h3 h4 h5 h6 div span kbd mark small details summary img
"""


def write_report(run_dir: str | Path) -> Path:
    """Write ``index.html`` in a run folder: the prose, figures and tables of its notebooks, without their code.

    The page opens with ``summary.json``, where a notebook left one: ``{"text": …, "figure": path, "alt": …}``, a few
    sentences and a picture, whose path starts from the run folder. Then come the numbers of ``results.json``,
    ``{label: {"value": …, "interval": [low, high], "n": …, "note": …}}``, one table per task. Nothing is loaded from
    elsewhere.

    Parameters
    ----------
    run_dir : path

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    FileNotFoundError
        If the folder holds no executed notebook.
    ValueError
        If a notebook or a JSON file there cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader

    run_dir = Path(run_dir)
    if not (paths := sorted(run_dir.glob("*.ipynb"))):
        raise FileNotFoundError(f"{run_dir}: no executed notebook to report on")
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("report.html").render(
        title=f"Sky Embeddings: {run_dir.resolve().name}",
        summary=_summary(run_dir),
        tasks=_numbers(run_dir),
        notebooks=[_section(path) for path in paths],
        lists=[name for name in ("candidates.csv", "odd.csv") if (run_dir / name).is_file()],
    )
    with replaced(run_dir / PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    return run_dir / PAGE


def renew_report(run_dir: str | Path) -> None:
    """Write the page of results again, if the run folder has one."""
    if (Path(run_dir) / PAGE).is_file():
        try:
            log.info("page of results: %s", write_report(run_dir))
        except (OSError, ValueError) as error:  # another notebook of the folder may be at work
            log.warning("%s was not written again: %s", PAGE, error)


def _section(path: Path) -> dict[str, str]:
    """Return a notebook as HTML, as nbconvert renders it, without scripts and anything that the page would load."""
    from nbconvert import HTMLExporter

    book = _read_notebook(path)
    prose = "\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
    title = heading = re.sub(r"[*`]", "", next(iter(re.findall(r"^# (.+)$", prose, re.MULTILINE)), path.stem)).strip()
    cells: list[dict[str, Any]] = []
    outputs: list[Any] | None = None  # since the last text; None: there was no code
    for number, cell in enumerate(book["cells"]):
        tags = cell["metadata"].get("tags", [])
        if any("papermill-error" in tag for tag in tags):
            continue  # papermill's own markers repeat the error
        if "provenance" in tags:
            heading, _, table = cell["source"].partition("\n")
            cell["source"] = f"<details><summary>{_plain(heading)}</summary>\n\n{table}\n\n</details>"
        elif cell["cell_type"] == "markdown":
            source = re.sub(r"^\s*# .+", "", cell["source"])  # the title stands above already
            if outputs is not None and all(out["output_type"] == "stream" for out in outputs):
                source = re.sub(r"^\s*\*(?!\*).+", "", source)  # the caption of a figure that was skipped
            outputs = None
            heading = next(iter(re.findall(r"^#+ (?:\d+\. )?(.+)$", _plain(source), re.MULTILINE)[-1:]), heading)
            cell["source"] = source
        else:
            below = next((c["source"] for c in book["cells"][number:] if c["cell_type"] == "markdown"), "")
            caption = re.match(r"\s*\*(?!\*).+", below)  # in italics, below the figure
            alt = shorten(f"{heading}. {_plain(caption[0]) if caption else ''}", 250, placeholder=" …")
            cell["outputs"] = [out for out in cell.get("outputs", []) if _is_shown(out, alt)]
            outputs = [*(outputs or []), *cell["outputs"]]
        cells.append(cell)
    seconds = book["metadata"].get("papermill", {}).get("duration")
    took = "not run to its end"
    if seconds is not None:
        took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    book["cells"] = cells
    hidden = {"exclude_input": True, "exclude_output_prompt": True, "exclude_anchor_links": True}
    html, _ = HTMLExporter(template_name="basic", **hidden).from_notebook_node(book)
    return {"name": path.stem, "title": title, "took": took, "html": _clean(html)}


def _plain(markdown: str) -> str:
    """Return prose without its marks, links, pictures and HTML."""
    without = re.sub(r"<(script|style)\b.*?</\1>|</?\w[^>]*>|!\[.*?\]\(.*?\)", "", markdown, flags=re.DOTALL)
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", re.sub(r"[*`]", "", without))


def _is_shown(output: dict[str, Any], caption: str) -> bool:
    """Return whether an output is meant to be read; give pictures an alternative text, and fold long tables."""
    if output["output_type"] == "stream":
        return output["name"] == "stdout" and _is_short(output["text"])
    if output["output_type"] == "error":
        output["traceback"] = [f"{output['ename']}: {output['evalue']}"]
        return True
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data or output["metadata"].get("live"):
        return False
    for kind in {"image/png", "image/jpeg"} & data.keys():
        output["metadata"] = {kind: {"alt": caption}}
        return True
    if (n_rows := (table := data.get("text/html", "")).count("<tr") - 1) > MAX_ROWS:
        data["text/html"] = f"<details><summary>Table of {n_rows} rows</summary>{table}</details>"
    return bool(table) or "text/markdown" in data or _is_short(data.get("text/plain", ""))


def _is_short(text: str) -> bool:
    """Return whether text is meant to be read: no progress bar, no name of an object, no long listing."""
    lines = text.strip().splitlines()
    return 0 < len(lines) <= MAX_LINES and "\r" not in text and not re.match(r"\[?<", text.strip())


def _summary(run_dir: Path) -> dict[str, str]:
    """Return the sentences and the figure that a notebook left for the top of the page."""
    if not (path := run_dir / "summary.json").is_file():
        return {}
    summary = {name: str(value) for name, value in read_json(path).items()}
    figure = (run_dir / summary.get("figure", "")).resolve()
    if figure.suffix == ".png" and figure.is_file() and figure.is_relative_to(run_dir.resolve()):
        summary["png"] = base64.b64encode(figure.read_bytes()).decode()
    return summary


def _numbers(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers of ``results.json`` by task: what stands before the first comma."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    if (path := run_dir / "results.json").is_file():
        for label, result in read_json(path).items():
            task, _, name = label.partition(", ")
            tasks.setdefault(task, []).append({"interval": [], "n": "", "note": "", **result, "name": name or task})
    return tasks


def _clean(html: str) -> str:
    """Keep the tags of prose, tables and embedded pictures; drop scripts, styles and all that the page would load."""
    import bleach

    html = re.sub(r"<(script|style|iframe|object|svg|template)\b.*?</\1\s*>", "", html, flags=re.DOTALL | re.IGNORECASE)
    protocols = {"http", "https", "mailto", "data"}
    html = bleach.clean(html, tags=set(_TAGS.split()), attributes=_is_kept, protocols=protocols, strip=True)
    return re.sub(r"<img(?![^>]* src=)[^>]*>", "", html)


def _is_kept(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return not value.strip().lower().startswith("data:")
    return name in ("alt", "title", "class", "colspan", "rowspan")


def _read_notebook(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises its own kinds, and AttributeError or KeyError for odd contents
        raise ValueError(f"{path}: cannot be read as a notebook: {type(error).__name__}: {error}") from error
