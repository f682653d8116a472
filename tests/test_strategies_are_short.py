"""There are many strategies, each stands in short files, and none of them repeats another.

A strategy's parts are the rules of fedscale_local/local_rules, server_rules and robust, and its file in conf/strategy;
what all of them share and what only makes them by name (__init__.py) is no part of any.
"""

from __future__ import annotations

import ast
from itertools import chain
from pathlib import Path
from statistics import mean

from pages import REPO

PARTS = [
    path
    for folder in ("local_rules", "server_rules", "robust")
    for path in sorted((REPO / "fedscale_local" / folder).glob("*.py"))
    if path.stem != "__init__"
]
NAMED = sorted((REPO / "conf/strategy").glob("*.yaml"))
AROUND = [path for folder in ("strategies", "clients") for path in sorted((REPO / folder).glob("*.py"))]
REPEATED = 6
"""So many lines in a row that two files have are one thing written twice."""


def length(path: Path) -> int:
    """Lines, with docstring and comments."""
    return len(path.read_text(encoding="utf-8").splitlines())


def written(path: Path) -> list[str]:
    """The lines that are neither blank nor an import; of YAML, what is no comment."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
    else:
        lines = [line.partition("#")[0] for line in lines]
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_thirty_strategies_have_a_name() -> None:
    assert len([path for path in NAMED if path.stem != "flower"]) >= 30


def test_the_average_file_of_a_strategys_parts_is_shorter_than_80_lines() -> None:
    assert len(PARTS) > 10
    for files in (PARTS, PARTS + NAMED):
        assert mean(map(length, files)) < 80, {path.name: length(path) for path in files}


def test_no_two_files_share_six_lines_in_a_row() -> None:
    first: dict[tuple[str, ...], Path] = {}
    twice = set()
    for path in chain(PARTS, NAMED, AROUND):
        lines = written(path)
        for start in range(len(lines) - REPEATED + 1):
            window = tuple(lines[start : start + REPEATED])
            if first.setdefault(window, path) != path:
                twice.add((first[window].name, path.name, "\n".join(window)))
    assert not twice, "\n\n".join(map(str, sorted(twice)))
