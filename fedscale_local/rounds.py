"""The one loop that runs a round, the same for every strategy and in every engine.

    configure -> send and receive -> check -> aggregate -> evaluate -> record -> checkpoint when due

Replies reach the strategy in the order of their client indices, whatever order they came in, so sums have one order.
A reply that cannot be used is dropped, counted and named; it never ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedscale_local import checkpoint, records
from fedscale_local import flower_adapter as adapter
from fedscale_local.client_grid import by_client
from fedscale_local.config import to_json
from fedscale_local.experiment import Experiment
from fedscale_local.quorum import exchange
from fedscale_local.replies import usable


def run(experiment: Experiment, strategy: Strategy, grid: Grid, run_dir: Path) -> None:
    """All rounds that are still to do: from the newest checkpoint in the run directory, else from the beginning.

    Writes rounds.jsonl, timing.jsonl, checkpoints and, with the last round, model.safetensors.
    """
    config, task = experiment.config, experiment.task
    grid = by_client(grid, len(experiment.partition), experiment.clients_keep_state)
    arrays = adapter.to_record(
        [(task.layout, task.initial_params), (task.buffer_layout, task.initial_buffers)]
    )
    first, probe = getattr(strategy, "first_round", 1), {"bytes_up": 0, "bytes_down": 0, "failures": []}
    kept = checkpoint.newest(run_dir, to_json(config))
    if kept is not None:
        arrays, first = _restore(experiment, strategy, grid, kept), kept.round + 1
    records.truncate(run_dir, first)
    for round in range(first, config.num_rounds + 1):
        clock = _Clock()
        arrays, record = _round(experiment, strategy, grid, round, arrays, clock)
        if round == 0:
            probe = record
            continue
        if round == 1:
            record |= {key: probe[key] + record[key] for key in ("bytes_up", "bytes_down", "failures")}
            record |= {"probe_bytes_up": probe["bytes_up"], "probe_bytes_down": probe["bytes_down"]}
        records.append_line(run_dir / "rounds.jsonl", record)
        is_due = config.checkpoint_every and round % config.checkpoint_every == 0
        if is_due or round == config.num_rounds:
            state = _state(experiment, strategy, grid, arrays)
            checkpoint.write(run_dir, checkpoint.Checkpoint(round, state), to_json(config))
        clock.lap("record_seconds")
        records.append_line(run_dir / "timing.jsonl", {"round": round} | clock.parts())
    records.save_model(run_dir, task.named(*_vectors(experiment, arrays)))


def _round(
    experiment: Experiment, strategy: Strategy, grid: Grid, round: int, arrays: ArrayRecord, clock: _Clock
) -> tuple[ArrayRecord, dict[str, Any]]:
    """One round: the new model and the line that tells of it."""
    config = experiment.config
    client_of = {node: client for client, node in adapter.roster(grid, len(experiment.partition)).items()}
    with adapter.seeded_globals(config.seed, round):
        messages = list(strategy.configure_train(round, arrays, ConfigRecord(), grid))
    asked = sorted(client_of[message.metadata.dst_node_id] for message in messages)
    clock.lap("configure_seconds")
    sent, received, good, failures = exchange(
        config, grid, messages, lambda got: usable(experiment, strategy, round, messages, got, client_of)
    )
    down, up = _total_bytes(sent), _total_bytes(received)
    clock.lap("clients_seconds")
    aggregated, metrics = None, None
    with adapter.seeded_globals(config.seed, -round - 1):
        if good:
            aggregated, metrics = strategy.aggregate_train(round, good)
    if aggregated is not None:
        arrays = adapter.in_dtype(aggregated, experiment.task.dtype)
    clock.lap("aggregate_seconds")
    is_due = round > 0 and (round % config.eval_every == 0 or round == config.num_rounds)
    test_loss, test_accuracy = _evaluate(experiment, arrays) if is_due else (None, None)
    clock.lap("evaluate_seconds")
    record = _reported(metrics) | {"test_loss": test_loss, "test_accuracy": test_accuracy}
    record = {"round": round, "clients": asked} | record
    return arrays, record | {"bytes_up": up, "bytes_down": down, "failures": failures}


def _state(experiment: Experiment, strategy: Strategy, grid: Grid, arrays: ArrayRecord) -> dict[str, Any]:
    """Everything that the next round needs: model, strategy, and what the clients keep."""
    params, buffers = _vectors(experiment, arrays)
    clients = grid.client_states()  # type: ignore[attr-defined]
    return {
        "params": params,
        "buffers": buffers,
        "strategy": adapter.dump_strategy(strategy),
        "clients": {node: adapter.dump_records(records) for node, records in clients.items()},
    }


def _restore(
    experiment: Experiment, strategy: Strategy, grid: Grid, kept: checkpoint.Checkpoint
) -> ArrayRecord:
    """Put strategy and clients back to where the checkpoint left them; its model."""
    task, state = experiment.task, kept.state
    adapter.load_strategy(strategy, state["strategy"])
    clients = {node: adapter.load_records(records) for node, records in state["clients"].items()}
    grid.restore_clients(clients)  # type: ignore[attr-defined]
    return adapter.to_record([(task.layout, state["params"]), (task.buffer_layout, state["buffers"])])


def _evaluate(experiment: Experiment, arrays: ArrayRecord) -> tuple[float | None, float | None]:
    """Loss and accuracy on the test set; None where there is none."""
    data = experiment.dataset
    if len(data.test_y) == 0:
        return None, None
    return experiment.task.evaluate(*_vectors(experiment, arrays), data.test_x, data.test_y)


def _vectors(experiment: Experiment, arrays: ArrayRecord) -> tuple[Tensor, Tensor]:
    """The flat parameters (d,) and buffers of a model's record."""
    task = experiment.task
    params, buffers = (
        adapter.from_record(arrays, part, task.dtype) for part in (task.layout, task.buffer_layout)
    )
    return params, buffers


def _reported(metrics: MetricRecord | None) -> dict[str, Any]:
    """train_loss, and whatever else the strategy reports; a mean over client indices says nothing."""
    named = {key.replace("-", "_"): value for key, value in (metrics or {}).items()}
    return {"train_loss": None} | {key: value for key, value in named.items() if key not in NOT_REPORTED}


NOT_REPORTED = ("round", "clients", "client")


def _total_bytes(messages: Iterable[Message]) -> int:
    """Array bytes of all messages; those of a round often share their content, which is counted once each."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        if isinstance(message, Message) and message.has_content():
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
