"""One self-contained page of results, made from the executed notebooks of a run."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_TAGS = """
a p br hr em strong b i u s del sub sup code pre blockquote ul ol li dl dt dd table caption thead tbody tfoot tr th td img
h1 h2 h3 h4 h5 h6 div span kbd mark small
"""
MAX_LINES = 30  # of printed text; longer is for the notebook

_STYLE = """
:root { color-scheme: light; --ink: #1c2530; --soft: #5a6875; --line: #dce3ea; --accent: #1d4e79; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body {
  font: 1rem/1.6 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: #fff; overflow-wrap: break-word;
  max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem;
}
h1, h2, h3, h4 { color: var(--accent); line-height: 1.25; }
h1 { font-size: 2rem; margin: 0 0 .3rem; } h2 { margin: 1.5rem 0 .3rem; } h3 { margin: 2rem 0 .4rem; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: .9rem; margin: .2rem 0; }
section { border-top: 1px solid var(--line); margin-top: 3rem; }
img { display: block; max-width: 100%; height: auto; margin: 1.2rem auto; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
pre { background: var(--wash); padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
code { font-size: .92em; }
.error { background: #fdeeec; border-left: 4px solid #b3261e; padding: .6rem 1rem; white-space: pre-wrap; }
.results { background: var(--wash); border-radius: 6px; padding: .1rem 1.2rem .4rem; margin-top: 1.5rem; }
"""


def write_report(run_dir: str | Path, *, title: str | None = None) -> Path:
    """Write ``index.html`` in a run folder: the prose, figures and tables of its notebooks, without their code.

    A table of headline numbers comes first where the notebooks left a ``results.json`` with
    ``{label: {"value": …, "interval": [low, high], "n": …, "note": …}}``. Nothing is loaded from elsewhere.

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
    books = {path: _read(path) for path in paths}
    rows = []
    for path, book in books.items():
        link = f'<a href="#{escape(path.stem)}">{escape(_title(book, path))}</a>'
        file = f'<a href="{escape(path.name)}">{escape(path.name)}</a>'
        rows.append([link, _duration(book), file])
    title = title or f"Sky Embeddings: {run_dir.resolve().name}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _provenance(run_dir),
        _headline(run_dir),
        "<h2>Steps</h2>",
        _table(["step", "took", "executed notebook, with code"], rows),
        *(_section(path, book) for path, book in books.items()),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{chr(10).join(filter(None, body))}\n</body></html>\n"
    )
    out, partial = run_dir / "index.html", run_dir / "index.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)
    return out


def _section(path: Path, book: dict[str, Any]) -> str:
    parts, skip_title, figures = [], True, 0
    for cell in book["cells"]:
        if any("papermill-error" in tag for tag in cell["metadata"].get("tags", [])):
            continue  # papermill's own markers; the error itself comes below
        if "provenance" in cell["metadata"].get("tags", []):
            continue  # stands at the top of the page
        if cell["cell_type"] == "markdown":
            source = _join(cell["source"])
            if skip_title and (heading := re.match(r"\s*# .+", source)):
                skip_title, source = False, source[heading.end() :]
            parts.append(_markdown(source))
        for output in cell.get("outputs", []):
            for content in _output(output):
                figures += content.startswith("<img")
                parts.append(content.replace('alt=""', f'alt="figure {figures} of {escape(path.stem)}"', 1))
    given = {k: v for k, v in book["metadata"].get("papermill", {}).get("parameters", {}).items() if k != "run_dir"}
    told = f'<p class="soft">with {escape(", ".join(f"{k}={v!r}" for k, v in given.items()))}</p>' if given else ""
    return f'<section id="{escape(path.stem)}"><h2>{escape(_title(book, path))}</h2>{told}\n{chr(10).join(parts)}\n</section>'


def _output(output: dict[str, Any]) -> Iterator[str]:
    """Yield an output of a cell as HTML: a picture, a table, short text or an error; nothing of the rest."""
    if output["output_type"] == "error":
        message = re.sub(r"\x1b\[[0-9;]*m", "", f"{output['ename']}: {output['evalue']}")
        yield f'<p class="error">{escape(message)}</p>'
    elif output["output_type"] == "stream":
        if output["name"] == "stdout":
            yield from _text(_join(output["text"]))
    else:
        data = output.get("data", {})
        if picture := next((kind for kind in ("image/png", "image/jpeg", "image/svg+xml") if kind in data), ""):
            content = _join(data[picture])
            if picture == "image/svg+xml":
                content = base64.b64encode(content.encode()).decode()
            yield f'<img alt="" src="data:{picture};base64,{re.sub(r"[^A-Za-z0-9+/=]", "", content)}">'
        elif "application/vnd.jupyter.widget-view+json" in data:
            return
        elif "<table" in (page := _join(data.get("text/html", ""))):
            yield f'<div class="scroll">{_clean(page)}</div>'
        elif "text/markdown" in data:
            yield _markdown(_join(data["text/markdown"]))
        else:
            yield from _text(_join(data.get("text/plain", "")))


def _text(text: str) -> Iterator[str]:
    """Yield text that is meant to be read; no progress bars, no names of objects, no long listings."""
    text = text.strip("\n")
    if text.strip() and "\r" not in text and len(text.splitlines()) <= MAX_LINES and not re.match(r"\[?<", text):
        yield f"<pre>{escape(text)}</pre>"


def _headline(run_dir: Path) -> str:
    path = run_dir / "results.json"
    if not path.is_file():
        return ""
    rows = []
    for label, result in _read(path).items():
        interval = result.get("interval") or []
        numbers = [
            _number(result["value"]),
            " to ".join(map(_number, interval)),
            result.get("n", ""),
            result.get("note", ""),
        ]
        rows.append([escape(label), f"<b>{escape(numbers[0])}</b>", *(escape(str(number)) for number in numbers[1:])])
    table = _table(["", "value", "95 % interval", "n", ""], rows)
    return f'<div class="results"><h2>Results</h2>{table}</div>'


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
    sources = (_join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
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


def _markdown(source: str) -> str:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    rendered = MarkdownWithMath(renderer=IPythonRenderer(escape=False, exclude_anchor_links=True)).render(source)
    return _clean(rendered)


def _join(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error


class _Cleaner(HTMLParser):
    """Keep the tags of prose and tables, one heading level down; drop scripts, styles and whatever loads from elsewhere."""

    TAGS = frozenset(_TAGS.split())
    EMPTY = frozenset({"br", "hr", "img"})
    ATTRIBUTES = frozenset({"href", "src", "alt", "title", "colspan", "rowspan", "style"})
    DROPPED = frozenset({"script", "style", "iframe", "object", "svg", "template"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.dropping = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.dropping or tag in self.DROPPED:
            self.dropping = self.dropping or tag
        elif tag in self.TAGS:
            kept = [f' {name}="{escape(value or "")}"' for name, value in attrs if self._is_kept(name, value or "")]
            if tag != "img" or any(attribute.startswith(" src=") for attribute in kept):
                self.parts.append(f"<{self._shifted(tag)}{''.join(kept)}>")

    def handle_endtag(self, tag: str) -> None:
        if self.dropping:
            self.dropping = "" if tag == self.dropping else self.dropping
        elif tag in self.TAGS - self.EMPTY:
            self.parts.append(f"</{self._shifted(tag)}>")

    def handle_data(self, data: str) -> None:
        if not self.dropping:
            self.parts.append(escape(data, quote=False))

    def _is_kept(self, name: str, value: str) -> bool:
        if name == "src":
            return value.startswith("data:image/")
        if name == "href":
            seen = re.sub(r"[\x00-\x20\x7f]", "", value)  # as a browser reads it: "java\nscript:" is a script
            return bool(re.match(r"(https?:|mailto:|#)|[\w./-]+$", seen, re.IGNORECASE))
        if name == "style":
            return bool(re.fullmatch(r"\s*text-align:\s*\w+;?\s*", value))
        return name in self.ATTRIBUTES

    @staticmethod
    def _shifted(tag: str) -> str:
        return f"h{min(int(tag[1]) + 1, 6)}" if re.fullmatch(r"h[1-6]", tag) else tag


def _clean(page: str) -> str:
    cleaner = _Cleaner()
    cleaner.feed(page)
    cleaner.close()
    return "".join(cleaner.parts)
