"""What every report is made of: the frame of a page, sections, tables, tiles, pictures, downloads."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from fedscale_local import plots
from fedscale_local.reports.style import CSS

# The page may load nothing and run nothing, whatever a name or a reason in it contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, version: str, source: str, sections: Iterable[str]) -> str:
    """A whole page; `source` says what it was written from."""
    version = escape(version)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="generator" content="fedscale-local {version}">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{"".join(sections)}
<footer>Written by fedscale-local {version} from {escape(source)}.
This file is complete in itself.</footer>
</main>
</body>
</html>
"""


def tile(name: str, value: str, below: str, main: bool = False) -> str:
    """One number with its name above and words below."""
    inside = f"<span>{escape(name)}</span><strong>{escape(value)}</strong><span>{escape(below)}</span>"
    return f'<div class="tile{" main" if main else ""}">{inside}</div>'


def picture(name: str, caption: str, figure: Figure | None, wide: bool = False) -> str:
    """A figure inside the page, "" for none."""
    if figure is None:
        return ""
    drawn = plots.svg(figure, name, caption)
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{escape(caption)}</figcaption><div>{drawn}</div></figure>\n"


def line_key(names: Sequence[str]) -> str:
    """Which line is which of these, once for all pictures beside it."""
    lines = ""
    for (colour, dash), name in zip(plots.PAINT, names, strict=False):
        stroke = f'stroke="var(--{colour})" stroke-width="2.6" stroke-dasharray="{dash}"'
        lines += f'<span><svg viewBox="0 0 44 14" aria-hidden="true"><path d="M0 7H44" {stroke}/></svg>'
        lines += f"{escape(name)}</span>"
    return f'<div class="card key">{lines}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table with these cells, as text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def named(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    body = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    return f'<table class="facts words">{body}</table>'


def fold(title: str, inside: str) -> str:
    """A part of the page that opens on a click."""
    return f'<details class="card"><summary>{escape(title)}</summary>{inside}</details>\n'


def section(title: str, inside: str) -> str:
    """A part of the page under a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>\n"


def flat(mapping: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value as text) of a nested mapping, without what is empty."""
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV: empty where there is no value; no cell begins like a formula."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def download(name: str, text: str, words: str = "Download as CSV") -> str:
    """A link that saves this CSV text as a file of this name."""
    uri = "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode("utf-8")).decode("ascii")
    return f'<a class="download" download="{escape(name)}" href="{uri}">{escape(words)}</a>'
