"""The server side of the scaled local method (docs/explanation-algorithm.md, server lines).

    x <- sum_m w_m v_m;   D <- refresh(D, combine(h_m));   D-hat <- floor(D)

Sums run in the order of their arguments, which is the order of the client indices, so equal replies give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def client_weights(num_examples: Sequence[int], weighting: str) -> list[float]:
    """w_m: the share of examples ("examples") or 1/M ("uniform"); they sum to one.

    >>> client_weights([1, 3], "examples"), client_weights([1, 3], "uniform")
    ([0.25, 0.75], [0.5, 0.5])
    """
    if weighting == "uniform":
        return [1.0 / len(num_examples)] * len(num_examples)
    total = sum(num_examples)
    return [count / total for count in num_examples]


def weighted_sum(vectors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_m w_m v_m, (d,), added up one after the other; one vector is held at a time."""
    total: Tensor | None = None
    for vector, weight in zip(vectors, weights, strict=True):
        total = vector * weight if total is None else total.add_(vector, alpha=weight)
    assert total is not None, "a sum over no client"
    return total


def combine(statistics: Iterable[Tensor], weights: Sequence[float], how: str, signed: bool) -> Tensor:
    """One statistic (d,) from the clients' own.

    "square_of_mean": |sum w h|, and with its sign for statistics that estimate a diagonal (`signed`).
    "mean_of_squares": sqrt(sum w h^2), which adds the variance between clients to D.
    """
    if how == "mean_of_squares":
        return weighted_sum((h * h for h in statistics), weights).sqrt_()
    mean = weighted_sum(statistics, weights)
    return mean if signed else mean.abs_()


def mix(params: Iterable[Tensor], d_hats: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Preconditioned mixing: (sum w D-hat_m)^-1 sum w D-hat_m v_m, (d,).

    For one local step from a common start this is x - step_size * (mean D-hat)^-1 (mean gradient): FedPM's mixing
    with a diagonal preconditioner.
    """
    weighted = weighted_sum((v * d for v, d in zip(params, d_hats, strict=True)), weights)
    return weighted.div_(weighted_sum(d_hats, weights))


def displacement(
    before: Tensor, after: Tensor, d_hat: Tensor | None, num_steps: float, step_size: float
) -> Tensor:
    """The mean gradient over the round's local steps, from two models that both sides know, (d,).

    (1/n) * D-hat * (x_(p-1) - x_p) / step_size, exact without momentum and clipping.
    """
    moved = (before - after).div_(num_steps * step_size)
    return moved if d_hat is None else moved.mul_(d_hat)


def diagnostics(d_hat: Tensor, previous: Tensor | None, alpha: float) -> dict[str, float]:
    """Range, condition and relative change of D-hat, and the share of coordinates on the floor."""
    low, high = (float(end) for end in torch.aminmax(d_hat))
    change = 0.0 if previous is None else float((d_hat - previous).norm() / previous.norm())
    return {
        "d_min": low,
        "d_max": high,
        "d_condition": high / low,
        "d_change": change,
        "d_floored": float((d_hat <= alpha).to(torch.float64).mean()),
    }
