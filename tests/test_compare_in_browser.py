"""The page of a comparison in a real browser, where one is installed: pictures and maps, on a screen and on paper."""

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
PICTURES = {"methods": 8 + 2 + 4 + 3 + 1, "numbers": 8 + 2 + 2 + 3 + 1}
"""Accuracy and loss on four axes each; every seed and the differences; both from client to client, under the clients'
own models as well; three of D; the partition."""
MAPS = {"methods": 0, "numbers": 2 + 2}
"""Of each strategy, of the settings that were swept and of the trials."""
LIGHT, DARK = ("--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """methods: three, with the clients' own models; numbers: two swept over step size and alpha, and then tuned."""
    place, draw = tmp_path_factory.mktemp("compared"), np.random.default_rng(4)
    finals = {
        name: middle + 0.01 * draw.normal(size=6)
        for name, middle in (("fedavg", 0.79), ("savic", 0.83), ("a_strategy_with_quite_a_long_name", 0.8))
    }
    compared.methods(place / "methods", finals, num_rounds=30, tau=8.0, with_own_models=True)
    compared.grid(place / "numbers" / "swept", ("fedavg", "savic"), (0.001, 0.01, 0.1), (0.0001, 0.001, 0.01))
    compared.tuned(place / "numbers" / "tuned", ("fedavg", "savic"))
    with (place / "said.txt").open("w") as said:
        console = Console(file=said)
        return {
            name: reports.compare([place / name], place / f"{name}.html", console=console)
            for name in PICTURES
        }


def test_light_and_dark_are_drawn_in_their_own_colours(pages: dict[str, Path], tmp_path: Path) -> None:
    light = picture(tmp_path, pages["methods"], "light", 1200, LIGHT)
    dark = picture(tmp_path, pages["methods"], "dark", 1200, DARK)
    assert light.mean() > 200 and dark.mean() < 60
    for pixels, colours in (
        (light, ("#1a66b8", "#c4570a", "#0b7d62")),
        (dark, ("#6cb0f5", "#f39a54", "#45c7a3")),
    ):
        for colour in colours:
            assert near(pixels, colour) > 300, colour


@pytest.mark.parametrize(("width", "colours"), [(390, DARK), (500, LIGHT), (1200, LIGHT), (1200, DARK)])
@pytest.mark.parametrize("name", PICTURES)
def test_nothing_sticks_out_overlaps_is_empty_or_hard_to_read(
    pages: dict[str, Path], name: str, width: int, colours: str, tmp_path: Path
) -> None:
    assert measured(tmp_path, pages[name], width, colours) == [PICTURES[name], MAPS[name], []]


@pytest.mark.parametrize(
    ("name", "pattern", "instead", "found"),
    [
        (
            "methods", r'<g id="clients-personal_test_loss-(mean|band)-\d+">.*?</g>', "",
            "empty picture: Test loss from client to client, each with a model of its own",
        ),
        ("numbers", "--heat: 62%", "--heat: 200%", "hard to read: "),
        ("numbers", r"calc\(var\(--level\) \* var\(--heat\)\)", "30%", "a map without shades"),
        ("methods", "<h2>Results", '<h2 style="margin-top: -4rem">Results', "overlap: "),
        ("numbers", r"\.tile strong \{ display: block;", r"\g<0> width: 1rem;", "cut off: "),
    ],
)  # fmt: skip
def test_what_is_looked_for_would_be_found(
    pages: dict[str, Path], name: str, pattern: str, instead: str, found: str, tmp_path: Path
) -> None:
    spoilt, count = re.subn(pattern, instead, pages[name].read_text(encoding="utf-8"), flags=re.S)
    assert count
    copy = tmp_path / "spoilt.html"
    copy.write_text(spoilt, encoding="utf-8")
    told = measured(tmp_path, copy, 1200, LIGHT)[2]
    assert told and all(words.startswith(found) for words in told), told


def test_it_prints_on_paper_with_all_that_is_folded_on_the_screen(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    """As many sheets as if all were unfolded, and more than without it; and no word on the console."""

    def sheets(name: str, text: str) -> int:
        page, pdf = tmp_path / f"{name}.html", tmp_path / f"{name}.pdf"
        page.write_text(text, encoding="utf-8")
        _, said = browse(tmp_path / "home", page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
        assert not said
        return len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))

    text = pages["numbers"].read_text(encoding="utf-8")
    folded = re.sub(r"(<summary>.*?</summary>).*?</details>", r"\1</details>", text, flags=re.S)
    as_it_is = sheets("page", text)
    assert as_it_is == sheets("open", text.replace("<details ", "<details open ")) > sheets("folded", folded)
