"""The repository is a Flower app. That such an app runs, and with which bytes, the page that tells of it shows."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pages import PAGES, blocks

from fedscale_local.engines.flower_command import QUIET
from fedscale_local.experiment import CLIENT_APP, SERVER_APP
from fedscale_local.processes import ONE_THREAD

SAVED = {block.saved_as: block.text for block in blocks(PAGES["docs/explanation-engines.md"])}


def test_the_app_of_the_page_is_that_of_the_repository(repo: Path) -> None:
    ours = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    told = tomllib.loads(SAVED["app/pyproject.toml"])["tool"]["flwr"]["app"]
    assert told | {"publisher": ours["publisher"]} == ours
    assert ours["components"] == {
        "serverapp": ":".join(SERVER_APP.rsplit(".", 1)),
        "clientapp": ":".join(CLIENT_APP.rsplit(".", 1)),
    }


def test_the_environment_of_the_page_is_that_of_the_engines() -> None:
    told = dict(line.split("=", 1) for line in SAVED["flower.env"].splitlines())
    assert told == {key: (QUIET | ONE_THREAD)[key] for key in told}
    assert {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", *ONE_THREAD} <= set(told)
