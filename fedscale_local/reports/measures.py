"""What is measured of every run: its result within a budget, its best, the area under its curve, what it spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedscale_local.errors import RunDirError
from fedscale_local.reports import quantities
from fedscale_local.reports.budget import Budget
from fedscale_local.reports.histories import METRICS, OF_MODEL, PERSONAL, History, Method
from fedscale_local.reports.statistics import Estimate, estimate

TITLES = {"test_accuracy": "test accuracy", "test_loss": "test loss", "train_loss": "training loss"}
TITLES |= {"train_accuracy": "training accuracy"}
COSTS = ("rounds", "uplink", "bytes", "steps", "simulated", "seconds")
FAIRNESS = ("mean", "worst_decile", "variance")  # over the clients
WORST = 0.1  # share of the clients in the worst decile


@dataclass(frozen=True)
class Metric:
    """What is compared: its key in rounds.jsonl or clients.json, and how its values and differences read."""

    key: str
    is_maximized: bool = False

    @property
    def title(self) -> str:
        return TITLES.get(self.key.removeprefix(PERSONAL), self.key.replace("_", " "))

    @property
    def is_share(self) -> bool:
        return self.key.endswith("accuracy")

    @property
    def larger_is_better(self) -> bool:
        return self.is_share or self.is_maximized

    def text(self, value: float) -> str:
        """One value: "81.23%" or "0.4371"."""
        if math.isnan(value):
            return "-"
        return quantities.percent_text(value) if self.is_share else quantities.loss_text(value)

    def amount(self, mean: float, half: float) -> str:
        """A difference or a mean with its half-width, without unit: "1.80 ± 0.40"."""
        scale = 100 if self.is_share else 1
        decimals = 2 if self.is_share else _decimals(half if half > 0 else mean)
        words = f"{scale * mean:.{decimals}f}"
        return words if math.isnan(half) else f"{words} ± {scale * half:.{decimals}f}"

    @property
    def unit(self) -> str:
        return "points of test accuracy" if self.larger_is_better else f"in {self.title}"


def _decimals(size: float) -> int:
    """Decimals that show two digits of a number of this size."""
    if not math.isfinite(size) or size == 0:
        return 4
    return max(0, min(12, 1 - math.floor(math.log10(abs(size)))))


@dataclass(frozen=True)
class Row:
    """One method: each column's values by seed, NaN where a run has none, and its rank."""

    method: Method
    columns: dict[str, dict[int, float]]
    rank: float

    def of(self, column: str) -> Estimate:
        """Mean and interval over the seeds that have a value."""
        return estimate([value for value in self.columns[column].values() if not math.isnan(value)])


def choose_metric(runs: Sequence[History]) -> Metric:
    """The first of accuracy, test loss, training loss that every run has, else that any has."""
    for enough in (all, any):
        for key in METRICS:
            if enough(bool(np.isfinite(run.values[key]).any()) for run in runs):
                return Metric(key)
    raise RunDirError(str(runs[0].run.path), "no round has a loss or an accuracy", "compare other runs")


def points(run: History, key: str, budget: Budget) -> np.ndarray:
    """The rounds within the budget in which this was to be measured, as indices."""
    measured = run.measured(key)
    return measured[budget.holds(run)[measured]]


def of_clients(runs: Sequence[History]) -> list[str]:
    """The keys of clients.json that are told: accuracy and loss, so far as all these runs have them.

    Of test examples, or else of training examples; after each that of the clients' own models, if all have it.
    """

    def had_by_all(key: str) -> bool:
        return all(key in run.clients_at_end for run in runs)

    known = list(filter(had_by_all, OF_MODEL))
    kind = known[0].split("_")[0] if known else ""
    both = [key for key in known if key.startswith(kind)]
    return [key for one in both for key in (one, PERSONAL + one) if had_by_all(key)]


def of_column(key: str, figure: str) -> str:
    """The name of a column: this figure of FAIRNESS over the clients, of this key of clients.json."""
    return f"clients_{key}_{figure}"


