"""The tables of a comparison as rows of text, for the page, for the terminal and for CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedscale_local.reports import quantities, tuning
from fedscale_local.reports.comparison import Comparison, Pair
from fedscale_local.reports.histories import PERSONAL
from fedscale_local.reports.measures import COSTS, FAIRNESS, Metric, Row, of_column
from fedscale_local.reports.statistics import LEVEL, MIN_SEEDS, Estimate

SHOWN_PAIRS = 60
AREA = "mean of curve"  # the area under the compared metric's curve over its width
SHOWN_VERDICTS = 20
TIMES = ("simulated", "seconds")

METHOD = (
    f"Decided by the paired t-test on the differences over seeds (Student 1908) at {LEVEL:.0%}, its p corrected by "
    f"Holm (1979) over all pairs with {MIN_SEEDS} seeds or more. Fewer seeds name no winner: whether their differences "
    "are near normal cannot be seen, and tests on so few are known to mislead (Colas et al. 2018). Intervals are 95 % "
    "t intervals of one mean or one pair on its own, uncorrected. Beside it stands the two-sided sign-flip permutation "
    "test (Fisher 1935), uncorrected, which needs no normality: exact up to 15 pairs, else from 20,000 seeded draws. "
    "It cannot decide with few seeds, as n pairs give no p below 2 / 2^n: 0.0625 with five."
)

COST_TITLES: dict[str, tuple[str, Callable[[float], str]]] = {
    "rounds": ("rounds", lambda value: f"{value:,.1f}".removesuffix(".0")),
    "uplink": ("uplink", quantities.bytes_text),
    "bytes": ("bytes in all", quantities.bytes_text),
    "steps": ("local steps", lambda value: f"{value:,.0f}"),
    "simulated": ("simulated time", quantities.seconds_text),
    "seconds": ("wall clock", quantities.seconds_text),
}


def with_half(known: Estimate, form: Callable[[float], str], half: Callable[[float], str]) -> str:
    """ "81.23% ± 0.40", the mean alone where there is no interval or no spread, "-" where there is nothing."""
    if not known.n:
        return "-"
    words = form(known.mean)
    return words if math.isnan(known.half) or known.half == 0 else f"{words} ± {half(known.half)}"


def value_text(known: Estimate, metric: Metric) -> str:
    """Mean and interval of a metric."""
    if metric.larger_is_better:
        return with_half(known, metric.text, lambda half: f"{100 * half:.2f}")
    return metric.amount(known.mean, known.half) if known.n else "-"


def results(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and a row a method: results within the budget, and what they cost."""
    metrics = [Metric(key) for key in ("test_accuracy", "test_loss")]
    metrics = [m for m in metrics if any(row.of(m.key).n for row in comparison.rows)] or [comparison.metric]
    header = ["method", "seeds"]
    for metric in metrics:
        header += [metric.title, f"best {metric.title.split()[-1]}"]
    ranked = any(not math.isnan(row.rank) for row in comparison.rows)
    header += [AREA, *(["mean rank"] if ranked else []), "bytes sent"]
    body = []
    for row in comparison.rows:
        cells = [row.method.name, str(len(row.method.runs))]
        for metric in metrics:
            cells += [
                value_text(row.of(metric.key), metric),
                value_text(row.of(f"best_{metric.key}"), metric),
            ]
        cells.append(value_text(row.of("area"), comparison.metric))
        cells += [f"{row.rank:.2f}".replace("nan", "-")] if ranked else []
        body.append([*cells, cost_text(row, "bytes_spent")])
    return header, body


