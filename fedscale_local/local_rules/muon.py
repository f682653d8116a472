"""Muon on the clients: momentum whose matrices are orthogonalised before the step."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.local_rule import Again, LocalRule, Setting, Shared, State, add_share, whole
from fedscale_local.vector import Layout

QUINTIC = (3.4445, -4.7750, 2.0315)


def muon(setting: Setting, beta: float, num_iterations: int) -> LocalRule:
    """Muon with Nesterov's look-ahead, begun anew each round.

        b <- beta b + (1 - beta) g;   u = beta b + (1 - beta) g          b is 0 at the start of a round
        v <- v - step_size * O(u)
        O(u), tensor by tensor: sqrt(max(1, rows/columns)) NewtonSchulz(u) for a matrix, u itself for any other

    NewtonSchulz is the quintic iteration X <- a X + (b A + c A A) X, A = X X^T, begun at the matrix over its
    Frobenius norm.

    Source: Jordan et al. 2024, Muon, in the form of torch.optim.Muon.
    Departures: it runs in the dtype of the parameters and not in bfloat16. Biases, norms and convolution kernels take
    the plain momentum step, where Muon's users give them to AdamW.
    """

    def begin(state: State, v: Tensor) -> None:
        state["buffer"] = torch.zeros_like(v)

    def step(state: State, v: Tensor, g: Tensor, again: Again) -> None:
        buffer = state["buffer"].mul_(beta).add_(g, alpha=1 - beta)
        u = beta * buffer + (1 - beta) * g
        v.sub_(orthogonalised(u, setting.layout, num_iterations), alpha=setting.step_size)

    return LocalRule(begin=begin, step=step)


def fedmuon(setting: Setting, beta: float, num_iterations: int, control_every: int = 1) -> LocalRule:
    """Muon with control variates inside the orthogonalisation.

        M <- beta M + (1 - beta) g;   v <- v - step_size * O(M - C_i + C)
        M starts at the client's own C_i, which becomes M at the end of the round
        server: C <- C + (S/N) mean(C_i' - C_i)                            C and C_i are 0 at first
        O(u), tensor by tensor: sqrt(max(1, rows/columns)) NewtonSchulz(u) for a matrix, u itself for any other

    Source: Takezawa et al. 2025 (arXiv 2509.26337).
    Departures: the paper's text was not at hand; that the control variate is the client's momentum at the end of its
    last round is our reading. Dtype and tensors that are no matrices: as Local Muon. control_every = k > 1 is not the
    paper's: C and C_i then change, and C travels, in round 1 and every k-th after it alone; in between both stand
    still, and M goes on from where the client left it.
    """
    is_seldom = control_every > 1
    last = "buffer" if is_seldom else "own_control"

    def begin(state: State, v: Tensor) -> None:
        state["buffer"] = state[last].expand_as(v).clone()

    def step(state: State, v: Tensor, g: Tensor, again: Again) -> None:
        buffer = state["buffer"].mul_(beta).add_(g, alpha=1 - beta)
        u = buffer - state["own_control"] + state["control"]
        v.sub_(orthogonalised(u, setting.layout, num_iterations), alpha=setting.step_size)

    def end(state: State, v: Tensor, num_steps: Tensor | float) -> None:
        state["control"] = state["buffer"] - state["own_control"]
        state["own_control"] = state["buffer"]

    return LocalRule(
        shared={"control": Shared(add_share, every=control_every)},
        sends=("control",),
        keeps={"own_control": whole} | ({"control": whole, "buffer": whole} if is_seldom else {}),
        awaits="control",
        begin=begin,
        step=step,
        end=end,
    )


def orthogonalised(u: Tensor, layout: Layout, num_iterations: int) -> Tensor:
    """O(u) over leading axes, (..., d) -> (..., d)."""
    parts = layout.split(u)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) == 2:
            stretch = max(1.0, shape[0] / shape[1]) ** 0.5
            parts[name] = stretch * newton_schulz(parts[name], num_iterations)
    return layout.join(parts)


def newton_schulz(matrix: Tensor, num_iterations: int) -> Tensor:
    """A matrix with nearly the same singular vectors and singular values near one, (..., rows, columns)."""
    a, b, c = QUINTIC
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
