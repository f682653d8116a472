"""The processes that Flower starts for a run: their environment, where they work, and what they do without.

A run without TLS on nodes that have no Hydra, and one on a cluster of Ray that is up.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import whole_runs
from real_processes import until

from fedscale_local import processes
from fedscale_local.engines import flower_command
from fedscale_local.engines.flower_command import QUIET
from fedscale_local.processes import ONE_THREAD

NODES = 2
PROBLEM = ("data=synthetic", "partition=natural", "model=logistic", "scaling=adam", "eval_clients=false")
PROBLEM += (f"num_clients={NODES}", "clients_per_round=null", "num_rounds=2")
BLOCKED = """
import importlib.abc, sys

class NoHydra(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoHydra())
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the runs have their temporary files: a short path, for the sockets that Ray has in it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


@contextmanager
def watched(outside: Path) -> Iterator[dict[str, tuple[dict[str, str], str, str]]]:
    """Of each of Flower's programs that is seen in a run's folder: environment, working directory, that folder."""
    seen: dict[str, tuple[dict[str, str], str, str]] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            for folder in outside.glob("fedscale-*"):
                for process in processes.processes_of(folder):
                    words = processes.words_of(process).split()
                    names = {Path(word).name for word in words[:2]} & PROGRAMS
                    with suppress(OSError, ValueError):
                        place = Path(f"/proc/{process}")
                        pairs = (place / "environ").read_bytes().decode().split("\0")
                        env = dict(pair.split("=", 1) for pair in pairs if pair)
                        seen.update({name: (env, os.readlink(place / "cwd"), str(folder)) for name in names})

    helper = threading.Thread(target=watch)
    helper.start()
    try:
        yield seen
    finally:
        is_over.set()
        helper.join()


PROGRAMS = {"flower-superlink", "flower-superexec", "flwr-simulation", "flwr-serverapp", "flwr"}


def hold_quiet(seen: dict[str, tuple[dict[str, str], str, str]], *programs: str) -> None:
    """These were there, install and report nothing, and import from nowhere but where this process does."""
    assert set(programs) <= set(seen)
    for name, (env, cwd, folder) in seen.items():
        assert (QUIET | ONE_THREAD).items() <= env.items(), name
        assert (env["FLWR_HOME"], cwd) == (folder, folder), name


@contextmanager
def started(command: list[Any], folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = flower_command.start(command, folder, folder / "log", env)
    try:
        yield process
    finally:
        processes.end([*processes.processes_of(folder), process.pid])


def reference(run_dir: Path) -> tuple[bytes, bytes]:
    return whole_runs.run(run_dir, *PROBLEM, "engine.mode=looped", "engine.workers=1").bytes


def test_a_run_without_tls_on_nodes_without_hydra(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's side has no Hydra either. What is unprotected is said; the bytes are those of any other run."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKED)
    monkeypatch.syspath_prepend(str(tmp_path / "blocked"))  # of the processes that are yet to start
    homes = [tmp_path / name for name in ("superlink", *map(str, range(NODES)))]
    for home in homes:
        home.mkdir()
    env = flower_command.environment(homes[0])
    for name in ("hydra", "omegaconf"):
        tried = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=env, capture_output=True, text=True
        )
        assert f"No module named '{name}'" in tried.stderr
    port = flower_command.free_port()
    address = f"127.0.0.1:{port}"
    superlink = [
        "flower-superlink",
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--isolation",
        "process",
    ]
    with started(superlink, homes[0], env) as process:
        flower_command.await_port(process, port, homes[0] / "log")
        nodes = []
        try:
            for node, home in enumerate(homes[1:]):
                command = [
                    "flower-supernode",
                    "--insecure",
                    "--superlink",
                    address,
                    "--host",
                    "127.0.0.1",
                    "--port",
                ]
                command += [str(flower_command.free_port()), "--node-config", f"partition-id={node}"]
                nodes.append(
                    flower_command.start(command, home, home / "log", flower_command.environment(home))
                )
            settings = {"superlink.address": address, "superlink.insecure": True}
            with watched(outside) as seen, caplog.at_level(logging.WARNING, "fedscale_local"):
                found = whole_runs.run(tmp_path / "run", *PROBLEM, "engine=superlink", settings=settings)
        finally:
            processes.end([process for home in homes[1:] for process in processes.processes_of(home)])
    assert f"superlink.insecure=true: models and statistics travel unencrypted to {address}" in caplog.text
    hold_quiet(seen, "flower-superexec", "flwr-serverapp", "flwr")
    assert found.bytes == reference(tmp_path / "here")


def test_a_run_on_a_cluster_of_ray_that_is_up(outside: Path, tmp_path: Path) -> None:
    """The cluster outlives it. It has two CPUs, and a worker that takes both is the only one."""
    port, folder = flower_command.free_port(), outside / "ray"
    folder.mkdir()
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--port={port}"]
    command += [
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    ]
    address, workers = f"127.0.0.1:{port}", set[int]()
    with started(command, folder, flower_command.environment(folder)) as cluster:
        flower_command.await_port(cluster, port, folder / "log")
        with watched(outside) as seen, counting(folder, workers):
            settings = {"engine.address": address, "engine.num_cpus": 2}
            found = whole_runs.run(tmp_path / "run", *PROBLEM, "engine=ray", settings=settings)
        assert cluster.poll() is None, "it belongs to somebody else"
        until(lambda: not actors(folder), seconds=60)
    assert len(workers) == 1
    hold_quiet(seen, "flower-superlink", "flower-superexec", "flwr-simulation", "flwr")
    assert seen["flwr-simulation"][0]["RAY_ADDRESS"] == address
    assert found.bytes == reference(tmp_path / "here")


def actors(folder: Path) -> list[int]:
    """The workers of Flower on the cluster."""
    return [p for p in processes.processes_of(folder) if "ray::ClientAppActor" in processes.words_of(p)]


@contextmanager
def counting(folder: Path, workers: set[int]) -> Iterator[None]:
    is_over = threading.Event()

    def count() -> None:
        while not is_over.wait(0.2):
            workers.update(actors(folder))

    helper = threading.Thread(target=count)
    helper.start()
    try:
        yield
    finally:
        is_over.set()
        helper.join()
