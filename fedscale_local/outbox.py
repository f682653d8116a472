"""Memory for what another process is to have: what is made there crosses to it without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Room = Callable[[int], Tensor | None]
"""So many bytes of it, uint8; None where there are no more."""

_room: Room = lambda num_bytes: None  # noqa: E731


def use(room: Room) -> None:
    """What this process makes for another is to lie there from now on."""
    global _room
    _room = room


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As torch.empty, but where it crosses as it is, as long as there is room. It is gone with the message that brings
    it, or with the next that this process receives: nothing that stays may be made here."""
    found = _room(math.prod(shape) * dtype.itemsize)
    return torch.empty(tuple(shape), dtype=dtype) if found is None else found.view(dtype).view(tuple(shape))
