"""Means in which what lies far away weighs less."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedscale_local.robust.coordinates import median
from fedscale_local.server_step import weighted_sum


def geometric_median(
    models: Tensor, weights: Sequence[float], num_iterations: int, smoothing: float
) -> Tensor:
    """The point with the least weighted sum of distances to the models, nearly, (d,).

        z = the coordinate-wise median of the v_m;   num_iterations times:
            b_m = w_m / max(smoothing, |v_m - z|);   z <- sum_m b_m v_m / sum_m b_m
        x <- z

    Source: Pillutla et al. 2022, RFA, the smoothed Weiszfeld iterations.
    Departures: a fixed number of iterations, and no test for an end. The paper starts at the weighted mean, which a
    liar takes as far away as it likes; each iteration then makes up for a constant factor only (a third of the way
    remains with a quarter of liars). A client's number of examples counts here, and a liar may lie about it:
    strategy.weighting=uniform leaves it out.
    """
    z = median(models)
    for _ in range(num_iterations):
        distances = (models - z).norm(dim=1).clamp(min=smoothing).tolist()
        shares = [weight / distance for weight, distance in zip(weights, distances, strict=True)]
        total = sum(shares)
        z = weighted_sum(models, [share / total for share in shares])
    return z


def clipped_mean(x: Tensor, models: Tensor, weights: Sequence[float], max_norm: float) -> Tensor:
    """x and the weighted mean of displacements none of which is longer than max_norm, (d,).

        x <- x + sum_m w_m (v_m - x) min(1, max_norm / |v_m - x|)

    Source: McMahan et al. 2018, flat clipping; as a defence Sun et al. 2019 (arXiv 1911.07963).
    Departures: clipped by the server, and no noise is added: this alone gives no privacy.
    """
    displacements = models - x
    norms = displacements.norm(dim=1).tolist()
    shares = [w * min(1.0, max_norm / norm) if norm else w for w, norm in zip(weights, norms, strict=True)]
    return x + weighted_sum(displacements, shares)
