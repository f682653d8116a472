"""Who masks with whom, and how many of them have to stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def holders(
    clients: Sequence[int], neighbours: int | None, shuffle: Callable[[list[int]], None]
) -> dict[int, list[int]]:
    """For each client itself and its neighbours, ascending: those who hold shares of its secrets.

    Clients are put on a circle in random order, each beside `neighbours` / 2 on either side (Bell et al. 2020,
    Algorithm 1). None, or as many as there are others: everybody.

    >>> holders([3, 5, 7, 9, 11], 2, lambda circle: None)[3]
    [3, 5, 11]
    """
    if neighbours is None or neighbours >= len(clients) - 1:
        return {client: sorted(clients) for client in clients}
    circle, reach = sorted(clients), neighbours // 2
    shuffle(circle)
    return {
        client: sorted(circle[(place + step) % len(circle)] for step in range(-reach, reach + 1))
        for place, client in enumerate(circle)
    }


def needed(share: float, count: int) -> int:
    """How many of `count` have to stay, by the share of them that has to: 2 at least, as a sum of one is no secret.

    >>> needed(0.6, 10), needed(0.6, 3), needed(0.6, 1)
    (6, 2, 2)
    """
    return max(2, math.ceil(round(share * count, 9)))
