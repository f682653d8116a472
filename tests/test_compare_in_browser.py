"""The page of a comparison in a real browser, where one is installed: curves, bands, dots, on a screen and on paper."""

from __future__ import annotations

import re
from pathlib import Path

import compared
import numpy as np
import pytest
from browser import browse, measured, near, needs_browser, picture
from rich.console import Console

from fedscale_local import reports

pytestmark = needs_browser
PICTURES = 8 + 2 + 1 + 3 + 1
"""Accuracy and loss on four axes each; every seed and the differences; clients; three of D; the partition."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, draw = tmp_path_factory.mktemp("compared"), np.random.default_rng(4)
    finals = {
        name: middle + 0.01 * draw.normal(size=6)
        for name, middle in (("fedavg", 0.79), ("savic", 0.83), ("a_strategy_with_quite_a_long_name", 0.8))
    }
    compared.methods(place / "runs", finals, num_rounds=30, tau=8.0)
    with (place / "said.txt").open("w") as said:
        return reports.compare([place / "runs"], place / "page.html", console=Console(file=said))


def test_light_and_dark_are_drawn_in_their_own_colours(page: Path, tmp_path: Path) -> None:
    light = picture(tmp_path, page, "light", 1200, "--blink-settings=preferredColorScheme=1")
    dark = picture(tmp_path, page, "dark", 1200, "--blink-settings=preferredColorScheme=0")
    assert light.mean() > 200 and dark.mean() < 60
    for pixels, colours in (
        (light, ("#1a66b8", "#c4570a", "#0b7d62")),
        (dark, ("#6cb0f5", "#f39a54", "#45c7a3")),
    ):
        for colour in colours:
            assert near(pixels, colour) > 300, colour


@pytest.mark.parametrize("width", [500, 1200])
def test_nothing_sticks_out_overlaps_or_is_empty(page: Path, tmp_path: Path, width: int) -> None:
    assert measured(tmp_path, page, width) == [PICTURES, []]


def test_an_empty_picture_would_be_found(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bare.html"
    bare = re.sub(
        r'<g id="clients-(mean|band)-\d+">.*?</g>', "", page.read_text(encoding="utf-8"), flags=re.S
    )
    copy.write_text(bare, encoding="utf-8")
    assert measured(tmp_path, copy, 1200)[1] == ["empty picture: Training accuracy from client to client"]


def test_it_prints_on_paper_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    _, said = browse(
        tmp_path / "home", page, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer"
    )
    assert not said and (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
