"""Which method is better, at which budget, by how much, and how sure that is: all that a comparison says.

Every run is taken at the last measurement within the budget. Methods are compared in pairs over the seeds that both
have; what keeps two runs from being a pair is said, never passed over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fedscale_local.errors import RunDirError
from fedscale_local.reports import quantities
from fedscale_local.reports.budget import Budget, largest_common
from fedscale_local.reports.clock import Clock
from fedscale_local.reports.histories import DEFAULT_CLOCK, Method
from fedscale_local.reports.measures import (
    Metric,
    Row,
    choose_metric,
    common_window,
    easiest_best,
    of_clients,
    row_of,
)
from fedscale_local.reports.statistics import (
    LEVEL,
    MIN_SEEDS,
    Paired,
    holm,
    mean_ranks,
    noise_floor,
    paired,
)
from fedscale_local.reports.tuning import Tuned


@dataclass(frozen=True)
class Pair:
    """Two methods, the better mean first; p is the t-test's after Holm, NaN where nothing was tested."""

    first: Method
    second: Method
    seeds: tuple[int, ...]
    result: Paired | None
    p: float
    words: str

    @property
    def is_decided(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison says. `target` is a value of the metric, NaN for none; rows are best first.

    clients: the keys of clients.json that are told of.
    """

    metric: Metric
    budget: Budget
    target: float
    clients: list[str]
    rows: list[Row]
    pairs: list[Pair]
    noise: tuple[float, float] | None
    noise_words: str
    notes: list[str]
    checks: list[str]
    tuned: Sequence[Tuned] = ()
    clock: Clock = DEFAULT_CLOCK


def leads(comparison: Comparison) -> bool:
    """Is the first method decided to be better than every other?"""
    first = comparison.rows[0].method
    won = [pair for pair in comparison.pairs if pair.is_decided and pair.first is first]
    return len(won) == len(comparison.rows) - 1


def compare(
    methods: Sequence[Method],
    budget: Budget | None,
    target: float | None,
    left_out: Sequence[str],
    tuned: Sequence[Tuned] = (),
    clock: Clock = DEFAULT_CLOCK,
) -> Comparison:
    """Compare these methods; no budget: rounds, as many as every run has; no target: what every run reached.

    left_out: notes on what is not compared, and on the tuning; tuned: how the methods were tuned, where they were;
    clock: what told the simulated seconds.

    Raises:
        RunDirError: no run is left, none has the metric, or nothing was measured within the budget.
    """
    runs = [run for method in methods for run in method.runs.values()]
    if not runs:
        told = f" ({left_out[0]})" if left_out else ""
        raise RunDirError("compare", f"no finished run is left to compare{told}", "name finished runs")
    metric = choose_metric(runs)
    notes = [*left_out]
    chosen = budget or largest_common(runs, notes)
    notes += chosen.remarks(runs)
    goal = easiest_best(runs, metric, chosen) if target is None else target
    window = common_window(runs, metric, chosen)
    clients = of_clients(runs)
    rows = [row_of(method, metric, chosen, goal, window, clients) for method in methods]
    rows = _ranked(rows, metric)
    pairs, checks, mismatch = _pairs(rows, metric, chosen)
    notes += [*mismatch, *_remarks(rows, chosen)]
    noise = noise_floor([_known(row.columns["final"]) for row in rows])
    words = _noise_words(noise, metric)
    return Comparison(metric, chosen, goal, clients, rows, pairs, noise, words, notes, checks, tuned, clock)


def _known(column: dict[int, float]) -> list[float]:
    return [value for value in column.values() if not math.isnan(value)]


# ---------------------------------------------------------------- methods beside each other


def _ranked(rows: list[Row], metric: Metric) -> list[Row]:
    """Rows with their mean ranks over the seeds that all have, best mean first."""
    seeds = set.intersection(
        *({s for s, v in row.columns["final"].items() if not math.isnan(v)} for row in rows)
    )
    same = len({problem(row.method) for row in rows}) == 1
    if seeds and same and len(rows) > 1:
        table = np.array([[row.columns["final"][seed] for row in rows] for seed in sorted(seeds)])
        ranks = mean_ranks(table, metric.larger_is_better)
        rows = [replace(row, rank=float(rank)) for row, rank in zip(rows, ranks, strict=True)]
    sign = -1 if metric.larger_is_better else 1

    def place(row: Row) -> tuple[bool, float]:
        mean = row.of("final").mean
        return math.isnan(mean), sign * mean

    return sorted(rows, key=place)


def problem(method: Method) -> tuple[tuple[str, str], ...]:
    """What two runs must have in common to be a pair: the data, how they are divided, among how many."""
    parts = ("data.", "partition.", "num_clients")
    return tuple((k, repr(v)) for k, v in method.any_run.method.items() if k.startswith(parts))


def _pairs(rows: Sequence[Row], metric: Metric, budget: Budget) -> tuple[list[Pair], list[str], list[str]]:
    """Every two methods, corrected by Holm over those with enough seeds; what the files say of the pairs; a note where
    they say that runs do not share what they should."""
    found: list[Pair] = []
    mismatches: list[Mismatch] = []
    num_checked = 0
    problems = {row.method.name: problem(row.method) for row in rows}
    for one, other in combinations(rows, 2):
        apart = [k for k, _ in set(problems[one.method.name]) ^ set(problems[other.method.name])]
        if apart:
            words = f"{one.method.name} and {other.method.name} are no pairs and are not compared: they differ in "
            words += f"{', '.join(sorted(set(apart)))}."
            found.append(Pair(one.method, other.method, (), None, math.nan, words))
            continue
        common = sorted(set(one.method.runs) & set(other.method.runs))
        seeds = []
        for seed in common:
            said = _mismatch(one.method, other.method, seed)
            mismatches += [said] if said else []
            num_checked += 1
            seeds += [seed] if said is None or said.is_pair else []
        found.append(_pair(one, other, tuple(seeds), metric))
    enough = [
        i for i, pair in enumerate(found) if pair.result is not None and pair.result.estimate.n >= MIN_SEEDS
    ]
    corrected = dict(zip(enough, holm([found[i].result.t_p for i in enough]), strict=True))  # type: ignore[union-attr]
    done = [
        replace(pair, p=p, words=_verdict(pair, p, metric, budget)) if not pair.words else pair
        for i, pair in enumerate(found)
        for p in [corrected.get(i, math.nan)]
    ]
    return done, _checks(rows, mismatches, num_checked), _note(mismatches, num_checked)


SHARED = {
    "partition": "clients hold other examples, so this seed is no pair and is left out",
    "initial_model": "the models before round 1 differ",
    "batches": "clients drew other mini-batches",
}
"""What else common random numbers are, and how it is told that two runs have it not in common."""


class Mismatch(NamedTuple):
    """What two runs of a seed should share and do not: in a word or two, in a sentence; and are they still a pair?"""

    what: str
    words: str
    is_pair: bool


def _mismatch(one: Method, other: Method, seed: int) -> Mismatch | None:
    """What differs between the two runs of a seed that should share their randomness; None: nothing that files tell."""
    a, b = one.runs[seed], other.runs[seed]
    where = f"Seed {seed}, {one.name} and {other.name}"
    if a.holders != b.holders:
        words = f"{where}: partition.json differs, so this seed is no pair and is left out."
        return Mismatch("partition", words, False)
    n = min(len(a.rounds), len(b.rounds))
    apart = np.flatnonzero((a.clients[:n] != b.clients[:n]) | (a.rounds[:n] != b.rounds[:n]))
    if apart.size:
        words = f"{where}: other clients were sampled, first in round {a.rounds[apart[0]]}."
        return Mismatch("sampled clients", words, True)
    for key in SHARED:
        if key in a.shared and key in b.shared and a.shared[key] != b.shared[key]:
            return Mismatch(key.replace("_", " "), f"{where}: {SHARED[key]}.", key != "partition")
    return None


def _note(mismatches: Sequence[Mismatch], num_checked: int) -> list[str]:
    """What a reader must know before the verdicts: which randomness is not common, in how many pairs of runs."""
    if not mismatches:
        return []
    counts = Counter(mismatch.what for mismatch in mismatches)
    told = ", ".join(f"{what} in {count:,}" for what, count in counts.items())
    words = f"Common random numbers do not hold: of {num_checked:,} pairs of runs under one seed, these differ in what "
    words += f'the seed should decide alike: {told}. "How this is decided" lists them.'
    if all(mismatch.is_pair for mismatch in mismatches):
        return [f"{words} The differences are still taken seed by seed, but chance is part of them."]
    return [f"{words} Pairs with another partition are left out."]


def _pair(one: Row, other: Row, seeds: tuple[int, ...], metric: Metric) -> Pair:
    """The paired result, the better mean over these seeds first; words only where nothing can be computed."""
    a, b = (np.array([row.columns["final"][seed] for seed in seeds]) for row in (one, other))
    names = f"{one.method.name} and {other.method.name}"
    if not seeds:
        words = f"{names} have no seed in common and are not compared."
        return Pair(one.method, other.method, seeds, None, math.nan, words)
    lost = [row.method.name for row, values in ((one, a), (other, b)) if np.isnan(values).any()]
    if lost:
        words = (
            f"{names} are not compared: {' and '.join(lost)} diverged or was not measured for some seeds, "
        )
        words += "and the others alone would flatter it."
        return Pair(one.method, other.method, seeds, None, math.nan, words)
    if (a.mean() < b.mean()) == metric.larger_is_better and a.mean() != b.mean():
        one, other, a, b = other, one, b, a
    return Pair(one.method, other.method, seeds, paired(a.tolist(), b.tolist()), math.nan, "")


def p_text(p: float) -> str:
    """
    >>> p_text(0.03125), p_text(0.00004), p_text(0.5)
    ('p = 0.031', 'p < 0.001', 'p = 0.50')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def _verdict(pair: Pair, p: float, metric: Metric, budget: Budget) -> str:
    """One plain sentence, or two."""
    assert pair.result is not None
    first, second, known = pair.first.name, pair.second.name, pair.result.estimate
    signed = known if metric.larger_is_better else replace(known, mean=-known.mean)
    amount = f"{metric.amount(signed.mean, signed.half)} {metric.unit} {budget.words}"
    seeds = f"{known.n} seed{'' if known.n == 1 else 's'}"
    if known.mean == 0 and not known.half > 0:
        return f"{first} and {second} are the same {budget.words} in each of {seeds}."
    if known.n < MIN_SEEDS:
        return (
            f"Not enough seeds to name a winner: {first} is ahead of {second} by {amount}, over {seeds}; "
            f"at least {MIN_SEEDS} are needed."
        )
    flips = f"sign flips p {'=' if pair.result.flip_p >= 0.001 else '<'} {max(pair.result.flip_p, 0.001):.2g}"
    told = f"{seeds}, {p_text(p)} after Holm, {flips}"
    if p >= LEVEL:
        return f"No difference is shown between {first} and {second}: {amount}, {told}."
    words = f"{first} is better than {second} by {amount}, {told}."
    if 2 / 2**known.n < LEVEL <= pair.result.flip_p:
        words += " The sign flips, which need no normal distribution, do not confirm it: run more seeds."
    return words


# ---------------------------------------------------------------- what a reader should know

SHOWN_MISMATCHES = 8


def _checks(rows: Sequence[Row], mismatches: Sequence[Mismatch], num_checked: int) -> list[str]:
    """What the files say about common random numbers."""
    if not num_checked:
        return []
    if not mismatches:
        words = f"Checked in {num_checked:,} pairs of runs: under one seed every method sampled the same clients in "
        words += "each round"
        runs = [run for row in rows for run in row.method.runs.values()]
        words += (
            ", and partition.json is the same."
            if all(run.holders for run in runs)
            else "; partition.json is not there to check."
        )
        if all(set(SHARED) <= set(run.shared) for run in runs):
            words += " So are, by their sums in manifest.json, who holds which examples, the model before round 1 and "
            words += "the first mini-batches."
        return [words]
    more = len(mismatches) - SHOWN_MISMATCHES
    tail = [f"... and {more:,} more such pairs of runs."] if more > 0 else []
    return [*(mismatch.words for mismatch in mismatches[:SHOWN_MISMATCHES]), *tail]


def _remarks(rows: Sequence[Row], budget: Budget) -> list[str]:
    notes = []
    seeds = {row.method.name: set(row.method.runs) for row in rows}
    every = set().union(*seeds.values())
    for name, own in seeds.items():
        if own != every:
            missing = ", ".join(map(str, sorted(every - own)))
            notes.append(f"{name} has no run of seed {missing}: pairs are made of the seeds that both have.")
    notes += [
        f"{row.method.name}, seed {seed}: not finite or not measured at the end of the budget."
        for row in rows
        for seed, value in row.columns["final"].items()
        if math.isnan(value)
    ]
    most = 12
    notes = (
        [*notes[:most], f"... and {len(notes) - most:,} more such remarks."] if len(notes) > most else notes
    )
    sent = [row.of("bytes_spent").mean for row in rows]
    if budget.axis != "bytes" and min(sent) > 0 and max(sent) > 1.01 * min(sent):
        low, high = (quantities.bytes_text(value) for value in (min(sent), max(sent)))
        at = budget.command_for_bytes(min(sent))
        notes.append(f"Methods sent {low} to {high} a run within this budget; {at} compares at equal bytes.")
    return notes


def _noise_words(noise: tuple[float, float] | None, metric: Metric) -> str:
    if noise is None:
        return "No method has two seeds, so nothing is known about the noise between seeds."
    s, reach = (value * (100 if metric.larger_is_better else 1) for value in noise)
    unit = " points" if metric.larger_is_better else ""
    return (
        f"Noise floor: the seed alone moves the {metric.title} of a run by a standard deviation of {s:.3g}{unit}; two "
        f"runs of one method with different seeds differ by less than {reach:.3g}{unit} in 95 % of cases."
    )
