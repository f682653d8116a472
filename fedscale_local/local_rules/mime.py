"""Mime and MimeLite: clients step as the server's optimiser would, its state frozen."""

from __future__ import annotations

from torch import Tensor

from fedscale_local.local_rule import Again, LocalRule, Setting, Shared, State, Upkeep, mean_of_sent


def mimelite(setting: Setting, beta: float) -> LocalRule:
    """The server's momentum of full-batch gradients, frozen in the round, beside the client's own gradient.

        v <- v - step_size * ((1 - beta) g + beta m)
        server: G <- sum_m w_m (full-batch gradient of client m at x);   m <- (1 - beta) G + beta m

    Source: Karimireddy et al. 2021 (arXiv 2008.03606), Algorithm 1, MimeLite with the base SGD with momentum.
    Departures: m starts at zero and is not debiased, as in the paper. Another base is a scaling: beta = 0 with
    strategy=savic, scaling=rmsprop and scaling.statistic=full_gradient is MimeLite with RMSProp, and no other code;
    with both, the step is ((1 - beta) g + beta m) / D-hat. The paper's statistic starts at zero, which makes its first
    step g / epsilon; D here starts as scaling.start says.
    """

    def correct(state: State, v: Tensor, g: Tensor, again: Again) -> Tensor:
        return (1 - beta) * g + beta * state["server_momentum"]

    def end(state: State, v: Tensor, num_steps: Tensor | float) -> None:
        state["server_momentum"] = state["full_gradient"]

    def renew(round: Upkeep) -> Tensor:
        return (1 - beta) * mean_of_sent(round) + beta * round.old

    return LocalRule(
        shared={"server_momentum": Shared(renew)},
        sends=("server_momentum",),
        wants_full_gradient=True,
        correct=correct,
        end=end,
    )


def mime(setting: Setting, beta: float) -> LocalRule:
    """MimeLite with SVRG's correction of each gradient, which takes a first exchange of gradients in each round.

        v <- v - step_size * ((1 - beta) (g(v) - g(x) + c) + beta m)      both gradients on one mini-batch
        server: c = sum_m w_m (full-batch gradient of client m at x), before the steps;   m <- (1 - beta) c + beta m

    A first exchange takes x down and gradients up, a second m and c down and v up.

    Source: Karimireddy et al. 2021 (arXiv 2008.03606), Algorithm 1, Mime with the base SGD with momentum.
    Departures: as MimeLite's.
    """

    def correct(state: State, v: Tensor, g: Tensor, again: Again) -> Tensor:
        corrected = g - again(state["x"]) + state["mean_gradient"]
        return (1 - beta) * corrected + beta * state["server_momentum"]

    def renew(round: Upkeep) -> Tensor:
        assert round.mean_gradient is not None, "the round began with it"
        return (1 - beta) * round.mean_gradient + beta * round.old

    return LocalRule(
        shared={"server_momentum": Shared(renew), "mean_gradient": Shared(lambda round: round.old)},
        wants_mean_gradient=True,
        correct=correct,
    )
