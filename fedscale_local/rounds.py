"""The one loop that runs a round, the same for every strategy and in every engine.

    configure -> send and receive -> check -> aggregate -> evaluate -> record -> checkpoint when due

Whatever ends the loop, the last finished round ends up in a checkpoint.

Replies reach the strategy in the order of their client indices, whatever order they came in, so sums have one order.
A reply that cannot be used is dropped, counted and named; it never ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedscale_local import checkpoint, evaluation, ledger, records, sending, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.checkpoint_writer import Writer
from fedscale_local.client_grid import by_client, take_refusals
from fedscale_local.client_store import OnDisk
from fedscale_local.config import to_container
from fedscale_local.engines.chunks import chunked
from fedscale_local.experiment import Experiment
from fedscale_local.quorum import Exchange, Failures, exchange
from fedscale_local.replies import usable


def run(experiment: Experiment, strategy: Strategy, grid: Grid, run_dir: Path) -> None:
    """All rounds that are still to do: from the newest checkpoint in the run directory, else from the beginning.

    Writes rounds.jsonl, timing.jsonl, checkpoints and, with the last round, clients.json and model.safetensors.
    """
    config, task = experiment.config, experiment.task
    grid = chunked(experiment, grid)
    grid = by_client(grid, len(experiment.partition), experiment.clients_keep_state, config.round_timeout)
    first, arrays = _begin(experiment, strategy, grid, run_dir)
    probe, lines, container = NO_PROBE, run_dir / checkpoint.LINES, to_container(config)
    with Writer(run_dir, config.checkpoint_keep) as writer:
        for round in range(first, config.num_rounds + 1):
            clock = _Clock()
            arrays, record = _round(experiment, strategy, grid, round, arrays, clock)
            is_due = round == config.num_rounds or (
                config.checkpoint_every > 0 and round % config.checkpoint_every == 0
            )
            if round == 0:
                probe = record
                continue
            if round == 1:
                record |= {key: probe[key] + record[key] for key in ("bytes_up", "bytes_down", "failures")}
                record |= {
                    key: ledger.added(probe[key], record[key]) for key in ("bytes_up_by", "bytes_down_by")
                }
                record |= {"probe_bytes_up": probe["bytes_up"], "probe_bytes_down": probe["bytes_down"]}
            before = lines.stat().st_size if lines.exists() else 0
            records.append_line(lines, record)
            kept = grid.settle_clients(round, is_due)  # type: ignore[attr-defined]
            if kept is not None:
                state = _state(experiment, strategy, arrays) | {"clients": kept.dumped}
                finished = checkpoint.Checkpoint(round, state, record, before, container, kept.filed)
                writer.offer(finished, is_due)
            clock.lap("record_seconds")
            timing = {"round": round, "ended_at": time.time()} | clock.parts()
            records.append_line(run_dir / "timing.jsonl", timing)
    params, buffers = wire.from_model_record(arrays, experiment.task)
    if config.eval_clients:
        records.save_clients(run_dir, evaluation.of_clients(experiment, grid, params, buffers))
    records.save_model(run_dir, task.named(params, buffers))


def _begin(experiment: Experiment, strategy: Strategy, grid: Grid, run_dir: Path) -> tuple[int, ArrayRecord]:
    """The first round to do and the model before it; the run directory, strategy and clients are put back to there."""
    task, kept = experiment.task, checkpoint.newest(run_dir).checkpoint
    checkpoint.forget_after(run_dir, kept.round if kept else 0)
    if kept is None:
        records.rewind(run_dir, 0)
        arrays = wire.model_record(task, task.initial_params, task.initial_buffers)
        return getattr(strategy, "first_round", 1), arrays
    arrays = wire.model_record(task, kept.state["params"], kept.state["buffers"])
    adapter.load_strategy(strategy, kept.state["strategy"])
    dumped = kept.state["clients"].items()
    states = OnDisk(run_dir, kept.filed) if kept.filed else {n: wire.load_records(s) for n, s in dumped}
    grid.restore_clients(states)  # type: ignore[attr-defined]
    # Was the round evaluated because it was the last, or is it the last now? Then its line is another.
    record = dict(kept.record) | _evaluation(experiment, kept.round, arrays)
    records.rewind(run_dir, kept.round, kept.before, record)
    return kept.round + 1, arrays


def _round(
    experiment: Experiment, strategy: Strategy, grid: Grid, round: int, arrays: ArrayRecord, clock: _Clock
) -> tuple[ArrayRecord, dict[str, Any]]:
    """One round: the new model and the line that tells of it."""
    config = experiment.config
    client_of = adapter.clients_by_node(grid, len(experiment.partition))

    def exchanged(configure: Callable[..., Iterable[Message]]) -> Exchange:
        with adapter.seeded_globals(config.seed, round):
            messages = list(configure(round, arrays, ConfigRecord(), grid))
        clock.lap("configure_seconds")

        def check(got: list[Message]) -> tuple[list[Message], Failures]:
            return usable(experiment, strategy, round, messages, got, client_of)

        done = exchange(config, grid, messages, check, None if secure is None else secure.take)
        clock.lap("clients_seconds")
        return done

    secure, exchanges = getattr(strategy, "secure", None), list[Exchange]()

    def together(configure: Callable[..., Iterable[Message]]) -> list[Message]:
        """What an exchange brings; with secure aggregation its stages, of which none alone brings anything."""
        for stage in [configure] if secure is None else secure.stages(configure):
            exchanges.append(exchanged(stage))
        return exchanges[-1].good

    if round > 0 and getattr(strategy, "prepares", False):
        strategy.aggregate_prepare(round, together(strategy.configure_prepare))  # type: ignore[attr-defined]
    good = together(strategy.configure_train)
    # A strategy that is not ours says nothing of what else its records hold.
    group_of = sending.group_of if hasattr(strategy, "expects") else lambda key: "parameters"
    down = ledger.by_group(*(ledger.written(e.sent, "dst_node_id", client_of, group_of) for e in exchanges))
    up = ledger.by_group(*(ledger.written(e.received, "src_node_id", client_of, group_of) for e in exchanges))
    failures = [failure for e in exchanges for failure in e.failures]
    failures += [{"client": None, "reason": reason} for reason in take_refusals(grid)]
    asked = sorted({client_of[message.metadata.dst_node_id] for message in exchanges[0].sent})
    aggregated, metrics = None, None
    with adapter.seeded_globals(config.seed, -round - 1):
        if good or getattr(strategy, "mechanism", None) is not None:  # noise tells nothing of who was there
            aggregated, metrics = strategy.aggregate_train(round, good)
    if aggregated is not None:
        arrays = wire.in_dtype(aggregated, experiment.task.dtype)
    clock.lap("aggregate_seconds")
    record: dict[str, Any] = {"round": round, "clients": asked}
    if experiment.hostile:
        record["hostile"] = [client for client in asked if client in experiment.hostile]
    record |= _reported(metrics) | _evaluation(experiment, round, arrays)
    clock.lap("evaluate_seconds")
    record |= {"bytes_up": sum(up.values()), "bytes_down": sum(down.values())}
    return arrays, record | {"bytes_up_by": up, "bytes_down_by": down, "failures": failures}


def _state(experiment: Experiment, strategy: Strategy, arrays: ArrayRecord) -> dict[str, Any]:
    """Everything that the next round needs of model and strategy; it stays as it is."""
    params, buffers = wire.from_model_record(arrays, experiment.task)
    kept = checkpoint.snapshot(adapter.dump_strategy(strategy))
    return {"params": params, "buffers": buffers, "strategy": kept}


def _evaluation(experiment: Experiment, round: int, arrays: ArrayRecord) -> dict[str, float | None]:
    """What a round's line says of the test set; nulls where no evaluation is due."""
    config = experiment.config
    is_due = round > 0 and (round % config.eval_every == 0 or round == config.num_rounds)
    loss, accuracy = _evaluate(experiment, arrays) if is_due else (None, None)
    return {"test_loss": loss, "test_accuracy": accuracy}


def _evaluate(experiment: Experiment, arrays: ArrayRecord) -> tuple[float | None, float | None]:
    """Loss and accuracy on the test set; None where there is none."""
    data = experiment.dataset
    if len(data.test_y) == 0:
        return None, None
    return experiment.task.evaluate(
        *wire.from_model_record(arrays, experiment.task), data.test_x, data.test_y
    )


def _reported(metrics: MetricRecord | None) -> dict[str, Any]:
    """train_loss, and whatever else the strategy reports; a mean over client indices says nothing."""
    named = {key.replace("-", "_"): value for key, value in (metrics or {}).items()}
    return {"train_loss": None} | {key: value for key, value in named.items() if key not in NOT_REPORTED}


NOT_REPORTED = ("round", "clients", "client")
NO_PROBE: dict[str, Any] = {
    "bytes_up": 0,
    "bytes_down": 0,
    "bytes_up_by": {},
    "bytes_down_by": {},
    "failures": [],
}


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = round(self.laps.get(name, 0.0) + now - self.last, 6), now

    def parts(self) -> dict[str, float]:
        return {"round_seconds": round(time.perf_counter() - self.start, 6), **self.laps}