def fairness(values: np.ndarray, larger_is_better: bool) -> tuple[float, float, float]:
    """Mean over clients, mean over the worst tenth of them (one client at least), and variance over all of them.

    values: (clients,). These are the figures of Li et al. 2020, "Fair Resource Allocation in Federated Learning".

    >>> fairness(np.arange(20.0), larger_is_better=True)
    (9.5, 0.5, 33.25)
    """
    ordered = np.sort(values if larger_is_better else -values)
    worst = float(ordered[: math.ceil(WORST * len(values))].mean())
    return float(values.mean()), worst if larger_is_better else -worst, float(values.var())


def row_of(
    method: Method,
    metric: Metric,
    budget: Budget,
    target: float,
    window: tuple[float, float] | None,
    clients: Sequence[str],
) -> Row:
    """The columns of a method; clients: the keys of clients.json that are told."""
    numbers = {
        seed: _numbers(run, metric, budget, target, window) | _fairness(run, clients)
        for seed, run in sorted(method.runs.items())
    }
    columns = {
        name: {seed: of_run[name] for seed, of_run in numbers.items()}
        for name in next(iter(numbers.values()))
    }
    return Row(method, columns, math.nan)


def _numbers(
    run: History, metric: Metric, budget: Budget, target: float, window: tuple[float, float] | None
) -> dict[str, float]:
    """Every column of one run; "final", "best" and "area" are of the metric that is compared."""
    numbers: dict[str, float] = {}
    for key in METRICS:
        values = run.values[key][points(run, key, budget)]
        known = values[np.isfinite(values)]
        best = (known.max() if key == "test_accuracy" else known.min()) if known.size else math.nan
        numbers |= {key: values[-1] if values.size else math.nan, f"best_{key}": best}
    measured = points(run, metric.key, budget)
    x, y = run.spent[budget.axis][measured], run.values[metric.key][measured]
    numbers |= {"final": numbers[metric.key], "best": numbers[f"best_{metric.key}"]}
    numbers["area"] = math.nan if window is None or np.isnan(y).any() else _mean_height(x, y, *window)
    with np.errstate(invalid="ignore"):
        there = measured[(y >= target) if metric.larger_is_better else (y <= target)]
    held = np.flatnonzero(budget.holds(run))
    for cost in COSTS:
        spent = run.spent.get(cost)
        numbers[f"{cost}_to_target"] = spent[there[0]] if spent is not None and there.size else math.nan
        numbers[f"{cost}_spent"] = spent[held[-1]] if spent is not None and held.size else math.nan
    return {name: float(value) for name, value in numbers.items()}


def _fairness(run: History, keys: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key in keys:
        figures = fairness(run.clients_at_end[key], Metric(key).larger_is_better)
        found |= {of_column(key, name): figure for name, figure in zip(FAIRNESS, figures, strict=True)}
    return found


def _mean_height(x: np.ndarray, y: np.ndarray, left: float, right: float) -> float:
    """The mean of the piecewise linear curve through (x, y) between left and right: its area over its width."""
    inside = x[(x > left) & (x < right)]
    at = np.concatenate([[left], inside, [right]])
    return float(np.trapezoid(np.interp(at, x, y), at) / (right - left))


def common_window(runs: Sequence[History], metric: Metric, budget: Budget) -> tuple[float, float] | None:
    """The stretch of the budget's axis that every curve covers."""
    found = [run.spent[budget.axis][points(run, metric.key, budget)] for run in runs]
    if not all(len(x) for x in found):
        return None
    left, right = max(x[0] for x in found), min(x[-1] for x in found)
    return (float(left), float(right)) if left < right else None


def easiest_best(runs: Sequence[History], metric: Metric, budget: Budget) -> float:
    """The best value that every run reached, made round on the easy side; NaN where one has none."""
    better, worse = (np.nanmax, min) if metric.larger_is_better else (np.nanmin, max)
    found = [run.values[metric.key][points(run, metric.key, budget)] for run in runs]
    if not all(np.isfinite(values).any() for values in found):
        return math.nan
    worst = float(worse(better(values) for values in found))
    scale = 1000.0 if metric.larger_is_better else 10.0 ** (2 - math.floor(math.log10(abs(worst) or 1)))
    rounded = (math.floor if metric.larger_is_better else math.ceil)(worst * scale) / scale
    return rounded or worst
