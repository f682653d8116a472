"""Real SuperNodes that hold one client's shard each and nothing else; then one of them is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import whole_runs

from fedscale_local import federation
from fedscale_local.cli import main
from fedscale_local.data.shard import ARRAYS

NODES, BAD = 2, 1
PROBLEM = ["data=synthetic", f"num_clients={NODES}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


def run(run_dir: Path, *overrides: str, **settings: Any) -> whole_runs.Run:
    settings = {"num_rounds": 2, "client.local_steps": 3} | settings
    return whole_runs.run(run_dir, *PROBLEM, "scaling=adam", *overrides, settings=settings)


def without_reasons(found: whole_runs.Run) -> list[dict[str, Any]]:
    return [line | {"failures": [failure["client"] for failure in line["failures"]]} for line in found.lines]


def test_a_run_on_shards_is_the_same_run_and_goes_on_without_a_damaged_one(tmp_path: Path) -> None:
    shards, nodes = tmp_path / "the shards", tmp_path / "federation"
    assert main(["shard", *PROBLEM, "--all", f"--out={shards}"]) == 0
    federation.up(nodes, NODES, shards=shards)
    try:
        on_nodes = {"superlink.federation": str(nodes)}
        whole = run(tmp_path / "whole", "engine=superlink", **on_nodes)
        file = shards / str(BAD) / ARRAYS
        file.write_bytes(file.read_bytes()[:-1])
        damaged = run(tmp_path / "damaged", "engine=superlink", **on_nodes)
    finally:
        federation.down(nodes)
    assert whole.bytes == run(tmp_path / "whole here", "engine.mode=looped", "engine.workers=1").bytes
    for line in damaged.lines:
        assert line["failures"] and all(
            failure["client"] == BAD and str(file) in failure["reason"] and "is damaged" in failure["reason"]
            for failure in line["failures"]
        )

    with whole_runs.absent(BAD):
        without = run(tmp_path / "without here", "engine.mode=looped", "engine.workers=1")
    assert json.dumps(without_reasons(damaged)) == json.dumps(without_reasons(without))
    assert damaged.bytes[1] == without.bytes[1] != whole.bytes[1]
