"""How the clients' models become one, beside the weighted mean: rules that bear with liars, and FedNova's.

All take the clients' models as (clients, d), in client order, and some the model x (d,) that they started from; weights
sum to one. The rules that bear with liars ignore weights, since a liar may lie about its number of examples too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedscale_local.robust.coordinates import median, trimmed_mean
from fedscale_local.robust.distances import bulyan, krum, krum_scores, multikrum
from fedscale_local.robust.lengths import clipped_mean, geometric_median
from fedscale_local.robust.work import local_work, normalised_mean
from fedscale_local.server_step import weighted_sum

RULES: dict[str, Callable[..., Tensor]] = {
    "mean": weighted_sum,
    "normalised": normalised_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multikrum": multikrum,
    "bulyan": bulyan,
    "geometric_median": geometric_median,
    "clipped_mean": clipped_mean,
}
"""By their names in the configuration."""

__all__ = [
    "RULES",
    "bulyan",
    "clipped_mean",
    "geometric_median",
    "krum",
    "krum_scores",
    "local_work",
    "median",
    "multikrum",
    "normalised_mean",
    "trimmed_mean",
]
