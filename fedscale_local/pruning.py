"""The median rule by rounds: a run that is worse than the median of the whole trials before it is stopped.

After Golovin et al. 2017 (Vizier, the median stopping rule) as Optuna's MedianPruner has it: the best value so far
against the median of the others' values in that round. A run is held against runs of its own seed, and the verdict is
a function of its records alone, so it is the same however fast or in which order runs go.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedscale_local.tail import Tail

POLL_SECONDS = 0.2
Curve = Mapping[int, float]
"""Round -> value, for the rounds in which there is one."""


class Limits(NamedTuple):
    """In each of these rounds the best value so far has to be at least as good as the limit."""

    metric: str
    is_maximized: bool
    rounds: tuple[tuple[int, float], ...]


def limits(
    metric: str, is_maximized: bool, whole: Sequence[Curve], after_trials: int, after_rounds: int
) -> Limits:
    """The medians of these curves, in rounds after `after_rounds` in which at least `after_trials` have a value.

    >>> limits("test_loss", False, [{1: 3.0, 2: 1.0}, {1: 4.0, 2: 2.0}, {1: 5.0}], 2, 1).rounds
    ((2, 1.5),)
    """
    rounds = sorted({round for curve in whole for round in curve if round > after_rounds})
    there = {round: [curve[round] for curve in whole if round in curve] for round in rounds}
    medians = ((round, statistics.median(v)) for round, v in there.items() if len(v) >= after_trials)
    return Limits(metric, is_maximized, tuple(medians))


def verdict(curve: Curve, against: Limits) -> int | None:
    """The first round in which a run falls behind; None if it never does.

    >>> verdict({1: 9.0, 2: 1.2, 3: 1.4}, Limits("test_loss", False, ((1, 9.5), (2, 1.5), (3, 1.1))))
    3
    """
    sign = -1 if against.is_maximized else 1
    known = dict(against.rounds)
    best = math.inf
    for round in sorted(curve):
        best = min(best, sign * curve[round])
        if round in known and best > sign * known[round]:
            return round
    return None


def curve_of(records: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """The values of a metric in the records of a run."""
    return {r["round"]: float(r[metric]) for r in records if isinstance(r.get(metric), int | float)}


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, as far as it got."""
    return Tail(run_dir / "rounds.jsonl").read()[0]


class Watch:
    """What `watching` has seen: the round in which the run fell behind."""

    round: int | None = None


@contextmanager
def watching(run_dir: Path, against: Limits) -> Iterator[Watch]:
    """Interrupt this process, as Ctrl-C does, as soon as the run falls behind."""
    seen, stop, tail, curve = Watch(), threading.Event(), Tail(run_dir / "rounds.jsonl"), dict[int, float]()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            curve.update(curve_of(tail.read()[0], against.metric))
            seen.round = verdict(curve, against)
            if seen.round is not None:
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch, name="pruning", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def cut(run_dir: Path, round: int, against: Limits) -> None:
    """Let the run end with the round in which it fell behind, and its manifest say so."""
    from fedscale_local import checkpoint, records

    before, lines = 0, (run_dir / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    found = [json.loads(line) for line in lines]
    place = next(i for i, record in enumerate(found) if record["round"] == round)
    before = sum(map(len, lines[:place]))
    checkpoint.forget_after(run_dir, round)
    records.rewind(run_dir, round, before, found[place])
    best = (max if against.is_maximized else min)(curve_of(found[: place + 1], against.metric).values())
    words = f"the best {against.metric} {best:.6g} is behind {dict(against.rounds)[round]:.6g}"
    records.finish(run_dir, f"pruned: in round {round} {words}, the median of earlier trials")
