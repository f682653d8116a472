"""How the last model does from client to client, what clients.json holds.

The global model is judged where the data set is, by the server. How it does once a client has made it its own only the
client can tell: it is asked by one more message, of Flower's type "evaluate". No training reads what comes of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedscale_local import flower_adapter as adapter
from fedscale_local import wire
from fedscale_local.experiment import Experiment
from fedscale_local.replies import REASON_AT_MOST

log = logging.getLogger(__name__)
Each = dict[str, list[float | None]]
"""A number for each client, None where there is none."""


def of_clients(experiment: Experiment, grid: Grid, params: Tensor, buffers: Tensor) -> dict[str, Any]:
    """Each client's figures for the model that is the last one.

    {"train_loss": of the global model on the client's own training examples, one number a client, None without any,
     "test_loss": on its test examples (data/held_out.py); absent where the set has none,
     "personal_test_loss": on the same, after eval_personal_steps gradient steps from the global model on its training
     examples; absent with eval_personal_steps=0,
     the same with accuracy, absent for regression,
     "failures": who did not answer, and why, as in rounds.jsonl; absent without eval_personal_steps}
    """
    data, count = experiment.dataset, len(experiment.partition)
    found: dict[str, Any] = {}
    for of, x, y, partition in (
        ("train", data.x, data.y, experiment.partition),
        ("test", data.test_x, data.test_y, experiment.test_partition),
    ):
        if len(y):
            owner = torch.from_numpy(partition.owners(len(y)))
            each = experiment.task.evaluate_each(params, buffers, x, y, owner, count).tolist()
            found |= {f"{of}_{name}": values for name, values in zip(_names(experiment), each, strict=False)}
    return found | (
        _personal(experiment, grid, params, buffers) if experiment.config.eval_personal_steps else {}
    )


def _names(experiment: Experiment) -> Sequence[str]:
    return ("loss",) if experiment.dataset.kind == "regression" else ("loss", "accuracy")


def _personal(experiment: Experiment, grid: Grid, params: Tensor, buffers: Tensor) -> dict[str, Any]:
    """What the clients say that have training examples for a batch, and test examples."""
    task, config = experiment.task, experiment.config
    nodes = adapter.roster(grid, len(experiment.partition))
    record = wire.model_record(task, params, buffers)
    instructions = ConfigRecord({wire.ROUND: config.num_rounds, wire.PERSONAL: True})
    content = wire.content({wire.ARRAYS: record}, instructions)
    asked = [int(client) for client in experiment.eligible if len(experiment.test_partition[int(client)])]
    messages = [adapter.message_to(nodes[client], content, "evaluate") for client in asked]
    replies = grid.send_and_receive(messages, timeout=config.round_timeout)
    clients = {m.metadata.message_id: client for m, client in zip(messages, asked, strict=True)}
    told, reasons = _told(experiment, replies, clients)
    for client, reason in reasons.items():
        log.warning("client %d did not say how it does with a model of its own: %s", client, reason)
    values: Each = {
        f"personal_test_{name}": [
            told.get(client, {}).get(name) for client in range(len(experiment.partition))
        ]
        for name in _names(experiment)
    }
    return {**values, "failures": [{"client": c, "reason": reason} for c, reason in sorted(reasons.items())]}


def _told(
    experiment: Experiment, replies: Iterable[Message], clients: Mapping[str, int]
) -> tuple[dict[int, dict[str, float]], dict[int, str]]:
    """By client: its figures, or why there are none."""
    told: dict[int, dict[str, float]] = {}
    reasons = dict.fromkeys(clients.values(), "no reply in time")
    for reply in replies:
        client = clients.get(reply.metadata.reply_to_message_id)
        if client is None or client not in reasons:
            continue
        if reply.has_error():
            reasons[client] = str(reply.error.reason)[:REASON_AT_MOST]
            continue
        try:
            told[client] = _figures(experiment, reply)
            del reasons[client]
        except (KeyError, TypeError, ValueError) as error:
            reasons[client] = f"its reply cannot be used ({type(error).__name__}: {error})"
    return told, reasons


def _figures(experiment: Experiment, reply: Message) -> dict[str, float]:
    """Finite numbers, an accuracy from 0 to 1; anything else raises an error."""
    metrics = reply.content.metric_records[wire.METRICS]
    keys = zip(_names(experiment), (wire.TEST_LOSS, wire.TEST_ACCURACY), strict=False)
    found = {name: float(metrics[key]) for name, key in keys}  # type: ignore[arg-type]
    if not all(map(math.isfinite, found.values())) or not 0 <= found.get("accuracy", 0.0) <= 1:
        raise ValueError(f"{found}: expected finite numbers, and an accuracy from 0 to 1")
    return found
