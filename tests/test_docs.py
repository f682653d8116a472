"""What README.md and docs/ name exists: links, files, keys, choices, functions, the targets of make.

That their commands run is in test_docs_run.py; the overrides of every command are checked here too, as it is quick.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ALL_COMMANDS, PAGES, REPO, SETTING_UP, blocks, prose

from fedscale_local import compose
from fedscale_local.config import to_container
from fedscale_local.errors import ConfigError
from fedscale_local.instantiate import locate


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    found = [block for page in PAGES.values() for block in blocks(page)]
    assert {block.language for block in found} <= {"bash", "console", "python", "yaml", "diff", "toml", "sh"}
    assert all(block.saved_as for block in found if block.language in ("toml", "sh"))
    assert len(ALL_COMMANDS) > 30


def test_readme_begins_with_the_two_commands() -> None:
    first, second = (REPO / "README.md").read_text(encoding="utf-8").splitlines()[:2]
    assert first.split("#")[0].strip() == "make demo" and second.split("#")[0].strip() == "make test"


def test_targets_of_make_exist_and_other_setting_up_names_files_that_do() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    asked = [c for _, c in ALL_COMMANDS if c.startswith(SETTING_UP)]
    for command in [*asked, "make demo", "make test"]:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert set(words[1:]) <= targets
        elif words[0] == "pip":
            assert (REPO / words[words.index("-c") + 1]).is_file()
        else:
            assert words == ["source", ".venv/bin/activate"] and "DEMO := .venv\n" in makefile


# ---------------------------------------------------------------- names


@cache
def keys() -> frozenset[str]:
    """Every key that some choice of the configuration has, dotted; and its sections."""
    found: set[str] = set()

    def walk(container: dict[str, Any], prefix: str) -> None:
        for key, value in container.items():
            found.add(prefix + key)
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(to_container(compose.config()), "")
    walk({"tune": yaml.safe_load((compose.FOLDER / "config.yaml").read_text(encoding="utf-8"))["tune"]}, "")
    for group, entry in compose.groups().items():
        for choice in entry.choices:
            text = (compose.FOLDER / group / f"{choice}.yaml").read_text(encoding="utf-8")
            values = {k: v for k, v in yaml.safe_load(text).items() if k != "defaults"}
            walk(values, "" if "@package _global_" in text else f"{group}.")
    return frozenset(found | {"hydra.sweep.dir", "hydra/launcher", "hydra.launcher.n_jobs"})


def assigned(override: str, made_here: frozenset[str]) -> str | None:
    """What is wrong with KEY=VALUE as the docs write it, or None."""
    key, _, value = override.partition("=")
    if key == "KEY":  # any
        return None
    groups = compose.groups()
    if key in groups:
        known = [*groups[key].choices, *(Path(made).stem for made in made_here if f"conf/{key}/" in made)]
        unknown = [choice for choice in value.split(",") if choice not in known]
        return f"no {key} is called {', '.join(unknown)}" if unknown else None
    return None if key in keys() | made_here else f"there is no key {key}"


@cache
def made_by(name: str) -> frozenset[str]:
    """Files that a page makes, and keys that it gives to something of its own (a strategy, a model, a client)."""
    made = {block.saved_as for block in blocks(PAGES[name]) if block.saved_as}
    for command in (command for page, command in ALL_COMMANDS if page == name):
        words = shlex.split(command)
        made |= {word.partition("=")[2] for word in words if word.startswith("--out=")}
        own = {word.partition("._target_=")[0] for word in words if "._target_=" in word}
        made |= {
            word.partition("=")[0]
            for word in words
            if word.startswith(tuple(f"{section}." for section in own))
        }
    return frozenset(made)


def is_code(name: str) -> bool:
    """Does `module.Class.attribute` lead somewhere, in one of the packages?"""
    inside = ("fedscale_local.", "fedscale_local.data.", "fedscale_local.engines.", "")
    for prefix in inside:
        with suppress(ConfigError):
            locate(prefix + name)
            return True
    return False


_CLASSES = {
    "Savic": "strategies.savic",
    "FederatedStrategy": "strategies.base",
    "ClientUpdate": "clients.training",
    "InProcessGrid": "fedscale_local.engines.in_process",
    "ClientGrid": "fedscale_local.client_grid",
}
RUN_DIRECTORY = {f"{name}.json" for name in ("manifest", "partition", "clients")} | {
    "config.yaml",
    "model.safetensors",
}
RUN_DIRECTORY |= {
    "rounds.jsonl",
    "timing.jsonl",
    "report.html",
    "sweep.json",
    "tuning.json",
    "study.db",
    "flower.log",
}


def what_is_wrong(quoted: str, made_here: frozenset[str]) -> str | None:
    """Why something in backticks leads nowhere; None if it does, or if it is none of a name, file or key."""
    if re.fullmatch(r"[\w.]+=[\w.,/]+", quoted):
        return assigned(quoted, made_here)
    if re.fullmatch(
        r"(fedscale_local|strategies|clients|conf|tests|docs|benchmarks|deploy)/[\w./-]*", quoted
    ):
        return None if (REPO / quoted).exists() or quoted in made_here else "there is no such file"
    if re.fullmatch(r"\w+\.(yaml|json|jsonl|html|safetensors|md|txt|npz|py|svg|db|log)", quoted):
        known = RUN_DIRECTORY | made_here
        return None if quoted in known or (REPO / quoted).exists() else "nothing of that name is written"
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", quoted):
        first = quoted.partition(".")[0]
        named = f"{_CLASSES[first]}.{quoted}" if first in _CLASSES else quoted
        is_known = quoted in keys() | made_here or is_code(named)
        return None if is_known else "neither a key nor something in the code"
    if quoted in _CLASSES:
        return None if is_code(f"{_CLASSES[quoted]}.{quoted}") else "there is no such class"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_what_stands_in_backticks_exists(name: str) -> None:
    quoted = set(re.findall(r"`([^`\n]+)`", prose(PAGES[name])))
    wrong = {q: reason for q in sorted(quoted) if (reason := what_is_wrong(q, made_by(name)))}
    assert not wrong


def test_names_that_lead_nowhere_are_found() -> None:
    for quoted in ("scaling=adamm", "scaling.floors", "server_step.added", "tests/none.py", "lines.jsonl"):
        assert what_is_wrong(quoted, frozenset()), quoted


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(PAGES[name])):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors


def test_every_page_is_reached_from_the_readme() -> None:
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert [name for name in PAGES if f"({name})" not in readme] == ["README.md"]


@pytest.mark.parametrize("name", PAGES)
def test_overrides_are_of_this_configuration(name: str) -> None:
    for command in (command for page, command in ALL_COMMANDS if page == name):
        words = shlex.split(command)
        verb = next((verb for verb in ("run", "tune") if {"fedscale-local", verb} <= set(words)), None)
        if verb is not None:
            for word in words[words.index(verb) + 1 :]:
                assert "=" not in word or assigned(word, made_by(name)) is None, word


# ---------------------------------------------------------------- tables that repeat what the code says


def rows(name: str, column: str) -> list[list[str]]:
    """The cells of the first table of a page whose header has this column."""
    lines = prose(PAGES[name]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and column in line)
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_engines_that_are_said_to_work_are_there() -> None:
    table = rows("README.md", "where clients run")
    said = {re.findall(r"`engine=(\w+)`", row[0])[0]: row[-1] for row in table}
    assert set(said) == set(compose.groups()["engine"].choices)
    for engine, words in said.items():
        module = importlib.import_module(f"fedscale_local.engines.{engine}")
        assert words.startswith("yes") and callable(module.run)


def test_the_tolerances_are_those_of_the_test() -> None:
    from test_stacked_equals_looped import FLOAT32

    table = {row[0].strip("`"): float(row[1]) for row in rows("docs/explanation-engines.md", "tolerance")}
    assert table == FLOAT32


def test_the_memories_are_those_of_the_code() -> None:
    from fedscale_local.scaling import RULES

    assert [row[0].strip("`") for row in rows("docs/explanation-algorithm.md", "| rule |")] == list(RULES)


def test_the_defaults_of_a_round_are_those_of_the_configuration() -> None:
    text = prose(PAGES["docs/explanation-faults.md"]).partition(" are the defaults")[0].splitlines()[-1]
    said = dict(re.findall(r"`(\w+)=(\w+)`", text))
    assert set(said) == {"round_timeout", "min_replies", "on_too_few"}
    container = to_container(compose.config([]))
    assert {key: str(container[key]).removesuffix(".0") for key in said} == said


def test_a_strategy_and_its_twin_take_fewer_than_forty_lines() -> None:
    written = blocks(PAGES["docs/how-to-add-a-strategy.md"])
    python = [block.text.strip().splitlines() for block in written if block.language == "python"]
    rule, twin, by_hand = python
    assert 20 < len(rule + twin) < 40 and "def test_" in "".join(by_hand)


@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_picture_is_small_and_its_maker_is_there(name: str) -> None:
    assert (REPO / f"docs/images/{name}.png").stat().st_size < 400_000
    assert os.access(REPO / f"docs/images/{name}.sh", os.X_OK)
