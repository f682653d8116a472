"""Coordinate by coordinate: what lies in the middle."""

from __future__ import annotations

from torch import Tensor


def median(models: Tensor) -> Tensor:
    """The coordinate-wise median of the clients' models, (d,).

        x_j <- median_m v_mj          of an even number the mean of the middle two

    Source: Yin et al. 2018, the coordinate-wise median, Algorithm 1.
    Departures: of models after local steps, where the paper takes gradients.

    >>> import torch
    >>> median(torch.tensor([[1.0], [2.0], [9.0], [4.0]]))
    tensor([3.])
    """
    ranked, half = models.sort(dim=0).values, (len(models) - 1) // 2
    return ranked[half] if len(models) % 2 else (ranked[half] + ranked[half + 1]) / 2


def trimmed_mean(models: Tensor, trim: float) -> Tensor:
    """The mean of each coordinate without the share `trim` of values at either end, (d,).

        x_j <- the mean of the v_mj without the floor(trim S) smallest and the floor(trim S) largest

    Source: Yin et al. 2018, the coordinate-wise trimmed mean, Algorithm 1.
    Departures: of models after local steps, where the paper takes gradients.

    >>> import torch
    >>> trimmed_mean(torch.tensor([[1.0], [2.0], [9.0], [4.0]]), 0.25)
    tensor([3.])
    """
    cut = int(trim * len(models))
    return models.sort(dim=0).values[cut : len(models) - cut].mean(dim=0)
