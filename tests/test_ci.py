"""The gate gets a browser and nginx where it may, says what it has not, and runs the suites all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UPDATE, INSTALL = "apt-get update -qq", "apt-get install -y -qq --no-install-recommends"
SUITES = ["make --no-print-directory test", "make --no-print-directory slow"]
BOTH = {"google-chrome": "", "nginx": ""}


def said(*packages: str) -> str:
    return f"not installed: {' '.join(packages)}; the tests that need them are skipped\n"


@pytest.mark.parametrize(
    ("programs", "ci", "asked", "told"),
    [
        ({**BOTH, "apt-get": ""}, "true", [], ""),
        ({"apt-get": ""}, "true", [UPDATE, f"{INSTALL} chromium nginx-light"], ""),
        ({"chromium": "", "apt-get": ""}, "true", [UPDATE, f"{INSTALL} nginx-light"], ""),
        (
            {"nginx": "", "apt-get": "[ $1 = update ] || exit 100"},
            "true",
            [UPDATE, f"{INSTALL} chromium"],
            said("chromium"),
        ),
        ({"apt-get": ""}, None, [], said("chromium", "nginx-light")),
        ({"nginx": ""}, "true", [], said("chromium")),
    ],
    ids=["are there", "installed", "one installed", "cannot be had", "no CI", "no apt-get"],
)
def test_what_is_missing_is_installed_in_ci_alone(
    programs: dict[str, str], ci: str | None, asked: list[str], told: str, repo: Path, tmp_path: Path
) -> None:
    bin, log = tmp_path / "bin", tmp_path / "log"
    bin.mkdir()
    for name in ("bash", "sh", "dirname"):
        (bin / name).symlink_to(str(shutil.which(name)))
    for name, text in {"make": "", **programs}.items():
        (bin / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{text}\n')
        (bin / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | (
        {"CI": ci} if ci else {}
    )
    command = [str(bin / "bash"), str(repo / ".ci" / "run")]
    done = subprocess.run(
        command, env=environment | {"PATH": str(bin)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == told
    assert log.read_text().splitlines() == [*asked, *SUITES]
