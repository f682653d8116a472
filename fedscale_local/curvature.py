"""Statistics H that a preconditioner may remember, measured on one mini-batch at one point.

gradient      H = g, the mini-batch gradient; free, because the local step computes it anyway.
hutchinson    H = z * (Hess z), z Rademacher, shared by all clients of a round, so that the mean over clients is the
              probe of the mean Hessian (Hutchinson 1989; Yao et al. 2021, AdaHessian; Jahani et al. 2022, OASIS).
gauss_newton  H = B * g-hat * g-hat, g-hat the gradient of the mean loss of B predictions whose labels are drawn from
              the model's own output (Gauss-Newton-Bartlett; Liu et al. 2024, Sophia, Algorithm 2).

The displacement statistic needs no measurement: see server_step.displacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedscale_local.vector import Layout


@dataclass(frozen=True)
class Batch:
    """A mini-batch: x (B, ...) and y (B, ...) of one client, or with a leading axis for the clients of a stack."""

    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    """(clients, B): 1 for an example, 0 for padding; None where nothing is padded."""
    noise: Tensor | None = None
    """As y: the draws that turn outputs into sampled labels, for the Gauss-Newton statistic."""
    rows: Any = ...
    """The clients of the stack that take part: ... or a slice."""


class Oracle(Protocol):
    """Derivatives of the local objectives at v, (d,) for one client or (clients, d) for a stack."""

    def start(self, x: Tensor) -> Tensor:
        """The working copy v of x on which the steps act in place."""

    def at(self, x: Tensor) -> Tensor:
        """x as a point to take derivatives at, which stays as it is."""
        return self.start(x)

    def empty_like(self, v: Tensor) -> Tensor:
        """Place for vectors that the client sends, as many as v (..., d) has."""
        return torch.empty_like(v)

    def finish(self, v: Tensor) -> Tensor:
        """What the steps have made of it, or a gradient, which stays when another client starts."""

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mini-batch loss (...,) and its gradient (..., d); the gradient is valid until the next call."""

    divides: bool = False
    """Is `descend` with a D-hat faster than a gradient and a step of its own?"""

    def descend(self, v: Tensor, batch: Batch, step_size: float, d_hat: Tensor | None = None) -> Tensor:
        """In place: v <- v - step_size * gradient / D-hat, which nobody else sees; the loss (...,) at the old v.

        d_hat (..., d) or (d,); None: no division.
        """
        loss, gradient = self.gradient(v, batch)
        _step(v, gradient, step_size, d_hat)
        return loss

    def descend_all(
        self,
        x: Tensor,
        batches: Iterable[Batch],
        losses: Tensor,
        step_size: float,
        d_hat: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor:
        """The working copy of x after such a step for each batch, one after the other, of which there is one at least.

        What each loses at its v is added to losses (...,). All clients take the first; gradient (..., d): where it is
        given, it becomes that one's.
        """
        v = self.start(x)
        for batch in batches:
            here, own = v[batch.rows], of_rows(d_hat, batch.rows, v.dim())
            if gradient is None:
                loss = self.descend(here, batch, step_size, own)
            else:
                loss, found = self.gradient(here, batch)
                gradient.copy_(found)
                gradient = None
                _step(here, found, step_size, own)
            losses[batch.rows].add_(loss)
        return v

    def gradient_at(self, point: Tensor, batch: Batch) -> Tensor:
        """The mini-batch gradient (..., d) at another point than the working copy; what `gradient` gave stays."""

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        """Hess z, (..., d), for z (d,)."""

    def gauss_newton(self, v: Tensor, batch: Batch) -> Tensor:
        """The Gauss-Newton-Bartlett diagonal (..., d), with the labels that the batch's noise draws."""


def _step(v: Tensor, gradient: Tensor, step_size: float, d_hat: Tensor | None) -> None:
    if d_hat is None:
        v.sub_(gradient, alpha=step_size)
    else:
        v.addcdiv_(gradient, d_hat, value=-step_size)


def of_rows(d_hat: Tensor | None, rows: Any, num_axes: int) -> Tensor | None:
    """The D-hat of those clients of a stack that still step; one that all share stays as it is."""
    return d_hat if d_hat is None or d_hat.dim() < num_axes else d_hat[rows]


Statistic = Callable[[Oracle, Tensor, Batch, Tensor | None], Tensor]
"""(oracle, v, batch, probe z) -> H (..., d)"""


def _hutchinson(oracle: Oracle, v: Tensor, batch: Batch, z: Tensor | None) -> Tensor:
    assert z is not None, "the Hutchinson statistic needs the round's probe"
    return oracle.hessian_vector(v, batch, z).mul_(z)


def _gauss_newton(oracle: Oracle, v: Tensor, batch: Batch, z: Tensor | None) -> Tensor:
    return oracle.gauss_newton(v, batch)


MEASURED: dict[str, Statistic] = {"hutchinson": _hutchinson, "gauss_newton": _gauss_newton}
"""Statistics that take more than the gradient of a local step."""

SIGNED = frozenset({"hutchinson", "gauss_newton"})
"""Statistics that estimate a diagonal, averaged over clients with their sign."""


def rademacher(generator: torch.Generator, size: int, dtype: torch.dtype) -> Tensor:
    """A probe z (size,) of independent signs."""
    return torch.randint(0, 2, (size,), generator=generator).to(dtype).mul_(2).sub_(1)


def average_kernels(statistic: Tensor, layout: Layout) -> Tensor:
    """Each convolution kernel's entries replaced by their mean (AdaHessian's spatial averaging).

    statistic (..., d) -> (..., d). Only tensors with more than two axes (out, in, *kernel) are touched.
    """
    parts = layout.split(statistic)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) > 2:
            kernel = tuple(range(2 - len(shape), 0))
            parts[name] = parts[name].mean(dim=kernel, keepdim=True).expand_as(parts[name])
    return layout.join(parts)
