"""One client's part in a secure sum, stage by stage; `sum` names the sum, so that nothing is taken for another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedscale_local.secagg import primitives as p

PUBLIC = 2 * p.KEY
"""Bytes of a client's public keys: for encrypting, then for masking."""
SEALED = p.NONCE + 2 * p.SEED + p.TAG
"""Bytes of a pair of shares on its way to its holder."""


class Secrets(NamedTuple):
    """What a client makes up for one sum."""

    channel: bytes
    """Seed of the key that others encrypt for."""
    masking: bytes
    """Seed of the key that masks are agreed with."""
    own: bytes
    """b_i, the seed of its own mask."""


def fresh_secrets() -> Secrets:
    return Secrets(p.fresh_seed(), p.fresh_seed(), p.fresh_seed())


def public(secrets: Secrets) -> bytes:
    """Stage keys: what the server may know, PUBLIC bytes."""
    return p.public_key(secrets.channel) + p.public_key(secrets.masking)


def commitment(own: bytes) -> bytes:
    """By which the server knows the seed of an own mask, once it has put it together."""
    return p.derived(own, "commitment")


def shared(
    secrets: Secrets, client: int, keys: Mapping[int, bytes], threshold: int, sum: str
) -> tuple[dict[int, bytes], bytes]:
    """Stage shares: for each other holder a sealed pair of shares, and the client's own share of its own seed.

    keys: the public keys of all holders, the client's own included; shares have their order.
    """
    places = sorted(keys)
    own, masking = (p.shares(seed, threshold, len(places)) for seed in (secrets.own, secrets.masking))
    sealed = {
        other: p.encrypted(
            p.agreed(secrets.channel, keys[other][: p.KEY], _way(client, other)),
            own[place] + masking[place],
            _about(sum, client, other),
        )
        for place, other in enumerate(places)
        if other != client
    }
    return sealed, own[places.index(client)]


def masked(secrets: Secrets, client: int, keys: Mapping[int, bytes], residues: np.ndarray) -> np.ndarray:
    """Stage masked: y_i. keys: the public keys of those neighbours whose shares came."""
    total = residues + p.mask(own_mask(secrets.own), residues.size, residues.dtype)
    for other, key in sorted(keys.items()):
        part = p.mask(pair_mask(secrets.masking, key[p.KEY :], client, other), residues.size, residues.dtype)
        total = total + part if client < other else total - part
    return total


def opened(
    secrets: Secrets,
    client: int,
    keys: Mapping[int, bytes],
    sealed: Mapping[int, bytes],
    sum: str,
    arrived: Iterable[int],
) -> dict[int, bytes]:
    """Stage unmask: for each sender of a sealed pair one share, of its own seed if it is among those whose masked
    vector arrived, else of its masking key's."""
    arrived, found = set(arrived), {}
    for other, data in sorted(sealed.items()):
        key = p.agreed(secrets.channel, keys[other][: p.KEY], _way(other, client))
        pair = p.decrypted(key, data, _about(sum, other, client))
        found[other] = pair[: p.SEED] if other in arrived else pair[p.SEED :]
    return found


def own_mask(own: bytes) -> bytes:
    """The key of a client's own mask."""
    return p.derived(own, "own mask")


def pair_mask(masking: bytes, other_key: bytes, client: int, other: int) -> bytes:
    """The key of the mask that two clients add and subtract."""
    return p.agreed(masking, other_key, f"mask {min(client, other)} {max(client, other)}")


def _way(sender: int, receiver: int) -> str:
    return f"shares {sender} to {receiver}"


def _about(sum: str, sender: int, receiver: int) -> str:
    return f"{sum}, {_way(sender, receiver)}"


def placed(order: Sequence[int], data: bytes, size: int) -> dict[int, bytes]:
    """Equal pieces of `data` by the clients that they belong to, in this order; ValueError for another length."""
    if len(data) != size * len(order):
        raise ValueError(f"{len(data)} bytes, expected {size} for each of {len(order)} clients")
    return {client: data[place * size : (place + 1) * size] for place, client in enumerate(order)}
