"""Real SuperNodes that hold one client's shard each and nothing else; then one is damaged and one is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import whole_runs

from fedscale_local import federation
from fedscale_local.cli import main
from fedscale_local.data.shard import ARRAYS, HEADER

NODES, BAD, GONE = 3, 1, 2
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


def test_a_run_on_shards_is_the_same_run_and_goes_on_without_those_that_are_damaged_or_gone(
    tmp_path: Path,
) -> None:
    shards, nodes = tmp_path / "the shards", tmp_path / "federation"
    assert main(["shard", *PROBLEM, "--all", f"--out={shards}"]) == 0
    federation.up(nodes, NODES, shards=shards)
    try:
        on_nodes = {"superlink.federation": str(nodes)}
        whole = run(tmp_path / "whole", "engine=superlink", **on_nodes)
        file = shards / str(BAD) / ARRAYS
        file.write_bytes(file.read_bytes()[:-1])
        shutil.rmtree(shards / str(GONE))
        damaged = run(tmp_path / "damaged", "engine=superlink", num_rounds=1, **on_nodes)
    finally:
        federation.down(nodes)
    assert whole.bytes == run(tmp_path / "whole here", "engine.mode=looped", "engine.workers=1").bytes
    for line in damaged.lines:
        told = {failure["client"]: failure["reason"] for failure in line["failures"]}
        assert set(told) == {BAD, GONE}
        assert str(file) in told[BAD] and "is damaged" in told[BAD]
        assert str(shards / str(GONE) / HEADER) in told[GONE] and "No such file" in told[GONE]

    with whole_runs.absent(BAD), whole_runs.absent(GONE):
        without = run(tmp_path / "without here", "engine.mode=looped", "engine.workers=1", num_rounds=1)
    assert json.dumps(without_reasons(damaged)) == json.dumps(without_reasons(without))
    assert damaged.bytes[1] == without.bytes[1] != whole.bytes[1]
