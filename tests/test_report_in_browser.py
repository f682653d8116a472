"""The report in a real browser, where one is installed: it draws, fits its window, and nothing complains."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import run_dirs
from PIL import Image

from fedscale_local import reports

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.write(run_dirs.usual(tmp_path_factory.mktemp("runs") / "usual"))


def near(pixels: np.ndarray, colour: str) -> int:
    """How many pixels have this colour, up to what smoothing of edges does."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(-1) <= 12).sum())


def test_light_and_dark_are_drawn_in_their_own_colours(report: Path, tmp_path: Path) -> None:
    light = picture(tmp_path, report, "light", 1200, "--blink-settings=preferredColorScheme=1")
    dark = picture(tmp_path, report, "dark", 1200, "--blink-settings=preferredColorScheme=0")
    assert light.mean() > 200 and dark.mean() < 60
    for pixels, colours in (
        (light, ("#1a66b8", "#c4570a", "#0b7d62")),
        (dark, ("#6cb0f5", "#f39a54", "#45c7a3")),
    ):
        for colour in colours:
            assert near(pixels, colour) > 300, colour  # curves, not only specks of text


@pytest.mark.parametrize("width", [500, 1200])
def test_nothing_sticks_out_or_overlaps(report: Path, tmp_path: Path, width: int) -> None:
    """Measured in the page itself, by a script that this test adds to a copy of it."""
    script = """<script>
    const box = e => e.getBoundingClientRect(), found = [];
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide > 0) found.push('page is wider than its window by ' + wide);
    for (const svg of document.querySelectorAll('svg')) {
      const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()), outer = box(svg);
      if (outer.width < 200 || outer.height < 80) found.push('small picture');
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
    out.id = 'found'; out.textContent = JSON.stringify([document.querySelectorAll('svg').length, found]);
    document.body.append(out);
    </script>"""
    text = report.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", script + "</body>")
    copy = tmp_path / "measured.html"
    copy.write_text(text, encoding="utf-8")
    dom, said = browse(tmp_path / "home", copy, "--dump-dom", f"--window-size={width},2000")
    assert not said, said
    measured = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert measured is not None
    pictures, found = json.loads(measured.group(1).replace("&lt;", "<").replace("&gt;", ">"))
    assert pictures == 9 and found == []


def test_the_policy_of_the_page_would_be_heard(report: Path, tmp_path: Path) -> None:
    """The silence asked for above means something: a script in the report is refused, with a complaint."""
    copy = tmp_path / "evil.html"
    copy.write_text(report.read_text(encoding="utf-8").replace("</body>", "<script>1</script></body>"))
    _, said = browse(tmp_path / "home", copy, f"--screenshot={tmp_path / 'evil.png'}")
    assert "Content Security Policy" in said
