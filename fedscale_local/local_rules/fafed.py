"""FAFED: STORM's gradient estimate over a denominator that is frozen in the round."""

from __future__ import annotations

from torch import Tensor

from fedscale_local.local_rule import Again, LocalRule, Setting, Shared, State, mean_of_sent


def fafed(setting: Setting, beta: float, storm: float, epsilon: float) -> LocalRule:
    """STORM's gradient estimate over an averaged denominator that is frozen in the round.

        round 0  m = mean_m g_m(x_0);   s = mean_m g_m(x_0)^2            a probe, no step
        client   u = v - step_size * m / (sqrt(s_server) + epsilon)
                 m <- g(u) + (1 - storm) (m - g(v))                      both on one mini-batch
                 s <- beta s + (1 - beta) g(u)^2;   v <- u
        server   x, m and s are the means of the clients'

    storm is the weight of the fresh gradient in the estimate; 1 makes plain steps along it.

    Source: Wu et al. 2023 (AAAI), FAFED, Algorithm 1.
    Departures: storm, beta and the step size are constant, where the paper's decay; the first estimate is of a
    mini-batch, not of a larger one; s is not debiased, because it starts at a statistic.
    """

    def probe(g: Tensor) -> State:
        return {"first": g, "second": g * g}

    def divisor(state: State) -> Tensor:
        return state["second"].sqrt().add_(epsilon)

    def begin(state: State, v: Tensor) -> None:
        state["denominator"] = divisor(state)
        for name in ("first", "second"):
            state[name] = state[name].expand_as(v).clone()

    def step(state: State, v: Tensor, g: Tensor, again: Again) -> None:
        before = g.clone()
        v.addcdiv_(state["first"], state["denominator"].expand_as(v), value=-setting.step_size)
        after = again(v)
        state["first"].sub_(before).mul_(1 - storm).add_(after)
        state["second"].mul_(beta).addcmul_(after, after, value=1 - beta)

    shared = {name: Shared(mean_of_sent) for name in ("first", "second")}
    return LocalRule(
        shared=shared,
        sends=tuple(shared),
        probe=probe,
        begin=begin,
        step=step,
        divisor=divisor,
        is_frozen=True,
    )
