"""The bytes of rounds.jsonl are those that a SuperLink counts, up to parts that have names: a million parameters.

SuperLink, nodes and messages are real. The nodes' processes, one for each message, are forks of one that has imported
what they need (tests/warm.py); they send what others would.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from pages import REPO
from whole_runs import configured

from fedscale_local import federation, lifecycle

NODES, PARAMETERS = 2, 784 * 1250 + 1250 + 1250 * 10 + 10
ENVELOPE = 4_000
"""Bytes of a message and way: requests and answers that announce it."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("bytes_on_the_wire"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


def by_file(name: str) -> ModuleType:
    """A module of benchmarks, which are not installed; the repository on the path would hide what is."""
    spec = importlib.util.spec_from_file_location(name, REPO / f"benchmarks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


on_nodes, warm_commands = by_file("on_nodes"), by_file("warm_commands")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("n")
    with warm_commands.warm(place / "w"):
        federation.up(place / "federation", NODES)
        yield place / "federation"
        federation.down(place / "federation")


METHODS = {
    "fedavg": (["strategy=fedavg"], {"eval_clients": False}),
    "savic local": (
        ["scaling=adam", "scaling.scope=local", "strategy.mixing=preconditioned"],
        {"eval_clients": True, "eval_personal_steps": 1},
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_agrees_with_the_superlink_and_the_rest_has_names(
    method: str, nodes: Path, tmp_path: Path
) -> None:
    """Of savic local, a run is carried on, too: then what clients keep has to be brought back to them."""
    overrides, more = METHODS[method]
    settings = {
        "model.hidden": [1250],
        "num_clients": NODES,
        "clients_per_round": None,
        "num_rounds": 1,
        **more,
    }
    settings |= {
        "client.local_steps": 1,
        "superlink.federation": str(nodes),
        "run_dir": str(tmp_path / "run"),
    }
    config = configured(*overrides, "engine=superlink", settings=settings)
    found = on_nodes.measure(config, nodes)
    assert found["same_bytes_as_in_process"]
    vectors = {"fedavg": {"up": 1, "down": 1}, "savic local": {"up": 2, "down": 1}}[method]
    kept = {"fedavg": 0, "savic local": 1}[method]
    for way in ("up", "down"):
        arrays, objects, evaluation, states, wire = (
            found[count][way] for count in ("ledger", "objects", "evaluation", "states", "superlink")
        )
        assert arrays == vectors[way] * NODES * PARAMETERS * 4
        assert arrays < objects < arrays + 3_000 * vectors[way] * NODES, "headers and names"
        assert evaluation // (PARAMETERS * 4) == (kept * NODES if way == "down" else 0)
        assert states // (PARAMETERS * 4) == (kept * NODES if way == "up" else 0)
        rest = wire - objects - evaluation - states
        assert 0 < rest < ENVELOPE * NODES * (2 + 2 * kept)  # a question before the first round
        assert rest + objects - arrays < 0.02 * arrays
    if kept:
        with patch("fedscale_local.reports.write"):
            lifecycle.resume(tmp_path / "run", config.model_copy(update={"num_rounds": 2}))
        carried_on, brought_back = on_nodes.superlink(nodes), found["states"]["up"]
        assert 0 <= carried_on.down - found["superlink"]["down"] - brought_back < ENVELOPE * NODES
        assert abs(carried_on.up - found["superlink"]["up"]) < ENVELOPE * NODES
