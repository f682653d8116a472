"""The bytes of rounds.jsonl are those that a SuperLink counts, up to headers and envelopes: a million parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from pages import REPO
from whole_runs import configured

from fedscale_local import federation

NODES, ROUNDS, PARAMETERS = 2, 1, 784 * 1250 + 1250 + 1250 * 10 + 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


_spec = importlib.util.spec_from_file_location("on_nodes", REPO / "benchmarks/on_nodes.py")
assert _spec is not None and _spec.loader is not None
on_nodes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(on_nodes)


def test_the_ledger_agrees_with_the_superlink_and_the_rest_has_names(tmp_path: Path) -> None:
    nodes = tmp_path / "federation"
    settings = {"model.hidden": [1250], "num_clients": NODES, "clients_per_round": None, "num_rounds": ROUNDS}
    settings |= {
        "client.local_steps": 1,
        "superlink.federation": str(nodes),
        "run_dir": str(tmp_path / "run"),
    }
    federation.up(nodes, NODES)
    try:
        found = on_nodes.measure(configured("strategy=fedavg", "engine=superlink", settings=settings), nodes)
    finally:
        federation.down(nodes)
    for way in ("up", "down"):
        arrays, objects, wire = (found[count][way] for count in ("ledger", "objects", "superlink"))
        assert arrays == NODES * ROUNDS * PARAMETERS * 4
        assert arrays < objects < wire < 1.02 * arrays
        headers, envelopes = objects - arrays, wire - objects
        assert headers < 3_000 * NODES * ROUNDS
        assert envelopes < 4_000 * NODES * (ROUNDS + 1)  # a question before the first round
