"""Trackers are told of a run by its own growing records, from a thread beside it: the same in every engine.

The run directory stays the truth. A tracker that fails or hangs is left, which is said once on stderr, and the run
goes on; `fedscale-local resume RUN_DIR` tells it what it has missed.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fedscale_local.config import Config
from fedscale_local.errors import ConfigError
from fedscale_local.run_dir import SWEEP
from fedscale_local.tail import Tail

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
EXTRAS = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}
"""tracking=<choice>, which is the extra's name, too -> the package that it needs."""

Send = Callable[[int, float, Mapping[str, float]], None]
"""Tell of one round: its number, when it ended (seconds since 1970), its numbers by name."""


class Told(NamedTuple):
    """Whose numbers they are. overrides: what sets a cell of a sweep apart; None outside of one."""

    run_dir: Path
    config: Config
    overrides: str | None

    @property
    def sweep(self) -> Path | None:
        return None if self.overrides is None else self.run_dir.parent

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "manifest.json").read_bytes())
        return found


Tracker = Callable[[Told], AbstractContextManager[tuple[Send, int]]]
"""Opens what the tracker has of this run; with it, the last round that is already there."""


def check(config: Config) -> None:
    """Raises ConfigError where the tracker that is asked for is not installed."""
    if config.tracking.name != "none":
        _tracker(config)


def _tracker(config: Config) -> Tracker:
    name = config.tracking.name
    try:
        found: Tracker = importlib.import_module(f"{__name__}.{name}").opened
    except ImportError as error:
        raise ConfigError(
            f"tracking={name}",
            f"it needs the package {EXTRAS[name]} ({error})",
            f"install it with: pip install 'fedscale-local[{name}]'",
        ) from None
    return found


@contextmanager
def follow(config: Config, after: int = 0) -> Iterator[None]:
    """Tell the configured tracker of each round while the body runs.

    after: the round that the run goes on from; what the records hold beyond it is dropped and done again.
    """
    if config.tracking.name == "none":
        yield
        return
    tracker = _tracker(config)  # imported here, since a fork in the midst of an import would have half of it
    run_dir = Path(str(config.run_dir))
    told, stop, trouble = Told(run_dir, config, _overrides(run_dir)), threading.Event(), _Once(config)
    newest = _Newest(run_dir, after)

    def tell() -> None:
        try:
            with tracker(told) as (send, last):
                is_over = False
                while not is_over:
                    is_over = stop.wait(POLL_SECONDS)
                    for round, seconds, numbers in newest.read():
                        if round > last:
                            send(round, seconds, numbers)
                            last = round
        except Exception as error:
            trouble.tell(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )

    thread = threading.Thread(target=tell, name="tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive():
            trouble.tell(f"no answer in {PATIENCE_SECONDS:g} seconds")


class _Once:
    """Trouble is told once."""

    def __init__(self, config: Config) -> None:
        self.config, self.is_told = config, False

    def tell(self, reason: str) -> None:
        if not self.is_told:
            self.is_told = True
            words = f"tracking={self.config.tracking.name} has failed ({reason}); the run goes on without it"
            with suppress(OSError, ValueError):
                print(f"fedscale-local: {words}, and {self.config.run_dir} has everything", file=sys.stderr)


class _Newest:
    """The rounds of a run directory as they come; those that a resumed run is about to drop are passed over."""

    def __init__(self, run_dir: Path, after: int) -> None:
        self.rounds, self.timing = Tail(run_dir / "rounds.jsonl"), Tail(run_dir / "timing.jsonl")
        self.ended: dict[int, float] = {}
        beyond = any(record.get("round", 0) > after for record in Tail(self.rounds.path).read()[0])
        self.old = self.rounds.path.stat().st_ino if beyond else None

    def read(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        if self.old is not None:  # lines are dropped by writing the file anew
            with suppress(OSError):
                if self.rounds.path.stat().st_ino == self.old:
                    return
            self.old = None
        records = self.rounds.read()[0]
        self.ended |= {r["round"]: r["ended_at"] for r in self.timing.read()[0] if "ended_at" in r}
        for record in records:
            yield record["round"], self.ended.get(record["round"], time.time()), numbers_of(record)


def numbers_of(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """What of a round's record is a number, by name; how many replies failed.

    >>> numbers_of({"round": 3, "clients": [1], "train_loss": 0.5, "test_loss": None,
    ...             "bytes_up_by": {"parameters": 8}, "failures": [{"client": 1, "reason": "late"}]})
    {'train_loss': 0.5, 'bytes_up_by/parameters': 8.0, 'failures': 1.0}
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        if key == "failures" and isinstance(value, list):
            found[prefix + key] = float(len(value))
        elif isinstance(value, dict):
            found |= numbers_of(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + key != "round":
            found[prefix + key] = float(value)
    return found


def _overrides(run_dir: Path) -> str | None:
    """What sets this cell apart, where the directory above is a sweep's that has it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows = json.loads((run_dir.parent / SWEEP).read_bytes())["cells"]
        return next(str(row["overrides"]) for row in rows if row["run_dir"] == run_dir.name)
    return None
