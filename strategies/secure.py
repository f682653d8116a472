"""The server's messages in a secure sum (fedscale_local/secagg): its four stages around one exchange of vectors.

    keys -> shares -> masked, which is the exchange that the strategy configured -> unmask

A stage in which too few clients answered, or too few neighbours of one of them, ends the sum: no later stage asks
anybody, so nothing is unmasked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedscale_local import flower_adapter as adapter
from fedscale_local import sending, wire
from fedscale_local.config_secure import SecureAggregation
from fedscale_local.experiment import Experiment
from fedscale_local.randomness import derive
from fedscale_local.secagg import client as protocol
from fedscale_local.secagg import graph, rounding, server
from fedscale_local.secagg import primitives as p

Configure = Callable[[int, ArrayRecord, ConfigRecord, Grid], Iterable[Message]]
BESIDE = ("weight", "steps", "loss", "clipped")
"""What is summed up beside the vectors."""


class SecureSum:
    """One sum after another; `clients` and `sums` are those of the last one, empty where it failed."""

    def __init__(
        self,
        experiment: Experiment,
        section: SecureAggregation,
        asked: Callable[[int], list[int]],
        expects: Callable[[int], dict[str, int]],
    ) -> None:
        self.experiment, self.section = experiment, section
        self.asked, self.expects = asked, expects
        """Whose vectors are wanted in a round, and which, by name and size (0: the model's)."""
        self.stage = "keys"
        self._begin(0, [])

    def _begin(self, round: int, clients: list[int]) -> None:
        self.round, self.there = round, clients
        """Who has answered so far."""
        self.fewest = max(
            self.experiment.config.min_replies, graph.needed(self.section.threshold, len(clients))
        )
        self.num_asked = len(clients)
        self.keys: dict[int, bytes] = {}
        self.holders: dict[int, list[int]] = {}
        self.members: dict[int, server.Member] = {}
        self.sealed: dict[int, dict[int, bytes]] = {}
        """holder -> owner -> the pair of shares that only the holder can read"""
        self.masked: dict[int, np.ndarray] = {}
        self.clients: list[int] = []
        self.sums: dict[str, Tensor] = {}
        self.beside = dict.fromkeys(BESIDE, 0)

    # ---------------------------------------------------------------- what is sent

    def stages(self, configure: Configure) -> list[Configure]:
        """The exchanges that bring the sum of what `configure` asks for; `take` is to be given the replies of each."""
        return [self._ask_keys, self._ask_shares, partial(self._ask_masked, configure), self._ask_unmask]

    def _ask_keys(self, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        self.stage = "keys"
        self._begin(round, self.asked(round))
        self.nodes = adapter.roster(grid, len(self.experiment.partition))
        return [self._message(client) for client in self.there]

    def _ask_shares(self, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        self.stage = "shares"
        self.holders = graph.holders(self.there, self.section.neighbours, self._shuffle)
        return [
            self._message(
                client,
                b"".join(self.keys[holder] for holder in self.holders[client]),
                holders=self.holders[client],
            )
            for client in self.there
        ]

    def _ask_masked(
        self, configure: Configure, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        messages, sent = configure(round, arrays, config, grid), []
        self.stage = "masked"
        for message in messages:
            client = self._client(message.metadata.dst_node_id)
            if client in self.there:
                senders = self._senders(client)
                data = b"".join(self.sealed[client][owner] for owner in senders)
                own = self._message(client, data, **{"from": senders}).content
                records = {**message.content, **own}
                sent.append(adapter.with_content(message, RecordDict(records)))
        return sent

    def _ask_unmask(self, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        self.stage = "unmask"
        return [
            self._message(client, arrived=sorted(set(self.holders[client]) & set(self.masked)))
            for client in self.there
        ]

    def _message(self, client: int, data: bytes | None = None, **told: list[int]) -> Message:
        records: dict[str, ArrayRecord | ConfigRecord] = {
            wire.SECURE_STAGE: ConfigRecord({wire.ROUND: self.round, "stage": self.stage, **told})
        }
        if data is not None:
            tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            records[wire.SECURE] = wire.vector_record(tensor)
        return adapter.message_to(self.nodes[client], RecordDict(records))  # type: ignore[arg-type]

    def _senders(self, client: int) -> list[int]:
        """The neighbours whose shares came."""
        return [owner for owner in self.holders[client] if owner != client and owner in self.members]

    def _shuffle(self, clients: list[int]) -> None:
        """Neighbours are drawn by the operating system on devices, where nobody is to foresee them."""
        config = self.experiment.config
        secret = config.engine.name == "superlink"
        stream = random.SystemRandom() if secret else random.Random(derive(config.seed, "secure", self.round))
        stream.shuffle(clients)

    # ---------------------------------------------------------------- what comes back

    def fault(self, client: int, content: RecordDict) -> str | None:
        """What is wrong with the form of a reply; of its numbers nobody can say anything. ValueError for the rest."""
        for key, size in self._sizes(client).items():
            kind = torch.uint8 if self.stage != "masked" else rounding.signed(self.section.modulus_bits)
            try:
                wire.from_vector_record(content.array_records[key], size, kind)
            except KeyError:
                return f"the reply has no {key}"
        return None

    def _sizes(self, client: int) -> dict[str, int]:
        """How many numbers the records of this stage's replies have, by key."""
        if self.stage == "keys":
            return {wire.SECURE: protocol.PUBLIC}
        if self.stage == "shares":
            return {wire.SECURE: p.KEY + protocol.SEALED * (len(self.holders[client]) - 1)}
        if self.stage == "masked":
            return self._vectors() | {wire.SECURE: len(BESIDE)}
        return {wire.SECURE: p.SEED * (len(self._senders(client)) + 1)}

    def _vectors(self) -> dict[str, int]:
        """The vectors that are summed up, in the order in which they are masked, and their sizes."""
        expected, size = self.expects(self.round), self.experiment.task.layout.size
        return {
            key: expected[key] or size for key in sorted(expected.keys() - self.experiment.local_rule.counts)
        }

    def take(self, replies: list[Message]) -> str | None:
        """Go on with a stage's good replies; else why they are not enough, in words, and the sum has failed."""
        found = {self._client(reply.metadata.src_node_id): reply.content for reply in replies}
        lack = self._lack(set(found))
        if lack is None:
            self.there = sorted(found)
            lack = getattr(self, f"_take_{self.stage}")({client: found[client] for client in self.there})
        if lack is not None:
            self._begin(self.round, [])
        return lack

    def _lack(self, there: set[int]) -> str | None:
        if len(there) < self.fewest:
            return (
                f"{len(there)} of {self.num_asked} clients are left in the stage {self.stage}, and {self.fewest} are "
                f"needed (secure.threshold={self.section.threshold}, min_replies="
                f"{self.experiment.config.min_replies}): nothing is unmasked"
            )
        for owner in self.members or self.holders:
            held = self.holders[owner]
            fewest = graph.needed(self.section.threshold, len(held))
            left = len(there & set(held))
            if (owner in there or self.members) and left < fewest:
                return (
                    f"{left} of {len(held)} neighbours of client {owner} are left in the stage {self.stage}, and "
                    f"{fewest} are needed (secure.threshold={self.section.threshold}): nothing is unmasked"
                )
        return None

    def _take_keys(self, found: Mapping[int, RecordDict]) -> None:
        self.keys = {client: _bytes(content) for client, content in found.items()}

    def _take_shares(self, found: Mapping[int, RecordDict]) -> None:
        for owner, content in found.items():
            data, held = _bytes(content), self.holders[owner]
            self.members[owner] = server.Member(
                self.keys[owner], data[: p.KEY], held, graph.needed(self.section.threshold, len(held))
            )
            others = [holder for holder in held if holder != owner]
            for holder, sealed in protocol.placed(others, data[p.KEY :], protocol.SEALED).items():
                self.sealed.setdefault(holder, {})[owner] = sealed

    def _take_masked(self, found: Mapping[int, RecordDict]) -> None:
        kind = rounding.signed(self.section.modulus_bits)
        sizes = self._vectors() | {wire.SECURE: len(BESIDE)}
        for client, content in found.items():
            parts = [wire.from_vector_record(content.array_records[key], n, kind) for key, n in sizes.items()]
            self.masked[client] = rounding.to_residues(torch.cat(parts), self.section.modulus_bits)

    def _take_unmask(self, found: Mapping[int, RecordDict]) -> str | None:
        shares = {
            holder: protocol.placed(sorted([*self._senders(holder), holder]), _bytes(content), p.SEED)
            for holder, content in found.items()
        }
        try:
            total = rounding.from_residues(server.unmasked(self.members, self.masked, shares))
        except ValueError as error:
            return f"{error}: nothing is unmasked"
        sizes, clients = self._vectors(), sorted(self.masked)
        *parts, beside = total.split([*sizes.values(), len(BESIDE)])
        told = dict(zip(BESIDE, beside.tolist(), strict=True))
        most = self.experiment.largest_weight(clients)
        limit = rounding.most(self.section.bits) * told["weight"]
        if not 0 < told["weight"] <= most or any(int(part.abs().max()) > limit for part in parts):
            return (
                f"the sum of {len(clients)} clients has numbers that no sum of theirs can have: one of them has sent "
                "another vector than it should, and nobody can tell which"
            )
        self.clients, self.beside = clients, told
        self.sums = {key: self._real(key, part) for key, part in zip(sizes, parts, strict=True)}
        return None

    def _real(self, key: str, total: Tensor) -> Tensor:
        largest = getattr(self.section.range, sending.bound_of(key))
        return rounding.restored(total, largest, self.section.bits, self.experiment.task.dtype)

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the clients of the sum, as a single reply would tell them."""
        weight, size = self.beside["weight"], sum(self._vectors().values())
        step = self.section.range.loss / rounding.most(self.section.bits)
        return {
            "local-steps": self.beside["steps"] / weight,
            "train-loss": self.beside["loss"] * step / weight,
            "secure-clipped": self.beside["clipped"] / (size * len(self.clients)),
        }

    def _client(self, node: int) -> int:
        return node - adapter.FIRST_NODE


def _bytes(content: RecordDict) -> bytes:
    record = content.array_records[wire.SECURE]
    return wire.from_vector_record(record, record["flat"].shape[0], torch.uint8).numpy().tobytes()
