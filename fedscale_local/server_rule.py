"""How the server moves from x towards what the clients' models were combined to: the shape of a server rule.

Delta = combined - x. Everything stays in the dtype of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

ServerState = dict[str, Tensor]
Move = Callable[[Tensor, Tensor, ServerState, float], Tensor]
"""(x, combined, state, S/N) -> the new x; the state is renewed in place, by name."""


class ServerRule(NamedTuple):
    """start(x) -> the state before round 1; move, once a round."""

    start: Callable[[Tensor], ServerState]
    move: Move
