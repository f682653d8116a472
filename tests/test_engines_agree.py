"""One configuration, three engines, the same bytes: in process, on Ray, and on the SuperNodes of a SuperLink.

Six clients, five of which take part in each of three rounds. SuperLink, nodes, TLS, keys and messages are real, and so
are the processes, one for each message to a node. But where a test has `warm` commands, these processes are forks of
one that has imported what they need (tests/warm.py): that spares each the seconds of its imports. Ray's worker is such
a fork where a test has the `cluster`. All others start the installed programs and Ray as a user's command does: one
run on nodes, savic local on Ray and what is carried on from it, and clients that fail on Ray. Each run must leave no
process and no file outside its run directory; the end of a fork is that of the caller that waits for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import touchy_model
from flwr.app import RecordDict
from pages import REPO
from whole_runs import configured, save_arrays

import clients.client_app
from fedscale_local import federation, lifecycle, processes

CLIENTS = 6
LOCAL = "savic, local"
MORE = {
    "mime, two exchanges a round": ["strategy=mime"],
    "scaffold, which keeps a control variate": ["strategy=scaffold"],
    "fafed, which probes": ["strategy=fafed"],
    "diloco, which keeps moments": ["strategy=diloco"],
}
METHODS = {
    "fedavg": ["strategy=fedavg"],
    "savic, adam": ["scaling=adam"],
    "savic, oasis": ["scaling=oasis"],
    # Every client keeps a D and a momentum buffer of its own from round to round.
    LOCAL: [
        "scaling=adam",
        "scaling.scope=local",
        "strategy.mixing=preconditioned",
        "client.momentum=0.9",
        "client.momentum_buffer=kept",
        "eval_clients=true",
        "eval_personal_steps=2",
    ],
    **MORE,
}
KEEP_NOTHING = {"fedavg", "savic, adam", "savic, oasis", "fafed, which probes"}
# One method evaluates on clients: the start of a client's process takes longer than all that it does here.
COMMON = ["data=synthetic", "partition=natural", "model=logistic", "eval_clients=false"]
SETTINGS: dict[str, Any] = {
    "num_clients": CLIENTS,
    "clients_per_round": 5,
    "num_rounds": 3,
    "client.local_steps": 3,
    "seed": 5,
}
SHORT = {method: {"num_rounds": 2} for method in MORE}
"""In the second round, what a client has kept is there."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


one_worker = pytest.mark.xdist_group("engines_agree")
"""One worker has the federation, and the process whose forks the commands are."""

_spec = importlib.util.spec_from_file_location("warm_commands", REPO / "benchmarks/warm_commands.py")
assert _spec is not None and _spec.loader is not None
warm_commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(warm_commands)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of commands that are forks."""
    with warm_commands.warm(tmp_path_factory.mktemp("c") / "w") as folder:
        yield folder


@pytest.fixture(scope="module")
def cluster(warm: Path) -> Iterator[tuple[str, ...]]:
    """Two chunks a round, of two and three clients, for a cluster of Ray with one CPU, whose one worker is a fork."""
    with warm_commands.cluster(warm) as overrides:
        yield ("engine=ray", "engine.chunks=2", *overrides)


@pytest.fixture(scope="module")
def nodes(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A federation with one node for each client; nothing of it is left afterwards."""
    folder = tmp_path_factory.mktemp("federation")
    federation.up(folder, CLIENTS)
    mark = str(folder).encode()
    yield folder
    federation.down(folder)
    assert not marked(mark)