def costs(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and a row a method: what it took to reach the target; no rows where there is none."""
    known = [cost for cost in COSTS if any(row.of(f"{cost}_spent").n for row in comparison.rows)]
    header = ["method", "reached", *(COST_TITLES[cost][0] for cost in known)]
    if math.isnan(comparison.target):
        return header, []
    body = []
    for row in comparison.rows:
        reached = row.of("rounds_to_target").n
        cells = [cost_text(row, f"{cost}_to_target") for cost in known]
        body.append([row.method.name, f"{reached} of {len(row.method.runs)}", *cells])
    return header, body


def fairness(comparison: Comparison, key: str) -> tuple[list[str], list[list[str]]]:
    """Header and a row a method: how the last round's model does over the clients by this key of clients.json.

    The figures of the clients' own models stand beside, where the comparison has them.
    """
    header, columns = (
        ["method", "mean over clients", "worst tenth of them", f"variance{_squared(key)}"],
        [key],
    )
    if PERSONAL + key in comparison.clients:
        header += ["mean of own models", "worst tenth of these", f"their variance{_squared(key)}"]
        columns.append(PERSONAL + key)
    body = [
        [row.method.name, *(_fair(row, one, figure) for one in columns for figure in FAIRNESS)]
        for row in comparison.rows
    ]
    return header, body


def of_model(comparison: Comparison) -> list[str]:
    """The keys of clients.json that are told of the global model."""
    return [key for key in comparison.clients if not key.startswith(PERSONAL)]


def _squared(key: str) -> str:
    return " (points²)" if Metric(key).is_share else ""


def _fair(row: Row, key: str, figure: str) -> str:
    """A mean over seeds and its interval; a variance of shares in squares of points."""
    known, metric = row.of(of_column(key, figure)), Metric(key)
    if figure != "variance":
        return value_text(known, metric)
    square = 100**2 if metric.is_share else 1
    half = known.half if known.half > 1e-9 * known.mean else 0.0  # what is left of rounding is no spread
    return with_half(Estimate(square * known.mean, square * half, known.n), _three, _three)


def _three(value: float) -> str:
    return f"{value:.3g}"


def fairness_words(comparison: Comparison, key: str) -> str:
    """What the table of `fairness` shows."""
    title = Metric(key).title
    kind = "training" if key.startswith("train") else "test"
    words = f"{title[0].upper()}{title[1:]} of each run's last model on every client's own {kind} examples"
    if PERSONAL + key in comparison.clients:
        words += "; own models: after each client's eval_personal_steps plain gradient steps from it"
    cut = any(
        run.spent["rounds"][comparison.budget.holds(run)][-1] < run.rounds[-1]
        for row in comparison.rows
        for run in row.method.runs.values()
    )
    return words + (", which is after the budget for some runs" if cut else "")


def cost_text(row: Row, column: str) -> str:
    """What it took, as mean and interval; over those seeds alone that have a value."""
    form = COST_TITLES[column.split("_")[0]][1]
    return with_half(row.of(column), form, form)


def time_words(comparison: Comparison) -> str:
    """What the columns of time are; "" where there is none."""
    told = {cost for cost in COSTS for row in comparison.rows if row.of(f"{cost}_spent").n}
    words = f"Simulated time: a round takes {comparison.clock.words}." if "simulated" in told else ""
    return words + (
        " The wall clock is that of the machine that ran the simulation." if "seconds" in told else ""
    )


def target_words(comparison: Comparison) -> str:
    """ "test accuracy of 81.2% or more" """
    side = "or more" if comparison.metric.larger_is_better else "or less"
    return f"{comparison.metric.title} of {comparison.metric.text(comparison.target)} {side}"


def pair_rows(comparison: Comparison, pairs: Sequence[Pair]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a pair that could be computed."""
    scale = 100 if comparison.metric.larger_is_better else 1
    unit = "points" if comparison.metric.larger_is_better else comparison.metric.title
    header = [
        "ahead",
        "behind",
        "seeds",
        f"ahead by ({unit})",
        "p (t)",
        "p after Holm",
        "p (sign flips)",
        "says",
    ]
    body = []
    for pair in pairs:
        if pair.result is None:
            continue
        known = ahead_by(pair, comparison.metric)
        amount = comparison.metric.amount(known.mean / scale, known.half / scale)
        p_values = (pair.result.t_p, pair.p, pair.result.flip_p)
        told = ["-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in p_values]
        body.append([pair.first.name, pair.second.name, str(known.n), amount, *told, badge(pair)[1]])
    return header, body


def ahead_by(pair: Pair, metric: Metric) -> Estimate:
    """The difference in favour of the first, in points for an accuracy."""
    assert pair.result is not None
    known, scale = pair.result.estimate, 100 if metric.larger_is_better else -1
    return Estimate(scale * known.mean + 0.0, abs(scale) * known.half, known.n)


def badge(pair: Pair) -> tuple[str, str]:
    """(kind, words) of what a pair says, in short."""
    if pair.result is None:
        return "few", "not compared"
    if pair.is_decided:
        return "better", "better"
    if pair.result.estimate.n < MIN_SEEDS:
        return "few", "too few seeds"
    return "open", "undecided"


def per_run(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Header and a row a run with every number, unrounded: for CSV."""
    columns = list(comparison.rows[0].columns)
    columns = [c for c in columns if c not in ("final", "best")]
    header = [
        "method",
        "seed",
        "run",
        *(f"{comparison.metric.key}_area" if c == "area" else c for c in columns),
    ]
    body: list[list[Any]] = []
    for row in comparison.rows:
        for seed, run in row.method.runs.items():
            values = [row.columns[column][seed] for column in columns]
            body.append(
                [row.method.name, seed, str(run.run.path), *(None if math.isnan(v) else v for v in values)]
            )
    return header, body


def terminal(comparison: Comparison) -> Group:
    """Everything for a terminal: notes, results, costs, verdicts."""
    parts: list[Any] = [Text(f"note  {note}") for note in (*comparison.notes, *comparison.checks)]
    header, body = results(comparison)
    parts += _halves(f"Compared {comparison.budget.words}", "", header, body, header.index(AREA))
    if comparison.tuned:
        parts.append(_rich("Tuned", *tuning.table(comparison.tuned)))
    header, body = costs(comparison)
    times = [header.index(COST_TITLES[cost][0]) for cost in TIMES if COST_TITLES[cost][0] in header]
    if body:
        first, second = f"To a {target_words(comparison)}", f"\n{time_words(comparison)}"
        parts += _halves(first, second, header, body, min(times, default=len(header)))
    for key in of_model(comparison):
        parts.append(Text(f"\n{fairness_words(comparison, key)}"))
        parts.append(_rich("", *fairness(comparison, key)))
    parts += [Text(f"\n{pair.words}") for pair in comparison.pairs[:SHOWN_VERDICTS]]
    if len(comparison.pairs) > SHOWN_VERDICTS:
        parts.append(
            Text(f"\n... and {len(comparison.pairs) - SHOWN_VERDICTS:,} more pairs, which the page has.")
        )
    return Group(*parts, Text(f"\n{comparison.noise_words}"))


def _halves(
    title: str, between: str, header: Sequence[str], body: Sequence[Sequence[str]], middle: int
) -> list[Table | Text]:
    """A table in two parts, the second from this column on, since one would be too wide; with words between them."""
    first = _rich(title, header[:middle], [row[:middle] for row in body])
    if middle == len(header):
        return [first]
    second = _rich("", [header[0], *header[middle:]], [[row[0], *row[middle:]] for row in body])
    return [first, *([Text(between)] if between else []), second]


def _rich(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(header):
        table.add_column(
            Text(name),
            justify="left" if place == 0 else "right",
            min_width=max(map(len, name.split())),  # words of the header stay whole
            overflow="fold",
        )
    for row in body:
        table.add_row(*map(Text, row))
    return table
