"""The gate gets a browser where it may, says so where it has none, and runs the suites all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SAID = "no Chromium: tests that look at reports in a browser are skipped; install chromium to run them\n"
UPDATE, INSTALL = "apt-get update -qq", "apt-get install -y -qq --no-install-recommends chromium"
SUITES = ["make --no-print-directory test", "make --no-print-directory slow"]
INSTALLS = '[ $1 = update ] || { b=$(dirname "$0")/chromium; printf "#!/bin/sh" > "$b"; chmod +x "$b"; }'


@pytest.mark.parametrize(
    ("programs", "ci", "asked", "said"),
    [
        ({"google-chrome": "", "apt-get": ""}, "true", [], ""),
        ({"apt-get": INSTALLS}, "true", [UPDATE, INSTALL], ""),
        ({"apt-get": "[ $1 = update ] || exit 100"}, "true", [UPDATE, INSTALL], SAID),
        ({"apt-get": INSTALLS}, None, [], SAID),
        ({}, "true", [], SAID),
    ],
    ids=["is there", "installed", "cannot be had", "no CI", "no apt-get"],
)
def test_a_missing_browser_is_installed_in_ci_alone(
    programs: dict[str, str], ci: str | None, asked: list[str], said: str, repo: Path, tmp_path: Path
) -> None:
    bin, log = tmp_path / "bin", tmp_path / "log"
    bin.mkdir()
    for name in ("bash", "sh", "dirname", "chmod"):
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
    assert done.returncode == 0 and done.stderr == said
    assert log.read_text().splitlines() == [*asked, *SUITES]
