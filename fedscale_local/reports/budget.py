"""The budget at which runs are compared: rounds, bytes or local steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedscale_local.errors import ConfigError, RunDirError
from fedscale_local.reports.histories import History
from fedscale_local.reports.quantities import BYTE_UNITS, BYTES, bytes_text, quantity

AXES = ("rounds", "bytes", "steps")


@dataclass(frozen=True)
class Budget:
    """At most `limit` of `axis`: rounds, bytes (up and down) or steps (local steps of all clients)."""

    axis: str
    limit: float

    @property
    def words(self) -> str:
        """As a sentence about two methods ends.

        >>> Budget("rounds", 60).words, Budget("bytes", 5e7).words, Budget("steps", 2e4).words
        ('after 60 rounds', 'at equal bytes (50 MB)', 'at equal local steps (20,000)')
        """
        if self.axis == "rounds":
            return f"after {self.limit:,.0f} round{'' if self.limit == 1 else 's'}"
        told = bytes_text(self.limit) if self.axis == "bytes" else f"{self.limit:,.0f}"
        return f"at equal {'bytes' if self.axis == 'bytes' else 'local steps'} ({told})"

    def holds(self, run: History) -> np.ndarray:
        """(n,) does the run stand within the budget after each round?"""
        if self.axis not in run.spent:
            expectation = "the local steps of its clients cannot be told from its files"
            raise RunDirError(str(run.run.path), expectation, "compare with --at rounds=N or --at bytes=N")
        return run.spent[self.axis] <= self.limit * (1 + 1e-12)

    def remarks(self, runs: Sequence[History]) -> list[str]:
        """Which runs do not use the budget up; raises RunDirError where one holds no round at all."""
        none = [run for run in runs if not self.holds(run).any()]
        if none:
            least = none[0].spent[self.axis][0]
            expectation = f"no round of {none[0].run.path} lies within; its first ends at {least:g}"
            raise RunDirError(f"--at={self.axis}={self.limit:g}", expectation, "allow more")
        short = [run for run in runs if run.spent[self.axis][-1] < self.limit and not self._nearly(run)]
        if not short:
            return []
        least = min(run.spent[self.axis][-1] for run in short)
        told = bytes_text(least) if self.axis == "bytes" else f"{least:,.0f}"
        who = f"{len(short)} of {len(runs)} runs end" if len(short) > 1 else f"{short[0].run.path} ends"
        return [
            f"{who} before this budget, the earliest at {told}, and count as they ended: budgets are unequal."
        ]

    def _nearly(self, run: History) -> bool:
        """Would one more round like its last have been too much?"""
        spent = run.spent[self.axis]
        last = spent[-1] - (spent[-2] if len(spent) > 1 else 0.0)
        return spent[-1] + last > self.limit

    @staticmethod
    def command_for_bytes(limit: float) -> str:
        """The option that compares at so many bytes, or just above."""
        power = min(int(math.log10(limit) // 3), len(BYTE_UNITS) - 1) if limit >= 1 else 0
        return f"--at bytes={math.ceil(limit / 1000.0**power * 100) / 100:g}{BYTE_UNITS[power]}"


def parse(text: str) -> Budget:
    """
    >>> parse("rounds=100"), parse("bytes=50MB")
    (Budget(axis='rounds', limit=100.0), Budget(axis='bytes', limit=50000000.0))
    """
    axis, _, amount = text.partition("=")
    limit = quantity(amount, BYTES if axis == "bytes" else {"": 1.0})
    if axis not in AXES or not limit > 0:
        remedy = "give it as --at rounds=100, --at bytes=50MB (B, kB, MB, GB, TB) or --at steps=20000"
        raise ConfigError(f"--at={text}", "expected a number of rounds, bytes or steps, more than 0", remedy)
    return Budget(axis, limit)


def largest_common(runs: Sequence[History], notes: list[str]) -> Budget:
    """As many rounds as every run has; a note where some have more."""
    ends = [int(run.rounds[-1]) for run in runs]
    if min(ends) < max(ends):
        notes.append(
            f"The runs have {min(ends):,} to {max(ends):,} rounds; they are compared after {min(ends):,}, "
            "the most that all have. --at sets another budget."
        )
    return Budget("rounds", float(min(ends)))
