"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.local_rule import Again, LocalRule, Setting, Shared, State, add_share, whole
from fedscale_local.robust import local_work


def scaffold(setting: Setting, option: int, control_every: int = 1) -> LocalRule:
    """Each gradient is corrected by the difference between the client's own mean gradient and everybody's.

        v <- v - step_size * (g - c_i + c)                before any preconditioner
        c_i' = c_i - c + (x - v_K) / (a step_size)        option 2; a = K, without momentum
        c_i' = the client's full-batch gradient at x      option 1
        server: c <- c + (S/N) mean(c_i' - c_i)           c and c_i are 0 at first

    Source: Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1.
    Departures: with momentum rho, of which the paper has none, a is what K gradients weigh in x - v_K, FedNova's
    sum_k (1 - rho^(K - k)) / (1 - rho): with K, c_i would be up to 1 / (1 - rho) times a gradient, and clients diverge.
    With a preconditioner c_i is the mean scaled step and not the mean gradient. Means are uniform, as in the paper
    (strategy.weighting=uniform); with examples S/N becomes the round's part of all examples, so that c stays the
    weighted mean of all c_i. control_every = k > 1 is not the paper's: c and c_i then change, and c travels, in round 1
    and every k-th after it alone; in between both stand still, and c is the mean of all c_i at any time.
    """

    def correct(state: State, v: Tensor, g: Tensor, again: Again) -> Tensor:
        return g - state["own_control"] + state["control"]

    def end(state: State, v: Tensor, num_steps: Tensor | float) -> None:
        if option == 1:
            new = state["full_gradient"]
        else:
            moved = (state["x"] - v) / (_work(num_steps, setting.momentum) * setting.step_size)
            new = state["own_control"] - state["control"] + moved
        state["control"] = new - state["own_control"]
        state["own_control"] = new

    return LocalRule(
        shared={"control": Shared(add_share, every=control_every)},
        sends=("control",),
        keeps={"own_control": whole} | ({"control": whole} if control_every > 1 else {}),
        awaits="control",
        wants_full_gradient=option == 1,
        correct=correct,
        end=end,
    )


def _work(num_steps: Tensor | float, momentum: float) -> Tensor:
    """FedNova's local work of each client of a stack.

    >>> _work(torch.tensor([[3.0], [2.0]]), 0.5)
    tensor([[4.2500],
            [2.5000]])
    """
    steps = torch.as_tensor(num_steps)
    if not momentum:
        return steps  # and a GPU need not tell how many
    return steps.to("cpu", copy=True).apply_(lambda k: local_work(int(k), momentum, 0.0)).to(steps.device)
