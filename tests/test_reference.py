"""docs/reference-methods.md is what its script makes of the code, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from types import ModuleType

import pytest
from gauntlet import STRATEGIES
from pages import REPO

from fedscale_local import compose

METHODS = sorted(STRATEGIES.keys() - {"savic"})
"""savic's entry lists its scalings, and traffic by what they are."""


@cache
def made() -> tuple[ModuleType, str]:
    """The script, and the page that it would write."""
    spec = importlib.util.spec_from_file_location("reference_methods", REPO / "docs/reference_methods.py")
    assert spec is not None and spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script, script.page()


def entries() -> dict[str, str]:
    """Name -> entry."""
    return dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", made()[1], re.MULTILINE | re.DOTALL))


def test_the_page_is_what_the_script_makes() -> None:
    script, page = made()
    assert script.PAGE.read_text(encoding="utf-8") == page, "run: python docs/reference_methods.py"


def test_every_choice_of_strategy_and_scaling_has_an_entry() -> None:
    groups = compose.groups()
    assert set(entries()) == set(groups["strategy"].choices)
    assert set(re.findall(r"^### scaling=(\w+)$", made()[1], re.MULTILINE)) == set(groups["scaling"].choices)


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_is_whole(name: str) -> None:
    entry = entries()[name]
    assert "**Source**:" in entry and "**Departures**:" in entry and f"`strategy={name}`" in entry
    assert re.search(r"^    .* <- ", entry, re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_its_traffic_is_what_the_ledger_counts(name: str) -> None:
    """The gauntlet holds its own numbers against the bytes of real runs."""
    line = STRATEGIES[name]
    assert f"**Traffic**: {line.up:.3g} up, {line.down:.3g} down." in entries()[name]
