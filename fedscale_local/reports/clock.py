"""The clock of the federation that was simulated: how long its rounds would take, from what was recorded of them.

A round takes its latency, the local steps of that sampled client which takes the most, and the transfer of what a
client receives and sends. The records have the bytes of all clients together, so each client's are their mean; those of
a round 0 count in round 1. Every client is as fast as every other, and a step takes as long under every method. The
same records give the same seconds, on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from fedscale_local.errors import ConfigError
from fedscale_local.reports.quantities import BITS_A_SECOND, SECONDS, quantity, rate_text, short_seconds_text


@dataclass(frozen=True)
class Clock:
    """step, latency: seconds of a local step and of a round; down, up: bits a second to and from a client."""

    step: float = 0.01
    down: float = 50e6
    up: float = 10e6
    latency: float = 0.1

    @property
    def words(self) -> str:
        """What a round takes, as the end of a sentence."""
        return (
            f"{short_seconds_text(self.latency)}, {short_seconds_text(self.step)} for each local step of the client "
            "that takes the most, and the transfer of a client's mean share of the bytes at "
            f"{rate_text(self.down)} down and {rate_text(self.up)} up"
        )

    def seconds(
        self, steps: np.ndarray, bytes_down: np.ndarray, bytes_up: np.ndarray, clients: np.ndarray
    ) -> np.ndarray:
        """Of each round (n,): steps of the client that takes the most, bytes of all clients, how many were asked.

        >>> Clock().seconds(*(np.array([x]) for x in (10, 1_250_000, 1_250_000, 2)))
        array([0.8])
        """
        bits = 8 / np.maximum(clients, 1)
        return self.latency + steps * self.step + bits * (bytes_down / self.down + bytes_up / self.up)


REMEDY = "give any of --clock step=10ms,down=50Mbit,up=10Mbit,latency=100ms"


def parse(text: str) -> Clock:
    """The clock with these of its numbers changed.

    >>> parse("step=0s,up=1Gbit")
    Clock(step=0.0, down=50000000.0, up=1000000000.0, latency=0.1)
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = part.partition("=")
        if name not in {field.name for field in fields(Clock)} or name in found:
            expectation = f"expected step, down, up or latency, each once, found '{part}'"
            raise ConfigError(f"--clock={text}", expectation, REMEDY)
        is_rate = name in ("down", "up")
        found[name] = quantity(amount, BITS_A_SECOND if is_rate else SECONDS)
        if math.isnan(found[name]) or (is_rate and found[name] == 0):
            wanted = "bits a second, more than 0 (kbit, Mbit, Gbit)" if is_rate else "a time (us, ms, s, min)"
            raise ConfigError(f"--clock={text}", f"expected {wanted} for {name}, found '{amount}'", REMEDY)
    return replace(Clock(), **found)
