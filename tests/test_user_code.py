"""A run is known by the user's code that it executes: what its configuration names and what that imports, no more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from whole_runs import configured

from fedscale_local import identity, user_code

FILES = {
    "mine_rule.py": "import mine_help\ndef rule(): return None\n",
    "mine_help.py": "import torch\ndef later():\n    from mine_late import x\n",
    "mine_late.py": "x = 1\n",
    "mine_other.py": "import mine_rule\n",
    "mine_pack/__init__.py": "from .net import Net\n",
    "mine_pack/net.py": "import torch\nfrom . import parts\nclass Net: pass\n",
    "mine_pack/parts.py": "from .deep.end import *\n",
    "mine_pack/deep/end.py": "import mine_help\n",
    "mine_pack/apart.py": "",
}
OF_RULE = {"mine_rule.py", "mine_help.py", "mine_late.py"}
OF_PACK = {"__init__.py", "net.py", "parts.py", "end.py", "mine_help.py", "mine_late.py"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


def names(module: str) -> set[str]:
    return {path.name for path in user_code.files_of(module, identity.OURS)}


def test_what_is_imported_is_found_and_nothing_is_imported_for_it(folder: Path) -> None:
    assert names("mine_rule") == OF_RULE and names("mine_pack.net") == OF_PACK
    assert names("mine_pack.apart") == OF_PACK | {"apart.py"}  # its package is executed before it
    assert not [name for name in sys.modules if name.startswith("mine_")]


def test_of_libraries_only_the_targets_own_package_is_read(folder: Path) -> None:
    installed = folder / "site-packages"
    for name in ("mine_pack", "mine_help.py", "mine_late.py"):
        installed.mkdir(exist_ok=True)
        (folder / name).rename(installed / name)
    sys.path.insert(0, str(installed))
    try:
        assert names("mine_pack.net") == OF_PACK - {"mine_help.py", "mine_late.py"}
        assert names("mine_rule") == {"mine_rule.py"}
    finally:
        sys.path.remove(str(installed))


@pytest.mark.parametrize(
    ("settings", "decide"),
    [
        ({"strategy.local": {"rule": "custom", "_target_": "mine_rule.rule"}}, OF_RULE),
        ({"model": {"name": "custom", "_target_": "mine_pack.Net"}}, OF_PACK),
        (
            {
                "model": {
                    "name": "custom",
                    "_target_": "torch.nn.Sequential",
                    "args": [{"_target_": "mine_pack:Net"}],
                }
            },
            OF_PACK,
        ),
    ],
    ids=["local rule", "package", "nested"],
)
def test_a_cell_is_another_one_if_code_that_it_executes_has_changed(
    settings: dict[str, Any], decide: set[str], folder: Path
) -> None:
    def key() -> dict[str, Any]:
        (found,) = identity.of_runs([configured("data=quadratic", "strategy=fedavg", settings=settings)])
        return found

    plain = key()
    for name in FILES:
        file = folder / name
        text = file.read_text()
        file.write_text(text + "# changed\n")
        assert (key() != plain) == (file.name in decide), name
        file.write_text(text)
    assert key() == plain
