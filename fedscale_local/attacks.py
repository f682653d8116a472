"""Which clients are hostile, and what they send in the place of the model v that they trained.

x is the model that a client received, Delta = v - x what it learnt; h runs over the honest clients of the round.

sign_flip      x - strength Delta                                               Li et al. 2019 (RSA)
gaussian       x + strength rms(Delta) z,  z normal                             Blanchard et al. 2017
label_flip     v, trained on the labels classes - 1 - y                         Fang et al. 2020
inner_product  x - strength mean_h Delta_h                                      Xie et al. 2020
alie           mean_h v_h + z std_h v_h, coordinate by coordinate               Baruch et al. 2019

Departures. The papers attack gradients, or the parameters themselves; here it is what a client learnt in its local
steps. Li et al. multiply by -4, which is the default. Blanchard et al. draw noise of one standard deviation, 200; here
it is in multiples of the client's own update, so that a strength means the same for every model. Xie et al. and Baruch
et al. are simulated in their omniscient form: Baruch et al. estimate mean and deviation from the hostile clients' own
updates instead, which is weaker. Their released code subtracts z std from gradients, which is a plus for models.

Only the model is attacked. Whatever else a client sends (statistic, D-hat, momentum, control variates, moments, float
buffers, its number of examples) it sends as computed, from flipped labels under label_flip. What a client keeps for
later rounds is what it computed, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedscale_local.randomness import generator
from fedscale_local.server_step import weighted_sum


def hostile(seed: int, num_clients: int, share: float) -> tuple[int, ...]:
    """The hostile clients, ascending: round(share * num_clients) of them, and with a larger share these and more.

    >>> hostile(0, 10, 0.3), set(hostile(0, 10, 0.2)) < set(hostile(0, 10, 0.3))
    ((0, 1, 4), True)
    """
    order = torch.randperm(num_clients, generator=generator(seed, "hostile"))
    return tuple(sorted(order[: round(share * num_clients)].tolist()))


def flipped(y: Tensor, num_classes: int) -> Tensor:
    """classes - 1 - y; the middle one of an odd number of classes stays.

    >>> flipped(torch.tensor([0, 1, 2]), 3)
    tensor([2, 1, 0])
    """
    return num_classes - 1 - y


def sign_flip(x: Tensor, v: Tensor, strength: float) -> Tensor:
    """x - strength (v - x), (d,).

    >>> sign_flip(torch.tensor([1.0]), torch.tensor([1.5]), 4.0)
    tensor([-1.])
    """
    return x - strength * (v - x)


def gaussian(x: Tensor, v: Tensor, strength: float, stream: torch.Generator) -> Tensor:
    """x + strength rms(v - x) z, (d,), with z normal."""
    noise = torch.randn(x.shape, generator=stream, dtype=torch.float64).to(x.dtype)
    return x + noise * (strength * (v - x).square().mean().sqrt())


def inner_product(x: Tensor, honest: Sequence[Tensor], strength: float) -> Tensor:
    """x - strength (mean of the honest models - x), (d,): their inner product with the honest update is negative.

    >>> inner_product(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])], 0.5)
    tensor([0.])
    """
    return x - strength * (_mean(honest) - x)


def alie(honest: Sequence[Tensor], z: float) -> Tensor:
    """mean + z std of the honest models, coordinate by coordinate, (d,); std without Bessel's correction.

    >>> alie([torch.tensor([2.0]), torch.tensor([4.0])], 0.5)
    tensor([3.5000])
    """
    mean = _mean(honest)
    weights = [1 / len(honest)] * len(honest)
    return mean + z * weighted_sum(((v - mean) ** 2 for v in honest), weights).sqrt()


def z_max(num_clients: int, num_hostile: int) -> float:
    """Baruch et al.'s z: how far the hostile clients' model may lie from the mean, in deviations.

    s = floor(n/2 + 1) - m honest clients make a majority together with the m hostile ones; s of them are expected
    farther out than z_max = Phi^-1((n - m - s) / (n - m)). The paper's text was not at hand; this is the form in
    common use. Hostile clients that are a majority need nobody: s is then taken as 1, as the formula ends there.

    >>> round(z_max(20, 6), 4)  # s = 5 of 14 honest ones, Phi^-1(9 / 14)
    0.3661
    """
    honest = num_clients - num_hostile
    needed = max(1, num_clients // 2 + 1 - num_hostile)
    nearer = max(0.5, (honest - needed) / honest)  # a single honest client has no one nearer
    return float(torch.special.ndtri(torch.tensor(nearer, dtype=torch.float64)))


def _mean(models: Sequence[Tensor]) -> Tensor:
    return weighted_sum(models, [1 / len(models)] * len(models))
