"""The ledger: bytes by client and by group, and in which group the vectors of a method are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from whole_runs import NATURAL, run, save_arrays

from fedscale_local import flower_adapter as adapter
from fedscale_local import ledger, sending, wire

CLIENT_OF = {11: 0, 12: 1, 13: 2}


def message(node: int, sizes: dict[str, int]) -> Any:
    """A message to this node with float32 vectors of these lengths by key, and settings that are not counted."""
    adapter.become_server()
    records = {key: wire.vector_record(torch.zeros(size)) for key, size in sizes.items()}
    return adapter.message_to(
        node, wire.content(records, ConfigRecord({"round": 1}), MetricRecord({"loss": 0.5}))
    )


def test_bytes_are_counted_by_client_and_group() -> None:
    """Client 0 is sent the model and two vectors of one group, client 1 the model and D-hat, client 2 nothing."""
    messages = [
        message(11, {"arrays": 10, "first": 10, "second": 10, "second_clock": 1}),
        message(12, {"arrays": 10, "preconditioner": 10}),
        adapter.message_to(13, RecordDict()),
    ]
    book = ledger.written(messages, "dst_node_id", CLIENT_OF, sending.group_of)
    assert book == {
        0: {"parameters": 40, "moments": 84},
        1: {"parameters": 40, "preconditioner": 40},
        2: {},
    }
    assert ledger.by_group(book) == {"moments": 84, "parameters": 80, "preconditioner": 40}


def test_what_one_client_is_sent_twice_counts_twice_and_for_no_other() -> None:
    """Two clients are sent one content, one of them once more, and somebody whom nobody knows is sent it too."""
    shared = message(11, {"arrays": 3}).content
    messages = [adapter.message_to(node, shared) for node in (11, 12, 99)]
    messages.append(message(12, {"statistic": 2}))
    book = ledger.written(messages, "dst_node_id", CLIENT_OF, sending.group_of)
    assert book == {0: {"parameters": 12}, 1: {"parameters": 12, "statistic": 8}, None: {"parameters": 12}}
    assert ledger.by_group(book, book) == {"parameters": 72, "statistic": 16}


D = (3 + 1) * 2
MOMENTS = {"parameters": D, "moments": 2 * D + 2}


@pytest.mark.parametrize(
    ("overrides", "up", "down"),
    [
        (("strategy=local_adam_averaged",), MOMENTS, MOMENTS),
        (("strategy=fedlada",), {"parameters": D, "moments": D + 1}, {"parameters": D, "control": D, "moments": D + 1}),
        (("strategy=scaffold",), {"parameters": D, "control": D}, {"parameters": D, "control": D}),
        (("scaling=adam",), {"parameters": D, "statistic": D}, {"parameters": D, "preconditioner": D}),
    ],
    ids=["Local Adam", "FedLADA", "SCAFFOLD", "savic"],
)  # fmt: skip
def test_clocks_are_counted_with_their_moments(
    overrides: tuple[str, ...], up: dict[str, int], down: dict[str, int], tmp_path: Path
) -> None:
    """In numbers a client, round 2: two moments and the clock of each; the last mean step is no moment."""
    x = [np.random.default_rng(m).normal(size=(4, 3)) for m in range(2)]
    arrays = save_arrays(tmp_path / "two.npz", x, [np.arange(4) % 2] * 2)
    settings = {"data.path": str(arrays), "num_rounds": 2, "client.local_steps": 1}
    line = run(tmp_path / "run", *NATURAL, *overrides, settings=settings).lines[1]
    assert line["bytes_up_by"] == {group: 2 * 4 * count for group, count in up.items()}
    assert line["bytes_down_by"] == {group: 2 * 4 * count for group, count in down.items()}
