"""Figures of what diagnostics=drift records."""

from __future__ import annotations

from matplotlib.figure import Figure

from fedscale_local.plots.lines import Rounds, Series, band, curves, points

COLOURS = ("blue", "orange", "green", "purple", "muted", "ink")
DASHES = ("-", (0, (4, 1.6)))

PANELS = (
    (
        "Client drift, in lengths of the mean move",
        "drift",
        (("mean", "drift_mean"), ("largest", "drift_max")),
    ),
    (
        "Cosine between a client's move and the mean move",
        "cosine",
        (("mean", "cosine_mean"), ("smallest", "cosine_min")),
    ),
    (
        "Clients' preconditioners from the server's: mean of |log ratio|",
        "|log ratio|",
        (("mean", "spread_mean"), ("largest", "spread_max")),
    ),
    (
        "Angle between clients' preconditioners and the server's",
        "radians",
        (("mean", "angle_mean"), ("largest", "angle_max")),
    ),
    ("Condition of the scaled Hessian", "condition", (("condition", "hessian_condition"),)),
    ("Distance to the minimiser, as a part of the first", "distance", (("distance", "distance"),)),
)
"""(caption, name of the axis, curves as (label, key))"""


def drift_figures(rounds: Rounds) -> list[tuple[str, Figure]]:
    """(caption, figure) for each of the drift diagnostics that the rounds have; [] for a run without them."""
    figures = []
    for caption, ylabel, lines in PANELS:
        drawn = [(label, *points(rounds, key)) for label, key in lines]
        series = [Series(label, x, y, COLOURS[i], DASHES[i]) for i, (label, x, y) in enumerate(drawn) if x]
        if series:
            figures.append((caption, curves(series, "round", ylabel)))
    return [*figures, *_steps(rounds), *_layers(rounds)]


def _steps(rounds: Rounds) -> list[tuple[str, Figure]]:
    known = [r for r in rounds if (r.get("step_min") or 0) > 0 and r.get("step_max") is not None]
    if not known:
        return []
    x, low, high = ([float(r[key]) for r in known] for key in ("round", "step_min", "step_max"))
    return [("Effective step sizes: smallest to largest over coordinates", band(x, low, high, "step size"))]


def _layers(rounds: Rounds) -> list[tuple[str, Figure]]:
    """The update's norm by tensor: those six that moved most in the last round that says so."""
    known = [r for r in rounds if any(key.startswith("update_norm.") for key in r)]
    if not known:
        return []
    last = {
        key: value for key, value in known[-1].items() if key.startswith("update_norm.") and value is not None
    }
    most = sorted(last, key=lambda key: -last[key])[: len(COLOURS)]
    series = [
        Series(key.removeprefix("update_norm."), *points(rounds, key), COLOURS[i], DASHES[i % 2])
        for i, key in enumerate(most)
    ]
    words = f", the {len(most)} largest of {len(last)} tensors" if len(last) > len(most) else " by tensor"
    return [(f"Norm of the model's update{words}", curves(series, "round", "norm"))] if series else []
