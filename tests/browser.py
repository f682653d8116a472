"""A page in a real browser, where one is installed: what is drawn, what sticks out, what the console says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: the report is not looked at in a browser"
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync --enable-logging=stderr "
    "--virtual-time-budget=2000"
)


def browse(home: Path, page: Path, *arguments: str) -> tuple[str, str]:
    """(stdout, what the console of the page said)."""
    command = [str(BROWSER), *QUIET.split(), f"--user-data-dir={home}", *arguments, page.as_uri()]
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


def measured(tmp_path: Path, page: Path, width: int) -> list[Any]:
    """[how many pictures the page has, [what sticks out, overlaps or is empty in it]].

    Measured in the page itself, by a script that is added to a copy of it.
    """
    script = """<script>
    const box = e => e.getBoundingClientRect(), found = [];
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide > 0) found.push('page is wider than its window by ' + wide);
    const pictures = [...document.querySelectorAll('figure svg')];
    for (const svg of pictures) {
      const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()), outer = box(svg);
      if (outer.width < 200 || outer.height < 80) found.push('small picture');
      // What shows data has a name of ours; matplotlib numbers everything else.
      const named = [...svg.querySelectorAll('g[id], image[id]')].filter(e => !/_\\d+$/.test(e.id));
      const drawn = named.filter(e => box(e).width > outer.width / 20);
      if (!drawn.length) found.push('empty picture: ' + svg.getAttribute('aria-label'));
      texts.forEach((a, i) => {
        const p = box(a), words = a.textContent;
        if (p.left < outer.left - 1 || p.right > outer.right + 1 || p.top < outer.top - 1 ||
            p.bottom > outer.bottom + 1) found.push('cut off: ' + words);
        for (const b of texts.slice(i + 1)) {
          const q = box(b), x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
          const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
          if (x > 1 && y > 3) found.push('overlap: ' + words + ' / ' + b.textContent);
        }
      });
    }
    const out = document.createElement('pre');
    out.id = 'found'; out.textContent = JSON.stringify([pictures.length, found]);
    document.body.append(out);
    </script>"""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", script + "</body>")
    copy = tmp_path / "measured.html"
    copy.write_text(text, encoding="utf-8")
    dom, said = browse(tmp_path / "home", copy, "--dump-dom", f"--window-size={width},2000")
    assert not said, said
    measured = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert measured is not None
    return json.loads(measured.group(1).replace("&lt;", "<").replace("&gt;", ">"))  # type: ignore[no-any-return]
