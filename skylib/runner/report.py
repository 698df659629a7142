"""One self-contained page of results, made from the executed notebooks of a run."""

from __future__ import annotations

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

from skylib.files import replaced

MAX_LINES = 30  # of printed text; longer is for the notebook
MAX_ROWS = 12  # of a table that is not folded
_TAGS = """
a p br hr em strong b i u s del sub sup code pre blockquote ul ol li dl dt dd table caption thead tbody tfoot tr th td
h1 h2 h3 h4 h5 h6 div span kbd mark small details summary img
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5a6875; --line: #dce3ea; --accent: #1d4e79; --wash: #f5f7f9;
  --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde4eb; --soft: #9aa7b4; --line: #36414d; --accent: #8fc1ea; --wash: #1d252d; --page: #14191f; }
}
* { box-sizing: border-box; }
body {
  font: 1rem/1.6 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: break-word;
}
h1, h2, h3, h4 { color: var(--accent); line-height: 1.25; }
h1 { font-size: 2rem; margin: 0 0 .3rem; } h2 { margin: 1.5rem 0 .3rem; } h3 { margin: 2rem 0 .4rem; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: .9rem; margin: .2rem 0; }
.lead { font-size: 1.15rem; }
section { border-top: 1px solid var(--line); margin-top: 3rem; }
img { display: block; max-width: 100%; height: auto; margin: 1.2rem auto; background: #fff; border-radius: 4px; }
.output_html, .scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
pre { background: var(--wash); padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
summary { cursor: pointer; color: var(--accent); }
.output_error pre { border-left: 4px solid #b3261e; white-space: pre-wrap; }
"""


def write_report(run_dir: str | Path, *, title: str | None = None) -> Path:
    """Write ``index.html`` in a run folder: the prose, figures and tables of its notebooks, without their code.

    The page opens with ``summary.json``, where a notebook left one: ``{"text": …, "figure": path, "alt": …}``, a few
    sentences and a picture, whose path starts from the run folder. Then come the numbers of ``results.json``,
    ``{label: {"value": …, "interval": [low, high], "n": …, "note": …}}``, one table per task. Nothing is loaded from
    elsewhere.

    Parameters
    ----------
    run_dir : path
    title : str, optional
        By default the name of the run.

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
    run_dir = Path(run_dir)
    paths = sorted(run_dir.glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{run_dir}: no executed notebook to report on")
    books = {path: _read_notebook(path) for path in paths}
    rows = []
    for path, book in books.items():
        link = f'<a href="#{escape(path.stem)}">{escape(_title(book, path))}</a>'
        rows.append([link, _duration(book), f'<a href="{escape(path.name)}">{escape(path.name)}</a>'])
    title = title or f"Sky Embeddings: {run_dir.resolve().name}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _provenance(run_dir),
        _summary(run_dir),
        "<h2>Contents</h2>",
        _table(["step", "took", "executed notebook, with code"], rows),
        _numbers(run_dir),
        *(_section(path, book) for path, book in books.items()),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )
    with replaced(run_dir / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return run_dir / "index.html"


def _section(path: Path, book: Any) -> str:
    """Return a notebook as HTML, as nbconvert renders it, cleaned of scripts and of whatever loads from elsewhere."""
    from nbconvert import HTMLExporter

    title, caption = _title(book, path), ""
    cells: list[dict[str, Any]] = []
    for cell in book["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "provenance" in tags or any("papermill-error" in tag for tag in tags):
            continue  # the first is said on top; papermill's own markers repeat the error
        if cell["cell_type"] == "markdown":
            source = re.sub(r"^\s*# .+", "", cell["source"])  # the title stands above already
            caption = next(iter(re.findall(r"^[^#\s|].*?[.:?](?=\s|$)", _plain(source), re.MULTILINE)), caption)
            cell["source"] = source
        else:
            cell["outputs"] = [out for out in cell.get("outputs", []) if _is_shown(out, caption or title)]
        cells.append(cell)
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    book["cells"] = cells
    html, _ = exporter.from_notebook_node(book)
    given = {k: v for k, v in book["metadata"].get("papermill", {}).get("parameters", {}).items() if k != "run_dir"}
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    values = f'<p class="soft">with {escape(values)}</p>' if values else ""
    return f'<section id="{escape(path.stem)}"><h2>{escape(title)}</h2>{values}\n{_clean(html)}\n</section>'


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
    if "application/vnd.jupyter.widget-view+json" in data:
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


def _summary(run_dir: Path) -> str:
    """Return the sentences and the figure that a notebook left for the top of the page."""
    if not (path := run_dir / "summary.json").is_file():
        return ""
    summary = _read(path)
    html = f'<p class="lead">{escape(str(summary.get("text", "")))}</p>'
    figure = (run_dir / str(summary.get("figure", ""))).resolve()
    if figure.suffix == ".png" and figure.is_file() and figure.is_relative_to(run_dir.resolve()):
        content = base64.b64encode(figure.read_bytes()).decode()
        html += f'<img alt="{escape(str(summary.get("alt", "")))}" src="data:image/png;base64,{content}">'
    return html


def _numbers(run_dir: Path) -> str:
    """Return the numbers of ``results.json``, folded, a table for each task: what stands before the first comma."""
    if not (path := run_dir / "results.json").is_file():
        return ""
    tasks: dict[str, list[list[str]]] = {}
    for label, result in _read(path).items():
        task, _, name = label.partition(", ")
        interval = " to ".join(map(_number, result.get("interval") or []))
        cells = [name or task, _number(result["value"]), interval, result.get("n", ""), result.get("note", "")]
        tasks.setdefault(task, []).append([escape(str(cell)) for cell in cells])
    head = ["", "value", "95 % interval", "n", ""]
    tables = (
        f"<details><summary>{escape(task)}</summary>{_table(head, rows)}</details>" for task, rows in tasks.items()
    )
    return f"<h2>Results</h2>{''.join(tables)}"


def _provenance(run_dir: Path) -> str:
    path = run_dir / "environment.json"
    if not path.is_file():
        return ""
    e = _read(path)
    git = e.get("git") or {}
    facts = [
        str(e.get("time", ""))[:16].replace("T", " ") + " UTC",
        *(f"{name} {e['packages'][name]}" for name in ("skylib", "torch") if name in e.get("packages", {})),
        f"Python {e.get('python')}",
        f"{e.get('device')}, {e.get('cpus')} cores",
        f"revision {git['revision'][:10]}{', changed' if git.get('dirty') else ''}" if git else "",
    ]
    return f'<p class="soft">{escape(" · ".join(filter(None, facts)))}</p>'


def _title(book: dict[str, Any], path: Path) -> str:
    sources = (cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
    found = (re.search(r"^# (.+)$", source, re.MULTILINE) for source in sources)
    return next((re.sub(r"[*`]", "", match[1]).strip() for match in found if match), path.stem)


def _duration(book: dict[str, Any]) -> str:
    seconds = book["metadata"].get("papermill", {}).get("duration")
    if seconds is None:
        return "not run to its end"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{cell}</th>" for cell in head), *("".join(f"<td>{c}</td>" for c in row) for row in rows)]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _clean(html: str) -> str:
    """Keep the tags of prose, tables and embedded pictures; drop scripts, styles and whatever loads from elsewhere."""
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


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
