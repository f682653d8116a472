"""FedNova: what clients did, per unit of work."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedscale_local.server_step import weighted_sum


def normalised_mean(
    x: Tensor, models: Tensor, weights: Sequence[float], coefficients: Sequence[float]
) -> Tensor:
    """Displacements per unit of local work, times the mean work, (d,); coefficients: a_m, as `local_work`.

        x <- x + tau sum_m w_m (v_m - x) / a_m;   tau = sum_m w_m a_m
        a_m = K_m                                        plain steps
              sum_k (1 - rho^(K_m - k)) / (1 - rho)      momentum rho, k = 0 .. K_m - 1
              sum_k (1 - step_size mu)^(K_m - 1 - k)     a proximal term mu

    Source: Wang et al. 2020 (arXiv 2007.07481), FedNova, with tau_eff = sum p_i tau_i.
    Departures: with momentum and a proximal term at once a_m is the clients' own recurrence, run on unit gradients. The
    momentum buffer is taken to start at zero each round.
    """
    tau = sum(w * a for w, a in zip(weights, coefficients, strict=True))
    shares = [w * tau / a for w, a in zip(weights, coefficients, strict=True)]
    return x + weighted_sum(models - x, shares)


def local_work(num_steps: int, momentum: float, pull: float) -> float:
    """|a_m|_1 of FedNova: how much the gradients of a client's round weigh in its displacement, over the step size.

    num_steps: K_m; momentum: rho; pull: step_size * mu of a proximal term. With neither it is K_m.

    >>> local_work(3, 0.0, 0.0), local_work(2, 0.5, 0.0), local_work(2, 0.0, 0.5)
    (3.0, 2.5, 1.5)
    """
    work = buffer = 0.0
    for _ in range(num_steps):
        # A unit gradient at each step: what the client's own recurrence makes of them.
        buffer = momentum * buffer + 1.0 - pull * work
        work += buffer
    return work
