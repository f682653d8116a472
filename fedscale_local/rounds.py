"""The one loop that runs a round, the same for every strategy and in every engine.

    configure -> send and receive -> check -> aggregate -> evaluate -> record

Replies reach the strategy in the order of their client indices, whatever order they came in, so sums have one order.
A reply that cannot be used is dropped, counted and named; it never ends the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedscale_local import flower_adapter as adapter
from fedscale_local.client_grid import by_client
from fedscale_local.experiment import Experiment
from fedscale_local.records import append_line, save_model

Failures = list[dict[str, Any]]


def run(experiment: Experiment, strategy: Strategy, grid: Grid, run_dir: Path) -> None:
    """All rounds of a run; writes rounds.jsonl, timing.jsonl and, at the end, model.safetensors."""
    config, task = experiment.config, experiment.task
    grid = by_client(grid, len(experiment.partition))
    client_of = {node: client for client, node in adapter.roster(grid, len(experiment.partition)).items()}
    arrays = adapter.to_record(
        [(task.layout, task.initial_params), (task.buffer_layout, task.initial_buffers)]
    )
    probe_bytes = {"probe_bytes_up": 0, "probe_bytes_down": 0}
    for round in range(getattr(strategy, "first_round", 1), config.num_rounds + 1):
        clock = _Clock()
        with adapter.seeded_globals(config.seed, round):
            messages = list(strategy.configure_train(round, arrays, ConfigRecord(), grid))
        asked = sorted(client_of[message.metadata.dst_node_id] for message in messages)
        down = _total_bytes(messages)
        clock.lap("configure_seconds")
        replies = list(grid.send_and_receive(messages))
        up = _total_bytes(replies)
        clock.lap("clients_seconds")
        good, failures = usable(experiment, messages, replies, client_of)
        with adapter.seeded_globals(config.seed, -round - 1):
            aggregated, metrics = strategy.aggregate_train(round, good)
        if aggregated is not None:
            arrays = aggregated
        clock.lap("aggregate_seconds")
        if round == 0:
            probe_bytes = {"probe_bytes_up": up, "probe_bytes_down": down}
            continue
        evaluated = round % config.eval_every == 0 or round == config.num_rounds
        test_loss, test_accuracy = _evaluate(experiment, arrays) if evaluated else (None, None)
        clock.lap("evaluate_seconds")
        record: dict[str, Any] = {"round": round, "clients": asked}
        record |= _split_metrics(metrics, test_loss, test_accuracy)
        record |= {"bytes_up": up, "bytes_down": down, "failures": failures}
        if round == 1:
            record |= probe_bytes
            record["bytes_up"] += probe_bytes["probe_bytes_up"]
            record["bytes_down"] += probe_bytes["probe_bytes_down"]
        if round == config.num_rounds:
            save_model(run_dir, _named(experiment, arrays))
        append_line(run_dir / "rounds.jsonl", record)
        append_line(run_dir / "timing.jsonl", {"round": round} | clock.parts())


def usable(
    experiment: Experiment, sent: Iterable[Message], replies: Iterable[Message], client_of: dict[int, int]
) -> tuple[list[Message], Failures]:
    """The replies that a strategy may see, in client order, and why the others were dropped."""
    waiting = {m.metadata.message_id: client_of[m.metadata.dst_node_id] for m in sent}
    good: dict[int, Message] = {}
    failures: dict[int, str] = {}
    strangers: Failures = []
    for reply in replies:
        client = waiting.pop(reply.metadata.reply_to_message_id, None)
        if client is None:
            strangers.append({"client": None, "reason": "a reply to no message of this round"})
            continue
        reason = reply.error.reason if reply.has_error() else _fault(experiment, reply)
        if reason is None:
            good[client] = reply
        else:
            failures[client] = str(reason)
    failures |= dict.fromkeys(waiting.values(), "no reply in time")
    named = [{"client": client, "reason": failures[client]} for client in sorted(failures)]
    return [good[client] for client in sorted(good)], named + strangers


def _fault(experiment: Experiment, reply: Message) -> str | None:
    """Why a reply's content cannot be used, or None."""
    content, task = reply.content, experiment.task
    for key, record in content.array_records.items():
        if key == adapter.ARRAYS:
            try:
                vectors = [
                    adapter.from_record(record, layout, task.dtype)
                    for layout in (task.layout, task.buffer_layout)
                ]
            except ValueError as error:
                return f"arrays: {error}"
        else:
            vectors = [torch.from_numpy(array.numpy()) for array in record.values()]
        if not all(bool(vector.isfinite().all()) for vector in vectors):
            return f"{key}: not all numbers are finite"
    weights = [m[adapter.NUM_EXAMPLES] for m in content.metric_records.values() if adapter.NUM_EXAMPLES in m]
    if any(not isinstance(w, int | float) or not math.isfinite(w) or w <= 0 for w in weights):
        return f"{adapter.NUM_EXAMPLES}={weights[0]}: expected a number above 0"
    return None


def _evaluate(experiment: Experiment, arrays: ArrayRecord) -> tuple[float | None, float | None]:
    task, data = experiment.task, experiment.dataset
    if len(data.test_y) == 0:
        return None, None
    params, buffers = (
        adapter.from_record(arrays, layout, task.dtype) for layout in (task.layout, task.buffer_layout)
    )
    return task.evaluate(params, buffers, data.test_x, data.test_y)


def _named(experiment: Experiment, arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    task = experiment.task
    params, buffers = (
        adapter.from_record(arrays, layout, task.dtype) for layout in (task.layout, task.buffer_layout)
    )
    return task.named(params, buffers)


def _split_metrics(
    metrics: MetricRecord | None, test_loss: float | None, test_accuracy: float | None
) -> dict[str, Any]:
    """train_loss, then the test's figures, then whatever else the strategy reports about itself."""
    reported = {key.replace("-", "_"): value for key, value in (metrics or {}).items()}
    return {
        "train_loss": reported.pop("train_loss", None),
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        **reported,
    }


def _total_bytes(messages: Iterable[Message]) -> int:
    """Array bytes of all messages; those of a round often share their content, which is counted once each."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        if message.has_content():
            key = id(message.content)
            sizes[key] = sizes[key] if key in sizes else adapter.num_bytes(message.content)
            total += sizes[key]
    return total


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = round(now - self.last, 6), now

    def parts(self) -> dict[str, float]:
        return {"round_seconds": round(time.perf_counter() - self.start, 6), **self.laps}
