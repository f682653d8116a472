"""Every command and every piece of code in README.md and docs/ runs.

How a fenced block is read, from top to bottom of a page, in one folder a page:

* bash: run as it stands; every command has to succeed.
* console: lines after `$ ` are run, and the other lines have to be among what they print, with other digits if need be.
* python, yaml, toml, sh: where the sentence before ends "save this as `NAME`:" the block becomes that file; other
  Python is run.
* diff: applied to a copy of the repository, which the page's later commands then use.

Lines that set up an environment (make, pip, source) are not run. What a page starts it has to end.
A page's first `fedscale-local` is a program that imports what it needs; those after it are forks of one that has.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pages import ALL_COMMANDS, PAGES, REPO, SETTING_UP, Block, blocks, commands

from fedscale_local import compose
from fedscale_local.processes import end

FLOWER = ("flwr", "flower-superlink", "flower-supernode")
PACKAGES = ("fedscale_local", "strategies", "clients", "conf")
PAGE = "PAGE_OF_DOCS"
"""In the environment of all that a page starts, and of what that starts in turn."""
WARM = Path(__file__).with_name("warm.py")


def is_installed() -> bool:
    return Path(compose.FOLDER).parent != REPO


@pytest.fixture(scope="session")
def warm() -> Iterator[Path]:
    """The socket of a process that is `fedscale-local` with everything imported."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        path = Path(folder) / "warm"
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FEDSCALE_DATA")}
        env |= {} if is_installed() else {"PYTHONPATH": str(REPO)}
        server = subprocess.Popen(
            [sys.executable, "-P", str(WARM), "serve", str(path), "fedscale-local"], env=env
        )
        try:
            while not path.exists():
                assert server.poll() is None
                time.sleep(0.05)
            yield path
        finally:
            server.kill()
            server.wait()


def shims(folder: Path, packages: Path | None, warm: Path | None) -> dict[str, str]:
    """An environment in which `python` and `fedscale-local` are those of this test; packages: where ours come from.

    warm: who does the commands after the first, for one that imports from where this test does.
    """
    folder.mkdir()
    ours = "" if packages is None else str(packages)
    beside = Path(sys.executable).parent
    programs = {"python": "", "fedscale-local": "-P -m fedscale_local.cli "}
    programs |= {name: f"{shlex.quote(str(beside / name))} " for name in FLOWER}
    for name, arguments in programs.items():
        shim = folder / name
        lines = ["#!/bin/sh"]
        if warm is not None and name == "fedscale-local":
            asked = shlex.join([sys.executable, "-I", "-S", str(WARM), "ask", str(warm), name])
            lines.append(f'[ -n "$PYTHONPATH" ] || mkdir {folder}/first 2>/dev/null || exec {asked} "$@"')
        real = f'exec {shlex.quote(sys.executable)} {arguments}"$@"'
        lines.append(f'PYTHONPATH="$PYTHONPATH${{PYTHONPATH:+:}}{ours}" {real}')
        shim.write_text("\n".join([*lines, ""]))
        shim.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FEDSCALE_DATA")}
    path = f"{folder}{os.pathsep}{beside}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path, "COLUMNS": "120", PAGE: str(folder)}


def apply(diff: str, tree: Path) -> None:
    """Replace the lines that a diff takes away, in the file that it names; they have to be there once."""
    header, *lines = diff.splitlines()[1:]
    file = tree / header.removeprefix("+++ b/")
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name} has {text.count(before)} times:\n{before}"
    file.write_text(text.replace(before, after), encoding="utf-8")


def masked(text: str) -> str:
    """Numbers of the same kind look alike, and so does the space between words."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "#", text)).strip()


@contextmanager
def nothing_left(env: dict[str, str], seconds: float = 20) -> Iterator[None]:
    """A page ends all that it starts, soon after its last command; if it fails, that is ended here."""
    try:
        yield
        deadline = time.monotonic() + seconds
        while processes_of(env) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not (left := processes_of(env)), f"still there after {seconds} s: {sorted(left.values())}"
    finally:
        end(list(processes_of(env)))


def processes_of(env: dict[str, str]) -> dict[int, str]:
    """What a page has started, by its command line: the processes with the page's mark in their environment."""
    mark, found = f"{PAGE}={env[PAGE]}".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")
    return {process: command for process, command in found.items() if command}


def play(block: Block, folder: Path, env: dict[str, str]) -> None:
    """Run a bash or console block and hold its words against what happened."""
    expected = [line for line in block.text.splitlines() if not line.startswith("$ ")]
    if block.language == "bash":
        expected = []
    asked = [command for command in commands(block) if not command.startswith(SETTING_UP)]
    lines = ["set -u"]
    for number, command in enumerate(asked):
        told = number + 1 < len(asked) and asked[number + 1] == "echo $?"
        lines += [command] if told else [f"{command} || {{ echo 'FAILED'; exit 3; }}"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}"
    printed = {masked(line) for line in done.stdout.splitlines()}
    missing = [line for line in expected if masked(line) not in printed]
    assert not missing, f"not printed: {missing}\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PAGES])
def test_page_runs_from_top_to_bottom(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found, place = blocks(PAGES[name]), tmp_path / "place"
    ours = [c for page, c in ALL_COMMANDS if page == name and c.startswith("fedscale-local ")]
    packages = None if is_installed() else REPO
    if any(block.language == "diff" for block in found):
        for part in (*PACKAGES, "tests", "docs", "benchmarks"):
            shutil.copytree(REPO / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "CHANGELOG.md", "README.md", "Makefile"):
            shutil.copy(REPO / part, place / part)
        packages = place
    place.mkdir(exist_ok=True)
    warm = request.getfixturevalue("warm") if packages != place and len(ours) > 1 else None
    env = shims(tmp_path / "bin", packages, warm)
    with nothing_left(env):
        for block in found:
            if block.saved_as:
                (place / block.saved_as).write_text(block.text, encoding="utf-8")
            elif block.language == "diff":
                apply(block.text, place)
            elif block.language == "python":
                script = tmp_path / "block.py"
                script.write_text(block.text, encoding="utf-8")
                play(Block("bash", f"python {shlex.quote(str(script))}", None), place, env)
            elif block.language in ("bash", "console"):
                play(block, place, env)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
def test_what_a_page_leaves_is_found_and_ended(tmp_path: Path) -> None:
    env = shims(tmp_path / "bin", None, None)
    command = f"PATH=/nowhere:$PATH {shlex.quote(shutil.which('sleep') or 'sleep')} 100 >/dev/null 2>&1 &"
    with pytest.raises(AssertionError, match="sleep 100"), nothing_left(env, seconds=0.5):
        play(Block("bash", command, None), tmp_path, env)
    assert not processes_of(env)
