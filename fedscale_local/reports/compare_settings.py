"""Hyper-parameters on the page of a comparison: a heat map for two keys, a line for one, the trials of a tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from fedscale_local import plots
from fedscale_local.reports import settings, tuning
from fedscale_local.reports.comparison import Comparison
from fedscale_local.reports.measures import Metric
from fedscale_local.reports.parts import csv_text, download, fold, line_key, picture, section, table
from fedscale_local.reports.settings import Group, Map, Setting
from fedscale_local.reports.tuning import Tuned

MAX_MAPS = 6  # of one group
MAX_GROUPS = len(plots.PAINT)
SHOWN_TRIALS = 200
WIDE = 50  # positive values further apart than this are shaded by their logarithm


class Shade(NamedTuple):
    """How a number is shaded, the same in all maps beside each other: 0 for the worst, 1 for the best."""

    worst: float
    best: float

    def __call__(self, value: float) -> float:
        """
        >>> Shade(0.2, 0.6)(0.3), Shade(1000.0, 1.0)(10.0), Shade(0.5, 0.5)(0.5)
        (0.25, 0.67, 1.0)
        """
        low, high = sorted(self)
        is_log = low > 0 and high / low >= WIDE
        worst, best, at = (math.log(x) if is_log else x for x in (*self, value))
        return 1.0 if worst == best else round((at - worst) / (best - worst), 2)


def swept(comparison: Comparison) -> str:
    """The section on methods that differ in numbers alone."""
    metric = comparison.metric
    groups = settings.of_methods(comparison.rows, metric)
    inside = _groups(groups, metric, "sweep")
    if not inside:
        return ""
    words = f"{metric.title[0].upper()}{metric.title[1:]} {comparison.budget.words}, where methods differ in numbers "
    words += "alone. A cell or a point is one setting, its mean over seeds ± half of the 95 % interval."
    save = download("settings.csv", csv_text(*_every_setting(groups, metric)), "Every setting as CSV")
    return section("Hyper-parameters", f'<p class="muted">{escape(words)}</p>{inside}{save}')


def tuned(comparison: Comparison) -> str:
    """The section on what was searched, with how many trials, and what was found."""
    if not comparison.tuned:
        return ""
    header, body = tuning.table(comparison.tuned)
    inside = f'<p class="muted">{escape(tuning.WORDS)}</p><div class="card scroll">{table(header, body, "named")}</div>'
    header, body = tuning.every_trial(comparison.tuned)
    inside += download("trials.csv", csv_text(header, body), "Every trial as CSV")
    for place, (metric, searched) in enumerate(_by_metric(comparison.tuned).items()):
        groups = [group for one in searched for group in settings.of_tuned(one)]
        inside += _groups(groups, metric, f"trials-{place}")
    more = f'<p class="muted">The first {SHOWN_TRIALS} of {len(body):,}; the download has all.</p>'
    shown = [[_cut(value) for value in row] for row in body[:SHOWN_TRIALS]]
    rows = f'<div class="scroll">{table(header, shown, "named")}</div>'
    inside += fold(f"Every trial ({len(body):,})", (more if len(body) > SHOWN_TRIALS else "") + rows)
    return section("Tuning", inside)


def _cut(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _by_metric(searched: Sequence[Tuned]) -> dict[Metric, list[Tuned]]:
    """Results under one metric can be shaded alike."""
    found: dict[Metric, list[Tuned]] = {}
    for one in searched:
        found.setdefault(Metric(one.metric, one.direction == "maximize"), []).append(one)
    return found


def _groups(groups: Sequence[Group], metric: Metric, name: str) -> str:
    """Maps of the groups over several keys, then pictures of those over one."""
    several = [group for group in groups if len(group.axes) > 1]
    found = [settings.maps(group, metric.larger_is_better)[:MAX_MAPS] for group in several[:MAX_GROUPS]]
    inside = _maps([one for maps in found for one in maps], metric)
    inside += _lines([group for group in groups if group not in several], metric, name)
    told = [words for group in groups for words in group.along]
    if inside and not groups[0].held:
        told += ["A cell is the mean of the whole trials in it; pruned ones ended early and count in no mean"]
    hidden = sum(math.comb(len(group.axes), 2) for group in several) - sum(map(len, found))
    told += [f"{hidden} more pairs of keys are not drawn"] if hidden > 0 else []
    return inside + (f'<p class="muted">{escape("; ".join(dict.fromkeys(told)))}.</p>' if told else "")


# ---------------------------------------------------------------- two keys


def _maps(maps: Sequence[Map], metric: Metric) -> str:
    means = [settings.mean_of(cell).mean for one in maps for cell in one.cells.values()]
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return ""
    ends = (min(known), max(known))
    shade = Shade(*ends) if metric.larger_is_better else Shade(*reversed(ends))
    worst, top = (escape(metric.text(end)) for end in shade)
    scale = f"<span>{worst}</span><i></i><span>{top}, best</span>"
    drawn = "".join(_map(one, metric, shade) for one in maps)
    return f'<div class="card key heat-key">{scale}</div><div class="figures gap">{drawn}</div>'


def _map(one: Map, metric: Metric, shade: Shade) -> str:
    """A table whose cells are shaded; the best is framed."""
    means = {place: settings.mean_of(cell).mean for place, cell in one.cells.items()}
    known = [mean for mean in means.values() if math.isfinite(mean)]
    best = (max if metric.larger_is_better else min)(known, default=math.nan)
    rows = ""
    for i, label in reversed(list(enumerate(one.down.labels))):
        cells = "".join(
            _cell(one.cells.get((i, j), ()), metric, shade, means.get((i, j)) == best)
            for j in range(len(one.across.labels))
        )
        rows += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'
    names = "".join(f'<th scope="col">{escape(label)}</th>' for label in one.across.labels)
    caption = f"{metric.title[0].upper()}{metric.title[1:]}" + (f", {one.name}" if one.name else "")
    caption += f", at {one.held}" if one.held else ""
    head = f'<tr><td></td><th class="axis" colspan="{len(one.across.labels)}">{_breakable(one.across.key)}</th></tr>'
    head += f'<tr><th class="axis">{_breakable(one.down.key)}</th>{names}</tr>'
    inside = f'<table class="heat"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="sideways">{inside}</div></figure>'


def _breakable(name: str) -> str:
    """A dotted name that a narrow table may break."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cell(found: Sequence[Setting], metric: Metric, shade: Shade, is_best: bool) -> str:
    """One cell: its mean and what it is made of, in words for who points at it or has it read aloud."""
    if not found:
        return "<td></td>"
    known = settings.mean_of(found)
    lost = "; ".join(f"{one.name}: {one.lost}" for one in found if one.lost)
    title = "; ".join(filter(None, (", ".join(one.name for one in found if one.results), lost)))
    if math.isnan(known.mean):
        return f'<td class="lost" title="{escape(title)}">{escape(_short(found))}</td>'
    words = metric.text(known.mean)
    if len(found) > 1:
        below = (
            f"{len(found)} trials" if all(len(one.results) < 2 for one in found) else f"{len(found)} settings"
        )
    else:
        below = "" if not known.half > 0 else f"± {metric.amount(known.half, math.nan)}"
    kind = ' class="best"' if is_best else ""
    small = f"<small>{escape(below)}</small>" if below else ""
    return (
        f'<td{kind} style="--level:{shade(known.mean):g}" title="{escape(title)}">{escape(words)}{small}</td>'
    )


