"""The server's part in a secure sum: from masked vectors and shares to the sum of those vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedscale_local.secagg import client as clients
from fedscale_local.secagg import primitives as p


class Member(NamedTuple):
    """What the server knows of a client that shared its secrets."""

    key: bytes
    """Its public keys."""
    commitment: bytes
    holders: Sequence[int]
    """Itself and its neighbours, ascending, in the order of its shares."""
    threshold: int


def unmasked(
    members: Mapping[int, Member], masked: Mapping[int, np.ndarray], shares: Mapping[int, Mapping[int, bytes]]
) -> np.ndarray:
    """The sum of the vectors whose masked ones came, modulo 2^R.

    members: by client, all that masks were agreed with.  masked: by client.  shares: holder -> owner -> its one share.

    Raises ValueError where shares are too few or do not give what their owner committed itself to.
    """
    seeds = {owner: _seed(owner, member, owner in masked, shares) for owner, member in members.items()}
    total = np.sum(
        [masked[client] for client in sorted(masked)], axis=0, dtype=next(iter(masked.values())).dtype
    )
    for owner, member in members.items():
        if owner in masked:
            total = total - p.mask(clients.own_mask(seeds[owner]), total.size, total.dtype)
            continue
        for other in set(member.holders) & set(masked):
            key = clients.pair_mask(seeds[owner], members[other].key[p.KEY :], owner, other)
            part = p.mask(key, total.size, total.dtype)
            total = total - part if other < owner else total + part
    return total


def _seed(owner: int, member: Member, arrived: bool, shares: Mapping[int, Mapping[int, bytes]]) -> bytes:
    """The owner's own seed where its vector arrived, else the seed of its masking key."""
    held = {
        place: shares[holder][owner]
        for place, holder in enumerate(member.holders)
        if owner in shares.get(holder, {})
    }
    try:
        seed = p.combined(held, member.threshold)
    except ValueError as error:
        raise ValueError(f"the mask of client {owner} stays secret ({error})") from None
    is_it = (
        clients.commitment(seed) == member.commitment
        if arrived
        else p.public_key(seed) == member.key[p.KEY :]
    )
    if not is_it:
        raise ValueError(f"the shares of client {owner} do not fit each other: one of their holders lies")
    return seed
