"""Flower's commands, and Ray's workers, as forks of one process that has imported all that they need.

Most of the time of a small run on Ray or on nodes goes to importing torch and Flower, once for each message to a node.
tests/warm.py is that process, and says what a fork has in common with a program that starts anew.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedscale_local.engines import flower_command

WARM = Path(__file__).resolve().parents[1] / "tests" / "warm.py"
POLLS = "1.0"
"""Seconds. Where several federations share two cores, five looks a second cost more than the runs."""
DOOR = "door"
"""The socket where a fork is asked for; while it is not there, commands are the installed programs."""
RAY_WORKER = "ray-worker"
COMMANDS = (
    "flower-superexec",
    "flower-superlink",
    "flwr",
    "flwr-clientapp",
    "flwr-serverapp",
    "flwr-simulation",
)


@contextmanager
def warm(folder: Path) -> Iterator[Path]:
    """Flower's commands start as forks of a process that has imported all that they need: those of this folder."""
    folder.mkdir()
    door = folder / DOOR
    for command in (*COMMANDS, RAY_WORKER):
        ask = shlex.join([sys.executable, "-I", "-S", str(WARM), "ask", str(door), command])
        real = shlex.quote(str(Path(sys.executable).with_name(command)))
        lines = [
            "#!/bin/sh",
            f'[ -S {shlex.quote(str(door))} ] || exec {real} "$@"',
            f'exec {ask} "$@"',
        ]
        (folder / command).write_text("\n".join([*lines, ""]))
        (folder / command).chmod(0o755)
    environment = flower_command.environment

    def first(home: Path) -> dict[str, str]:
        found = environment(home)
        path = f"{folder}{os.pathsep}{found['PATH']}"
        return found | {"PATH": path, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLLS}

    serve = [sys.executable, "-P", str(WARM), "serve", str(door), *COMMANDS, RAY_WORKER]
    with (
        subprocess.Popen(serve, env=environment(folder)) as server,
        patch.object(flower_command, "environment", first),
    ):
        try:
            while not door.exists() and server.poll() is None:
                time.sleep(0.1)
            yield folder
        finally:
            server.kill()


@contextmanager
def plain(folder: Path) -> Iterator[None]:
    """Commands that start meanwhile are the installed programs, from their first import on: nobody makes forks."""
    door, shut = folder / DOOR, folder / f"{DOOR} shut"
    door.rename(shut)
    try:
        yield
    finally:
        shut.rename(door)


@contextmanager
def cluster(commands: Path) -> Iterator[list[str]]:
    """One of one CPU whose workers are forks, too: the overrides that choose it."""
    import ray
    from ray._private.parameter import RayParams

    start, made = commands / "start_worker.py", RayParams.__init__
    worker = str(commands / RAY_WORKER)
    start.write_text(f"import os, sys\nos.execv({worker!r}, [{worker!r}, *sys.argv[1:]])\n")

    def told(self: RayParams, **given: Any) -> None:
        made(self, **given | {"setup_worker_path": str(start)})

    with patch.object(RayParams, "__init__", told):
        context = ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        yield [f"engine.address={context.address_info['gcs_address']}", "engine.num_cpus=1"]
    finally:
        ray.shutdown()
