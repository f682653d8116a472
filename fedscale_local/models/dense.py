"""Models that see the input as one flat vector: linear and logistic regression, the multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class Affine(nn.Linear):
    """y = W x (+ b) of the flattened input, started at zero: a convex problem has no use for a random start.

    Parameters: weight (num_outputs, features), then bias (num_outputs,) where there is one.
    """

    def reset_parameters(self) -> None:
        """All zeros; draws nothing."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) -> (batch, num_outputs)."""
        return super().forward(x.flatten(1))


def linear(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Linear regression without an intercept: weight (1, features).

    >>> [(name, tuple(p.shape)) for name, p in linear((3,), 1).named_parameters()]
    [('weight', (1, 3))]
    """
    return Affine(math.prod(input_shape), num_outputs, bias=False)


def logistic(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Multinomial logistic regression: weight (classes, features), then bias (classes,).

    >>> [(name, tuple(p.shape)) for name, p in logistic((2, 2), 3).named_parameters()]
    [('weight', (3, 4)), ('bias', (3,))]
    """
    return Affine(math.prod(input_shape), num_outputs)


def mlp(input_shape: tuple[int, ...], num_outputs: int, *, hidden: Sequence[int] = (128,)) -> nn.Module:
    """Fully connected layers with ReLU between them; `hidden` holds the widths, input side first.

    >>> import torch
    >>> mlp((4,), 2, hidden=[8])(torch.zeros(5, 4)).shape
    torch.Size([5, 2])
    """
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in itertools.pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))