def _short(found: Sequence[Setting]) -> str:
    """Why a cell has no number, in a word."""
    return " ".join(dict.fromkeys(one.lost.split()[0] for one in found))


# ---------------------------------------------------------------- one key


def _lines(groups: Sequence[Group], metric: Metric, name: str) -> str:
    """A picture for each key that alone makes a group differ."""
    by_key: dict[str, list[Group]] = {}
    for group in groups:
        by_key.setdefault(group.axes[0].key, []).append(group)
    found = ""
    for place, (one, those) in enumerate(by_key.items()):
        shown = those[:MAX_GROUPS]
        figure = plots.setting_figure(
            [_tried(group, one) for group in shown],
            one,
            metric.title,
            is_log=all(group.axes[0].is_log for group in shown),
            percent=metric.is_share,
            joined=shown[0].held,
        )
        caption = f"{metric.title[0].upper()}{metric.title[1:]} by {one}"
        found += line_key([group.name for group in shown]) if len(shown) > 1 else ""
        found += picture(f"{name}-{place}", caption, figure, wide=True)
    return found


def _tried(group: Group, key: str) -> plots.Tried:
    known = sorted((s for s in group.settings if s.results), key=lambda one: one.values[key])
    means: list[Any] = [settings.mean_of([one]) for one in known]
    x = [one.values[key] for one in known]
    return plots.Tried(x, [one.results for one in known], [m.mean for m in means], [m.half for m in means])


def _every_setting(groups: Sequence[Group], metric: Metric) -> tuple[list[str], list[list[Any]]]:
    """Header and a row a setting, unrounded: for CSV."""
    keys = list(dict.fromkeys(key for group in groups for one in group.settings for key in one.values))
    form: Callable[[float], float | None] = lambda value: None if math.isnan(value) else value  # noqa: E731
    body = []
    for group in groups:
        for one in group.settings:
            known = settings.mean_of([one])
            told = [one.values.get(key) for key in keys]
            body.append([group.name, *told, len(one.results), form(known.mean), form(known.half), one.lost])
    return ["choices", *keys, "seeds", metric.key, "half of the 95 % interval", "lost"], body
