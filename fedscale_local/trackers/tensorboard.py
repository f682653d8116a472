"""TensorBoard: one folder of event files a run, written anew from the run's records whenever the run is carried on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedscale_local.config import to_container
from fedscale_local.config_tracking import TensorBoard
from fedscale_local.trackers import Send, Told


def folder(told: Told) -> Path:
    """tensorboard/ in the run directory; the cells of a sweep have theirs side by side in the sweep's."""
    assert isinstance(told.config.tracking, TensorBoard)
    chosen, sweep = told.config.tracking.dir, told.sweep
    if chosen is None:
        return told.run_dir / "tensorboard" if sweep is None else sweep / "tensorboard" / told.run_dir.name
    return Path(chosen, *([] if sweep is None else [sweep.name]), told.run_dir.name)


@contextmanager
def opened(told: Told) -> Iterator[tuple[Send, int]]:
    place = folder(told)
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(place)) as writer:

        def send(round: int, seconds: float, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, round, walltime=seconds)
            writer.flush()

        writer.add_text("config", f"```\n{json.dumps(to_container(told.config), indent=1)}\n```")
        yield send, 0
