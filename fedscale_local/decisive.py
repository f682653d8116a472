"""Which keys of a configuration decide what its rounds compute, and which do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVALUATED = ("eval_clients", "eval_personal_steps", "eval_personal_step_size")
"""Keys that decide what is asked of the last model, after the last round."""
FREE = (
    "num_rounds",
    "run_dir",
    *EVALUATED,
    "checkpoint_every",
    "checkpoint_keep",
    "round_timeout",
    "engine",
    "superlink",
    "tracking",
)
"""Keys and sections that decide nothing of what a round computes: they may differ when a run is carried on, and make no
other cell of a sweep and no other method of a comparison."""


def decisive(container: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result, of a configuration as plain values; more rounds or another place or pace do not.

    Only where noise was made for a target epsilon, the number of rounds does.
    """
    privacy = container.get("privacy")
    aims = isinstance(privacy, Mapping) and privacy.get("target_epsilon") is not None
    return {
        key: value
        for key, value in sorted(container.items())
        if key not in FREE or (aims and key == "num_rounds")
    }
