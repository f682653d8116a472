"""Models chosen by their distances from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.robust.coordinates import median


def krum_scores(models: Tensor, num_malicious: int) -> Tensor:
    """Each model's sum of squared distances to its n - f - 2 nearest others, at least one, (clients,).

    Distances are taken pair by pair and not by the Gram matrix, which loses the digits of models that are close.
    """
    squared = torch.stack([((models - own) ** 2).sum(dim=1) for own in models])
    nearest = max(1, len(models) - num_malicious - 2)
    return squared.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)


def krum(models: Tensor, num_malicious: int) -> Tensor:
    """The one model that lies nearest to its neighbours, (d,).

        score_m = the sum of |v_m - v_k|^2 over the S - f - 2 nearest k, at least one;   f = num_malicious
        x <- the v_m with the least score

    Source: Blanchard et al. 2017, Krum; its guarantee wants S >= 2f + 3.
    Departures: of models after local steps, where the paper takes gradients; of equal scores the lowest client's.
    """
    return multikrum(models, num_malicious, 1)


def multikrum(models: Tensor, num_malicious: int, num_selected: int) -> Tensor:
    """The mean of the models that lie nearest to their neighbours, (d,).

        score_m = the sum of |v_m - v_k|^2 over the S - f - 2 nearest k, at least one;   f = num_malicious
        x <- the mean of the num_selected v_m with the least scores

    Source: Blanchard et al. 2017, Multi-Krum.
    Departures: of models after local steps, where the paper takes gradients; scores are computed once; of equal
    scores the lowest client's. Flower's MultiKrum weighs the chosen by their numbers of examples.
    """
    chosen = krum_scores(models, num_malicious).argsort(stable=True)[:num_selected].sort().values
    return models[chosen].mean(dim=0)


def bulyan(models: Tensor, num_malicious: int) -> Tensor:
    """Models chosen by Krum one after the other, then of each coordinate the values around their median, (d,).

        theta = S - 2f times: the best by Krum among those that remain is chosen;   f = num_malicious
        x_j <- the mean of the theta - 2f chosen v_mj nearest to the median of the chosen

    Source: El Mhamdi et al. 2018, Bulyan of Krum; its guarantee wants S >= 4f + 3.
    Departures: of models after local steps, where the paper takes gradients. With fewer than 4f + 3 models the two
    numbers are cut to one, and the guarantee is gone. Flower's Bulyan takes the theta best of a single count of scores.
    """
    theta = max(1, len(models) - 2 * num_malicious)
    rest, chosen = list(range(len(models))), list[int]()
    while len(chosen) < theta:
        best = int(krum_scores(models[rest], num_malicious).argmin()) if len(rest) > 1 else 0
        chosen.append(rest.pop(best))
    selected = models[sorted(chosen)]
    beta = max(1, theta - 2 * num_malicious)
    near = (selected - median(selected)).abs().argsort(dim=0, stable=True)[:beta]
    return selected.gather(0, near.sort(dim=0).values).mean(dim=0)
