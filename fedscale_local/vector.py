"""Parameters as one flat vector, and back by name.

A diagonal preconditioner is elementwise, so nothing inside the algorithm needs shapes: one model is (d,), a
stack of clients is (clients, d). Names and shapes come back only at the borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in the flat vector.

    >>> layout = Layout.of([("weight", torch.zeros(2, 3)), ("bias", torch.zeros(2))])
    >>> layout.size
    8
    >>> {name: tuple(part.shape) for name, part in layout.split(torch.zeros(5, 8)).items()}
    {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(named_tensors: Iterable[tuple[str, Tensor]]) -> Layout:
        pairs = [(name, tuple(tensor.shape)) for name, tensor in named_tensors]
        return Layout(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each tensor begins."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @cached_property
    def num_characters(self) -> int:
        """Of all names together."""
        return sum(map(len, self.names))

    @cached_property
    def size(self) -> int:
        """d, the length of the flat vector."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views of a flat vector (..., d), each (..., *shape)."""
        parts = flat.split(self.sizes, dim=-1) if self.names else ()
        lead = flat.shape[:-1]
        return {
            name: part.unflatten(-1, shape) if len(shape) > 1 else part.reshape(lead + shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat vector (..., d) of named tensors, each (..., *shape)."""
        parts = [
            named[name].flatten(named[name].dim() - len(shape)) if shape else named[name].unsqueeze(-1)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return torch.cat(parts, dim=-1)


def is_finite(vector: Tensor) -> bool:
    """Are all numbers of a vector (d,) finite? A sum of squares tells most of the time, and is quick."""
    return math.isfinite(torch.dot(vector, vector).item()) or bool(vector.isfinite().all())
