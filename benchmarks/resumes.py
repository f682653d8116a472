"""Stop a run of every strategy after each of its rounds, the last included, and carry it on: the same bytes?

    python -m benchmarks.resumes [--engine in_process|ray|superlink] [--warm] [--strategies savic,...] [key=value ...]

A run of one round is carried on to the second, that one to the third, and so on, each by a new command's work on the
engine that is asked for; after the last round it is carried on once more, with nothing left to do. In the end it has
the bytes of an undisturbed run in process: so what a round leaves in memory alone, on any engine, would show. With
superlink a federation of one node for each client is started first. Most of the time goes to importing torch and
Flower, eight times for each run, and with --warm what is started are forks of a process that has imported them; so are
the workers of the Ray cluster of one CPU that all runs then share. A run that fails is named and kept where it is.
Further keys apply to the runs that are stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.kills import results, strategies
from fedscale_local import compose, federation, lifecycle, reports
from fedscale_local.engines import flower_command
from fedscale_local.errors import FedscaleError

WARM = Path(__file__).resolve().parents[1] / "tests" / "warm.py"
ROUNDS, CLIENTS = 12, 4
POLLS = "1.0"
"""Seconds. Where several federations share two cores, five looks a second cost more than the runs."""
SMALL = (
    f"data=synthetic data.dimension=10 data.num_classes=4 num_clients={CLIENTS} clients_per_round=3 model=logistic "
    "client.local_steps=2 client.batch_size=4 engine.workers=1 engine.mode=looped eval_clients=false "
    f"checkpoint_every=1 num_rounds={ROUNDS}"
)


def unequal(name: str, engine: Sequence[str], folder: Path) -> bool:
    """Does this strategy, carried on after each round by this engine, end with other bytes than an undisturbed one?"""
    overrides = [*SMALL.split(), f"strategy={name}"]
    others = [override for override in overrides if not override.startswith("engine.")]
    here, there = compose.config(overrides), compose.config([*others, *engine] if engine else overrides)
    whole, stopped = folder / "whole", folder / "stopped"
    lifecycle.run(here.model_copy(update={"run_dir": str(whole)}))
    lifecycle.run(there.model_copy(update={"run_dir": str(stopped), "num_rounds": 1}))
    for round in [*range(2, ROUNDS + 1), ROUNDS]:
        lifecycle.resume(stopped, there.model_copy(update={"run_dir": str(stopped), "num_rounds": round}))
    return results(stopped) != results(whole)


@contextmanager
def warm(folder: Path) -> Iterator[Path]:
    """Flower's commands start as forks of a process that has imported all that they need."""
    folder.mkdir()
    door = folder / "door"
    commands = (
        "flower-superexec",
        "flower-superlink",
        "flwr",
        "flwr-clientapp",
        "flwr-serverapp",
        "flwr-simulation",
        "ray-worker",
    )
    for command in commands:
        ask = shlex.join([sys.executable, "-I", "-S", str(WARM), "ask", str(door), command])
        (folder / command).write_text(f'#!/bin/sh\nexec {ask} "$@"\n')
        (folder / command).chmod(0o755)
    environment = flower_command.environment

    def first(home: Path) -> dict[str, str]:
        found = environment(home)
        path = f"{folder}{os.pathsep}{found['PATH']}"
        return found | {"PATH": path, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLLS}

    serve = [sys.executable, "-P", str(WARM), "serve", str(door), *commands]
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
def cluster(commands: Path) -> Iterator[list[str]]:
    """One of one CPU whose workers are forks, too: the overrides that choose it."""
    import ray
    from ray._private.parameter import RayParams

    start, made = commands / "start_worker.py", RayParams.__init__
    worker = str(commands / "ray-worker")
    start.write_text(f"import os, sys\nos.execv({worker!r}, [{worker!r}, *sys.argv[1:]])\n")

    def told(self: RayParams, **given: Any) -> None:
        made(self, **given | {"setup_worker_path": str(start)})

    with patch.object(RayParams, "__init__", told):
        context = ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        yield [f"engine.address={context.address_info['gcs_address']}", "engine.num_cpus=1"]
    finally:
        ray.shutdown()


@contextmanager
def engine(name: str, folder: Path, commands: Path | None) -> Iterator[list[str]]:
    """The overrides that choose it; commands: where those that are warm are."""
    if name == "in_process":
        yield []
    elif name == "ray" and commands is not None:
        with cluster(commands) as overrides:
            yield ["engine=ray", *overrides]
    elif name == "ray":
        yield ["engine=ray"]
    else:
        federation.up(folder, CLIENTS)
        try:
            yield ["engine=superlink", f"superlink.federation={folder}"]
        finally:
            federation.down(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["in_process", "ray", "superlink"], default="in_process")
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default=strategies(), help="default: all"
    )
    parser.add_argument(
        "--warm", action="store_true", help="what Flower and Ray start are forks of one process"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    failed, began = 0, time.monotonic()
    print(
        f"| strategy | carried on, {arguments.engine} | same bytes | seconds |\n|---|---|---|---|", flush=True
    )
    with (
        tempfile.TemporaryDirectory() as place,
        warm(Path(place) / "commands") if arguments.warm else nullcontext() as commands,
        engine(arguments.engine, Path(place) / "federation", commands) as overrides,
    ):
        for name in arguments.strategies:
            start, folder = time.monotonic(), Path(tempfile.mkdtemp())
            try:
                found = "NO" if unequal(name, [*overrides, *arguments.overrides], folder) else "yes"
            except FedscaleError as error:
                found = f"NO: {error}"
            if found == "yes":
                shutil.rmtree(folder)
            failed += found != "yes"
            print(f"| {name} | {ROUNDS} | {found} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"\n{failed} strategies that ended otherwise, {time.monotonic() - began:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
