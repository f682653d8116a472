"""Kill runs of every strategy at random instants and carry each on: does it end with the same bytes?

    python -m benchmarks.kills --times 200 [key=value ...]

A run is a forked child of this process, on small data, with a checkpoint after every round. It is killed (SIGKILL) at
an instant drawn uniformly from the length of an undisturbed run, carried on by another child, which is killed likewise,
and so on; after a few kills one is left alone. Then rounds.jsonl and model.safetensors are compared with those of a
run that was never killed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fedscale_local import compose, lifecycle, reports

SMALL = (
    "data=synthetic data.dimension=10 data.num_classes=4 num_clients=12 clients_per_round=8 num_rounds=20 "
    "model=logistic client.local_steps=2 client.batch_size=4 engine.workers=1 checkpoint_every=1"
)
KILLS_OF_A_RUN = 4


def strategies() -> list[str]:
    """Every choice of strategy, but for the one that needs a strategy of the user's."""
    return [name for name in compose.groups()["strategy"].choices if name != "flower"]


def fork(work: Callable[[], object]) -> int:
    """A child that does this work; its status says whether it succeeded."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    return child


def is_done(child: int, seconds: float) -> bool:
    """Kill the child after that time, unless it has ended; whether it had."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
            return True
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def results(run_dir: Path) -> tuple[bytes, bytes]:
    return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()


def torment(
    name: str, kills: int, folder: Path, draw: random.Random, overrides: Sequence[str] = ()
) -> tuple[int, int, bool]:
    """Runs that are killed so often in all: kills, those of them before any checkpoint, equal bytes in the end?"""
    config = compose.config([*SMALL.split(), f"strategy={name}", *overrides])

    def start(run_dir: Path) -> Callable[[], object]:
        if (run_dir / "manifest.json").exists():
            return lambda: lifecycle.resume(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)  # killed before it was a run
        return lambda: lifecycle.run(config.model_copy(update={"run_dir": str(run_dir)}))

    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    is_done(fork(start(whole)), 600)
    length = time.monotonic() - began
    early, same = 0, True
    for number in range(kills):
        while is_done(fork(start(killed)), draw.uniform(0, length)):
            same = same and results(killed) == results(whole)
            shutil.rmtree(killed)
        early += not list(killed.glob("checkpoints/*.json"))
        if number % KILLS_OF_A_RUN == KILLS_OF_A_RUN - 1 or number == kills - 1:
            is_done(fork(start(killed)), 600)
            same = same and results(killed) == results(whole)
            shutil.rmtree(killed)
    return kills, early, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200, help="how many kills in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="further keys of the runs, as engine.client_state=disk")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    draw, names = random.Random(arguments.seed), strategies()
    print("| strategy | kills | before a checkpoint | same bytes |\n|---|---|---|---|")
    unequal, began = 0, time.monotonic()
    for number, name in enumerate(names):
        kills = len(range(number, arguments.times, len(names)))  # dealt out one by one
        if kills:
            with tempfile.TemporaryDirectory() as folder:
                hit, early, same = torment(name, kills, Path(folder), draw, arguments.overrides)
            unequal += not same
            print(f"| {name} | {hit} | {early} | {'yes' if same else 'NO'} |", flush=True)
    print(
        f"\n{arguments.times} kills, {unequal} strategies that ended otherwise, {time.monotonic() - began:.0f} s"
    )
    sys.exit(unequal > 0)


if __name__ == "__main__":
    main()