def marked(mark: bytes) -> list[int]:
    """The processes with this text in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def run(run_dir: Path, method: str, *engine: str, **settings: Any) -> tuple[bytes, ...]:
    """The outcome of a run that left nothing behind."""
    ended: list[int] = []
    end = processes.end

    def noting(found: list[int], *more: float) -> None:
        ended.extend(found)
        end(found, *more)

    outside = run_dir.parent / f"{run_dir.name}-tmp"
    outside.mkdir()
    settings = SETTINGS | SHORT.get(method, {}) | settings | {"run_dir": str(run_dir)}
    config = configured(*COMMON, *METHODS[method], *engine, settings=settings)
    with (
        patch("fedscale_local.reports.write"),
        patch("tempfile.tempdir", str(outside)),
        patch("fedscale_local.processes.end", noting),
    ):
        lifecycle.run(config)
    if "engine.mode=looped" not in engine:
        assert ended, "the run had processes of its own"
    assert not [process for process in ended if processes.is_alive(process)]
    assert not marked(str(outside).encode())
    assert not list(outside.glob("fedscale-*"))
    return outcome(run_dir)


def outcome(run_dir: Path) -> tuple[bytes, ...]:
    """What the seed determines; how clients do with models of their own, too, where they are asked."""
    clients = [run_dir / "clients.json"] if (run_dir / "clients.json").exists() else []
    files = (run_dir / "rounds.jsonl", run_dir / "model.safetensors", *clients)
    return tuple(file.read_bytes() for file in files)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, ...]]:
    """Each method's bytes, clients one after the other in this process."""
    folder = tmp_path_factory.mktemp("in_process")
    engine = ("engine.mode=looped", "engine.workers=1")
    return {method: run(folder / str(i), method, *engine) for i, method in enumerate(METHODS)}


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[bytes, ...]]:
    """A run with a worker for each CPU, whose clients keep something, and its checkpoints."""
    run_dir = tmp_path_factory.mktemp("ray") / "run"
    return run_dir, run(run_dir, LOCAL, "engine=ray", checkpoint_every=1)


@one_worker
@pytest.mark.parametrize("method", [method for method in METHODS if method != LOCAL])
def test_ray_gives_the_same_bytes(
    method: str, reference: dict[str, Any], cluster: tuple[str, ...], tmp_path: Path
) -> None:
    assert run(tmp_path / "run", method, *cluster) == reference[method]


def test_ray_with_a_worker_for_each_cpu_gives_the_same_bytes(
    reference: dict[str, Any], on_ray: tuple[Path, tuple[bytes, ...]]
) -> None:
    assert on_ray[1] == reference[LOCAL]


@one_worker
@pytest.mark.parametrize("method", METHODS)
def test_superlink_gives_the_same_bytes(
    method: str, reference: dict[str, Any], nodes: Path, tmp_path: Path
) -> None:
    got = run(tmp_path / "run", method, "engine=superlink", **{"superlink.federation": str(nodes)})
    assert got == reference[method]


@one_worker
def test_superlink_gives_the_same_bytes_when_each_process_is_an_installed_program(
    warm: Path, nodes: Path, tmp_path: Path
) -> None:
    fewer = {"clients_per_round": 3, "num_rounds": 2, "eval_clients": False, "eval_personal_steps": 0}
    here = run(tmp_path / "here", LOCAL, "engine.mode=looped", "engine.workers=1", **fewer)
    with warm_commands.plain(warm):
        on_nodes = {"superlink.federation": str(nodes)}
        assert run(tmp_path / "run", LOCAL, "engine=superlink", **on_nodes, **fewer) == here


@pytest.mark.parametrize("method", METHODS)
def test_what_clients_keep_makes_a_difference(method: str, reference: dict[str, Any], tmp_path: Path) -> None:
    """So an engine with the bytes of the reference has kept it, from one round to the next."""
    answered = clients.client_app.answered

    def forgetting(experiment: Any, message: Any, context: Any, *more: Any) -> Any:
        reply = answered(experiment, message, context, *more)
        context.state = RecordDict()
        return reply

    with patch("clients.client_app.answered", forgetting):
        forgetful = run(tmp_path / "run", method, "engine.mode=looped", "engine.workers=1")
    assert (forgetful[1] != reference[method][1]) == (method not in KEEP_NOTHING)


