"""What a round says about drift: how far clients part, how their preconditioners differ, how long a step really is.

Everything is computed on the server from what it has anyway: the clients' models, their preconditioners where these
travel, its own D-hat. Nothing more is sent, and every number is what the seed determines. Where a ratio has nothing to
be divided by (a round in which nothing moved) it is not a number, which the round's record shows as null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedscale_local.server_step import weighted_sum
from fedscale_local.vector import Layout


def drift(x: Tensor, models: Sequence[Tensor], weights: Sequence[float]) -> dict[str, float]:
    """How far the clients' models v_m (d,) lie apart, with m the weighted mean of them, after a round that began at x.

    drift_mean, drift_max: |v_m - m| / |m - x| over clients; 0 where all agree.
    cosine_mean, cosine_min: of the angle between v_m - x and m - x; 1 where all go the same way.

    >>> drift(torch.zeros(2), [torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])], [0.5, 0.5])["drift_max"]
    1.0
    """
    moved = weighted_sum(models, weights).sub_(x)
    length = moved.norm()
    apart, cosines = [], []
    for model in models:
        own = model - x
        apart.append(float((own - moved).norm() / length))
        cosines.append(float(torch.dot(own, moved) / (own.norm() * length)))
    return {
        "drift_mean": _mean(apart, weights),
        "drift_max": max(apart),
        "cosine_mean": _mean(cosines, weights),
        "cosine_min": min(cosines),
    }


def update_norms(before: Tensor, after: Tensor, layout: Layout) -> dict[str, float]:
    """update_norm, |after - before|, and update_norm.NAME, the same of each named tensor of the model."""
    moved = after - before
    parts = {f"update_norm.{name}": float(part.norm()) for name, part in layout.split(moved).items()}
    return {"update_norm": float(moved.norm()), **parts}


def steps(d_hat: Tensor, step_size: float) -> dict[str, float]:
    """step_min, step_median, step_max: step_size / D-hat over the d coordinates (of two middle ones the smaller)."""
    of_each = step_size / d_hat
    low, high = torch.aminmax(of_each)
    return {"step_min": float(low), "step_median": float(of_each.median()), "step_max": float(high)}


def spread(d_hats: Sequence[Tensor], weights: Sequence[float]) -> dict[str, float]:
    """How the clients' D-hat_m (d,) differ from the server's, which is D-hat = sum_m w_m D-hat_m.

    spread_mean, spread_max over clients of the mean over coordinates of |log D-hat_m - log D-hat|: log 2 means a factor
    of two. angle_mean, angle_max: between D-hat_m and D-hat, in radians, blind to a common factor.
    """
    shared = weighted_sum(d_hats, weights)
    logs = [float((d_hat.log() - shared.log()).abs().mean()) for d_hat in d_hats]
    angles = [_angle(d_hat, shared) for d_hat in d_hats]
    return {
        "spread_mean": _mean(logs, weights),
        "spread_max": max(logs),
        "angle_mean": _mean(angles, weights),
        "angle_max": max(angles),
    }


class Quadratic(NamedTuple):
    """A quadratic objective: its Hessian (d, d) and its minimiser (d,)."""

    hessian: Tensor
    minimiser: Tensor

    @staticmethod
    def of_least_squares(rows: Tensor, targets: Tensor, weight_decay: float = 0.0) -> Quadratic:
        """That of the mean over rows (n, d) of (row . x - target)^2 / 2, plus (weight_decay / 2) |x|^2."""
        hessian = rows.T @ rows / len(rows) + weight_decay * torch.eye(rows.shape[1], dtype=rows.dtype)
        return Quadratic(hessian, torch.linalg.solve(hessian, rows.T @ targets / len(rows)))

    def condition(self, d_hat: Tensor) -> float:
        """L_D / mu_D, on which the rate of scaled steps depends: the largest over the smallest eigenvalue of
        D-hat^-1/2 Hessian D-hat^-1/2.

        >>> Quadratic(torch.diag(torch.tensor([1.0, 9.0])), torch.zeros(2)).condition(torch.tensor([1.0, 9.0]))
        1.0
        """
        root = d_hat.rsqrt()
        eigenvalues = torch.linalg.eigvalsh(root[:, None] * self.hessian * root)
        return float(eigenvalues[-1] / eigenvalues[0])

    def distance(self, x: Tensor, start: Tensor) -> float:
        """|x - x*| as a part of |start - x*|."""
        return float((x - self.minimiser).norm() / (start - self.minimiser).norm())


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _angle(a: Tensor, b: Tensor) -> float:
    """By the chord of the unit vectors: the arc cosine of two nearly equal ones would be lost to rounding."""
    chord = (a / a.norm() - b / b.norm()).norm()
    return float(2 * torch.asin((chord / 2).clamp(max=1)))
