"""How every figure looks, and how one becomes SVG inside a page or a picture in a file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Every entry is a colour of its own, since the page finds them by their value. Blue and orange differ for
# every kind of colour vision; lines differ in dash as well.
PALETTE = {
    "ink": "#20242b",
    "muted": "#626a76",
    "grid": "#dfe3e8",
    "paper": "#fffffe",
    "blue": "#1a66b8",
    "orange": "#c4570a",
    "green": "#0b7d62",
    "purple": "#8a45a8",
    "red": "#b8243f",
    "olive": "#767204",
    "cyan": "#0e86a5",
    "brown": "#80583a",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedscale-local",
    "text.parse_math": False,  # a class may be called "$"
    "path.simplify": False,  # every round stays a point
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 10.5,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "round",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under STYLE, whatever the user's own matplotlib settings are."""

    def wrapper(*arguments: Any, **options: Any) -> Figure:
        with matplotlib.rc_context(), np.errstate(over="ignore"):  # axes may end at 1e300
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*arguments, **options)

    wrapper.__doc__, wrapper.__name__ = draw.__doc__, draw.__name__
    return wrapper


def canvas(width: float = 5.4, height: float = 3.1) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for a page: deterministic, scaled by the page, ids prefixed with `name`.

    Colours of PALETTE become CSS variables of the same name, text takes the font of the page, `description`
    is read aloud in place of the picture.
    """
    text = _rendered(figure, "svg").decode("utf-8")
    text = text[text.index("<svg") :].rstrip()
    head, body = text.split(">", 1)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head).groups()  # type: ignore[union-attr]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}"'
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, count=1, flags=re.S)
    body = re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r"font-family:[^;\"]*", "font-family: inherit", body)
    body = re.sub(r"(font: [^'\";]*?px) [^\";]*", r"\1 inherit", body)
    for colour, value in PALETTE.items():
        body = body.replace(value, f"var(--{colour}, {value})")
    return f"{head}>{body}"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a picture on white paper (.svg, .png or .pdf, by the name); returns the path."""
    figure.set_facecolor("white")
    path.write_bytes(_rendered(figure, path.suffix.lstrip(".") or "png"))
    return path


def _rendered(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    dated = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",), "png": ("Software",)}
    metadata = dict.fromkeys(dated.get(kind, ()))
    with matplotlib.rc_context(), np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page has fonts of its own
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure.savefig(stream, format=kind, metadata=metadata or None, dpi=150)
    return stream.getvalue()
