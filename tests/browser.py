"""A page in a real browser, where one is installed: what is drawn, what sticks out, what the console says."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MAY_BE_MISSING = (
    os.environ.get("CI") != "true"
)  # where all is checked, a browser that is not there is a failure
needs_browser = pytest.mark.skipif(
    BROWSER is None and MAY_BE_MISSING, reason="no Chromium: the report is not looked at in a browser"
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync --enable-logging=stderr "
    "--virtual-time-budget=2000"
)


def browse(home: Path, page: Path, *arguments: str) -> tuple[str, str]:
    """(stdout, what the console of the page said)."""
    assert BROWSER is not None, "no Chromium on the PATH, and CI=true asks for one: install chromium"
    command = [BROWSER, *QUIET.split(), f"--user-data-dir={home}", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def picture(tmp_path: Path, page: Path, name: str, width: int, *arguments: str) -> np.ndarray:
    """A screenshot (height, width, 3), taken only if the console stays silent."""
    shot = tmp_path / f"{name}.png"
    size = f"--window-size={width},2400"
    _, said = browse(tmp_path / f"home-{name}", page, f"--screenshot={shot}", size, *arguments)
    assert not said, said
    return np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: str) -> int:
    """How many pixels have this colour, up to what smoothing of edges does."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(-1) <= 12).sum())


LOOK = r"""
const box = e => e.getBoundingClientRect(), found = [];
const frame = document.querySelector('iframe'), view = frame.contentWindow, page = frame.contentDocument;
const all = (where, what) => [...where.querySelectorAll(what)];
const wide = page.documentElement.scrollWidth - view.innerWidth;
if (wide > 0) found.push('page is wider than its window by ' + wide);
const cross = (p, q, x, y) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > x &&
  Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > y;
const pictures = all(page, 'figure svg');
for (const svg of pictures) {
  const texts = all(svg, 'text').filter(t => t.textContent.trim()), outer = box(svg);
  if (outer.width < 200 || outer.height < 80) found.push('small picture');
  // What shows data has a name of ours; matplotlib numbers everything else.
  const named = all(svg, 'g[id], image[id]').filter(e => !/_\d+$/.test(e.id));
  const drawn = named.map(box).filter(b => b.width);
  const [left, right] = [Math.min(...drawn.map(b => b.left)), Math.max(...drawn.map(b => b.right))];
  if (!(right - left > outer.width / 20)) found.push('empty picture: ' + svg.getAttribute('aria-label'));
  texts.forEach((a, i) => {
    const p = box(a), words = a.textContent;
    if (p.left < outer.left - 1 || p.right > outer.right + 1 || p.top < outer.top - 1 ||
        p.bottom > outer.bottom + 1) found.push('cut off: ' + words);
    for (const b of texts.slice(i + 1))
      if (cross(p, box(b), 1, 3)) found.push('overlap: ' + words + ' / ' + b.textContent);
  });
}
// A shaded cell: its number can be read on its shade, which is no other's paper but that of the worst.
const pixel = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = colour => {
  pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
  return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const maps = all(page, 'table.heat');
for (const map of maps) {
  const cells = all(map, 'td[style]'), shades = new Set();
  for (const cell of cells) {
    const style = view.getComputedStyle(cell), [ink, shade] = [style.color, style.backgroundColor].map(rgb);
    const [low, high] = [light(ink), light(shade)].sort((a, b) => a - b);
    if ((high + .05) / (low + .05) < 4.5) found.push('hard to read: ' + cell.textContent + ' on ' + shade);
    if (cell.scrollWidth > cell.clientWidth + 1) found.push('cut off: ' + cell.textContent);
    shades.add(shade.join());
  }
  const levels = new Set(cells.map(cell => cell.style.getPropertyValue('--level')));
  if (shades.size < 2 && levels.size > 1) found.push('a map without shades');
}
// Words and cards beside each other, and words that are not broken.
const blocks = all(page, 'h1, h2, p, figure, .card, .tile, .download').filter(
  e => !e.parentElement.closest('details:not([open])'));
blocks.forEach((a, i) => {
  for (const b of blocks.slice(i + 1))
    if (!a.contains(b) && cross(box(a), box(b), 1, 1)) found.push('overlap: ' + a.textContent + ' / ' + b.textContent);
});
for (const e of all(page, '.tile strong'))
  if (e.scrollWidth > e.clientWidth + 1) found.push('cut off: ' + e.textContent);
const out = document.createElement('pre');
out.id = 'found'; out.textContent = JSON.stringify([pictures.length, maps.length, found]);
document.body.append(out);
"""


def measured(tmp_path: Path, page: Path, width: int, *arguments: str) -> list[Any]:
    """[how many pictures, how many heat maps the page has, [what sticks out, overlaps, is empty or hard to read]].

    The page is looked at in a frame of this width, since a window of Chromium is not as narrow as a phone.
    """
    inside = escape(page.read_text(encoding="utf-8"))
    style = f"border: 0; width: {width}px; height: 2000px"
    frame = f'<iframe style="{style}" srcdoc="{inside}"></iframe>'
    around = tmp_path / "measured.html"
    script = f"<script>addEventListener('load', () => {{ {LOOK} }})</script>"
    around.write_text(f'<!doctype html><meta charset="utf-8">{frame}{script}', encoding="utf-8")
    dom, said = browse(
        tmp_path / "home", around, "--dump-dom", f"--window-size={width + 100},2000", *arguments
    )
    assert not said, said
    measured = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert measured is not None
    return json.loads(unescape(measured.group(1)))  # type: ignore[no-any-return]
