"""Clients pulled towards the model that they received: FedProx and FedDyn."""

from __future__ import annotations

from torch import Tensor

from fedscale_local.local_rule import Again, LocalRule, Setting, State, whole


def proximal(setting: Setting, mu: float) -> LocalRule:
    """Every local objective gains (mu/2) |v - x|^2, a pull towards the model received; mu = 0 is plain.

        v <- v - step_size * (g + mu (v - x))

    Source: Li et al. 2020 (arXiv 1812.06127), equation 2 and Algorithm 2.
    Departures: clients take the round's local steps instead of solving to a stated inexactness.
    """

    def correct(state: State, v: Tensor, g: Tensor, again: Again) -> Tensor:
        return g + mu * (v - state["x"])

    return LocalRule(correct=correct)


def dynamic(setting: Setting, mu: float) -> LocalRule:
    """A linear term beside the pull, kept by the client, so that local optima agree with the global one.

        v <- v - step_size * (g - h_i + mu (v - x))
        h_i <- h_i - mu (v_K - x)                          0 at first

    Source: Acar et al. 2021 (arXiv 2111.04263), Algorithm 1; its server is server=dynamic with the same mu.
    Departures: clients take the round's local steps instead of solving to optimality.
    """

    def correct(state: State, v: Tensor, g: Tensor, again: Again) -> Tensor:
        return g - state["linear"] + mu * (v - state["x"])

    def end(state: State, v: Tensor, num_steps: Tensor | float) -> None:
        state["linear"] = state["linear"] - mu * (v - state["x"])

    return LocalRule(keeps={"linear": whole}, correct=correct, end=end)
