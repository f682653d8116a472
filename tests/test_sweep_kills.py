"""A sweep that is killed at random moments and finished by the same command tells what an undisturbed one tells."""

from __future__ import annotations

import base64
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from real_processes import descendants

ARGUMENTS = (
    "run -m data=synthetic data.dimension=4 data.num_classes=3 num_clients=4 num_rounds=12 model=logistic "
    "client.local_steps=1 client.batch_size=4 engine.workers=1 checkpoint_every=1 "
    "strategy=fedavg,savic,scaffold seed=range(5) hydra.sweep.dir=s"
)
NUM_CELLS, NUM_ROUNDS, KILLS = 15, 12, 5


def start(place: Path) -> subprocess.Popen[bytes]:
    place.mkdir(exist_ok=True)
    with (place / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fedscale_local.cli", *ARGUMENTS.split()],
            cwd=place,
            stdout=out,
            stderr=out,
        )


def finish(place: Path) -> float:
    """The whole sweep, or what is left of it; the seconds that its report took."""
    process = start(place)
    assert process.wait() == 0, (place / "out.txt").read_text()
    return time.time() - written(place / "s" / "sweep.json")


def written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def rounds_done(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (place / "s").glob("*/rounds.jsonl"))


def reports(place: Path, since: float) -> bool:
    """Are all cells done, and was that put on record since then? What is left to do is the sweep's report."""
    pages = [written(path) for path in (place / "s").glob("*/report.html")]
    return len(pages) == NUM_CELLS and written(place / "s" / "sweep.json") >= max(since, *pages)


def kill(place: Path, whole_tree: bool, is_time: Callable[[float], bool], seconds: float) -> bool:
    """Begin the sweep and kill it so long after it is time; False if it was done before."""
    since, process = time.time(), start(place)
    while not is_time(since) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    for one in descendants(process.pid) if whole_tree else [process.pid]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    status = process.wait()
    assert status in (0, -signal.SIGKILL), (place / "out.txt").read_text()
    return status != 0


def told(place: Path) -> dict[str, bytes]:
    """Everything that the seeds determine, and the report without its time stamps."""
    folder = place / "s"
    names = ("rounds.jsonl", "model.safetensors", "partition.json", "config.yaml", "clients.json")
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in folder.glob(f"*/{name}")
    }
    stamps, tables = (
        re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"),
        re.compile(rb"(?<=;base64,)[A-Za-z0-9+/=]+"),
    )
    for name in ("report.html", "sweep.json"):
        text = tables.sub(lambda table: base64.b64decode(table[0]), (folder / name).read_bytes())
        found[name] = stamps.sub(b"", text)  # the tables that can be saved have some, too
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_five_times_it_ends_with_the_same_report(tmp_path: Path) -> None:
    """Four moments are drawn over the rounds of all cells, one over the writing of the report.

    One kill of the first four comes a while after its round: between two cells, or as one begins or ends. Three kills,
    the last among them, take every process of the sweep at once, two only the first, whose end the others then see.
    """
    seed = int(os.environ.get("KILLS_SEED") or time.time_ns())
    print(f"KILLS_SEED={seed} draws the same moments again")
    draw = random.Random(seed)
    report_seconds = finish(tmp_path / "whole")
    killed = tmp_path / "killed"
    moments = sorted(draw.randrange(NUM_CELLS * NUM_ROUNDS) for _ in range(KILLS - 1))
    delays = draw.sample([0, 0, 0, draw.uniform(0, min(1, report_seconds / 2))], KILLS - 1)
    trees = draw.sample([True, True, False, False], KILLS - 1)
    for moment, delay, whole_tree in zip(moments, delays, trees, strict=True):
        assert kill(killed, whole_tree, lambda _, moment=moment: rounds_done(killed) >= moment, delay)
    print(f"the report takes {report_seconds:.1f} s; kills at {moments} after {delays}, whole trees {trees}")
    while not kill(killed, True, lambda since: reports(killed, since), draw.uniform(0, report_seconds)):
        pass  # it was quicker than the undisturbed one, and writes its report again
    finish(killed)
    whole, after = told(tmp_path / "whole"), told(killed)
    assert len(whole) == 5 * NUM_CELLS + 2 and whole.keys() == after.keys()
    assert [name for name in whole if whole[name] != after[name]] == []
    assert len(list(killed.glob("s/*/report.html"))) == NUM_CELLS
    manifests = [path.read_bytes() for path in killed.glob("s/*/manifest.json")]
    assert any(b"resumed" in manifest for manifest in manifests), "no kill has hit a run that was under way"
