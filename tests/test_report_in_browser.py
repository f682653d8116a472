"""The report in a real browser, where one is installed: it draws, fits its window, and nothing complains."""

from __future__ import annotations

from pathlib import Path

import pytest
import run_dirs
from browser import browse, measured, near, needs_browser, picture

from fedscale_local import reports

pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.write(run_dirs.usual(tmp_path_factory.mktemp("runs") / "usual"))


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
    assert measured(tmp_path, report, width) == [9, 0, []]


def test_the_policy_of_the_page_would_be_heard(report: Path, tmp_path: Path) -> None:
    """The silence asked for above means something: a script in the report is refused, with a complaint."""
    copy = tmp_path / "evil.html"
    copy.write_text(report.read_text(encoding="utf-8").replace("</body>", "<script>1</script></body>"))
    _, said = browse(tmp_path / "home", copy, f"--screenshot={tmp_path / 'evil.png'}")
    assert "Content Security Policy" in said