@one_worker
def test_somebody_elses_apps_give_the_same_bytes_on_ray(cluster: tuple[str, ...], tmp_path: Path) -> None:
    """A strategy of Flower, and a ClientApp with noise from a global generator, sampled by Flower's own draws."""
    rng = np.random.default_rng(2)
    x, y = [rng.normal(size=(7, 3)) for _ in range(CLIENTS)], [rng.integers(0, 2, 7) for _ in range(CLIENTS)]
    arrays = str(save_arrays(tmp_path / "arrays.npz", x, y))
    apps = ["strategy._target_=flwr.serverapp.strategy.FedAdam", "client._target_=foreign_app.noisy"]
    more = {"strategy.fraction_train": 0.5, "client.file": arrays, "client.learning-rate": 0.1}
    more |= {"data.path": arrays, "dtype": "float64"}
    METHODS["foreign"] = ["data=arrays", *apps]
    try:
        here = run(tmp_path / "here", "foreign", "engine.mode=looped", "engine.workers=1", **more)
        assert run(tmp_path / "ray", "foreign", *cluster, "engine.chunks=auto", **more) == here
    finally:
        del METHODS["foreign"]
    assert b'"failures": []' in here[0]


def test_clients_of_one_chunk_that_fail_spare_the_others_on_ray(tmp_path: Path) -> None:
    """One raises and one answers NaN; four of six clients a round in three chunks, who keep what they keep."""
    arrays = touchy_model.save(
        tmp_path / "arrays.npz", (9, 2, 4, 7, 2, 5), {0: touchy_model.RAISE, 3: touchy_model.SPOIL}
    )
    more = {"data.path": str(arrays), "num_rounds": 5, "num_clients": None, "clients_per_round": 4}
    METHODS["touchy"] = [
        "data=arrays",
        "model=custom",
        "model._target_=touchy_model.Touchy",
        "strategy=scaffold",
    ]
    try:
        here = run(tmp_path / "here", "touchy", "engine.mode=looped", "engine.workers=1", **more)
        assert run(tmp_path / "ray", "touchy", "engine=ray", "engine.chunks=3", **more) == here
    finally:
        del METHODS["touchy"]
    failed = [
        {f["client"]: f["reason"] for f in json.loads(line)["failures"]} for line in here[0].splitlines()
    ]
    reasons = dict(pair for found in failed for pair in found.items())
    assert set(reasons) == {0, 3}
    assert "no convergence" in reasons[0] and "is no longer finite" in reasons[3]


def test_a_run_on_ray_is_carried_on_with_what_its_clients_kept(
    reference: dict[str, Any], on_ray: tuple[Path, tuple[bytes, ...]]
) -> None:
    run_dir = on_ray[0]
    (run_dir / "model.safetensors").unlink()
    (run_dir / "checkpoints" / "round-000003.json").unlink()
    with patch("fedscale_local.reports.write"):
        lifecycle.resume(run_dir)
    assert outcome(run_dir) == reference[LOCAL]


@one_worker
def test_secure_aggregation_gives_the_same_bytes_everywhere(
    cluster: tuple[str, ...], nodes: Path, tmp_path: Path
) -> None:
    """Masks are others in each run, and on devices from processes that end after each stage; the sum is the same."""
    METHODS["secure"], small = ["strategy=fedavg", "secure=secagg"], {"num_rounds": 1, "clients_per_round": 3}
    try:
        here = run(tmp_path / "here", "secure", "engine.mode=looped", "engine.workers=1", **small)
        assert b'"failures": []' in here[0] and b'"secure_clipped": 0.0' in here[0]
        assert run(tmp_path / "ray", "secure", *cluster, **small) == here
        more = small | {"superlink.federation": str(nodes)}
        assert run(tmp_path / "superlink", "secure", "engine=superlink", **more) == here
    finally:
        del METHODS["secure"]


def test_the_methods_differ(reference: dict[str, tuple[bytes, ...]]) -> None:
    """Equal bytes say something only if each method has its own."""
    assert len(set(reference.values())) == len(METHODS)


@one_worker
def test_keys_of_a_federation_are_their_owners_alone(nodes: Path) -> None:
    secrets = [nodes / "ca.key", nodes / "server.key", nodes / "superexec.secret"]
    secrets += [nodes / "nodes" / str(node) / "key" for node in range(CLIENTS)]
    secrets += [nodes / "nodes" / str(node) / "local" / "server.key" for node in range(CLIENTS)]
    private = [path for path in nodes.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path for path in secrets if path.name != "superexec.secret"} == set(private)
    assert [oct(os.stat(secret).st_mode & 0o777) for secret in secrets] == ["0o600"] * len(secrets)
