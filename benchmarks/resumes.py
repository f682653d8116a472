"""Stop a run of every strategy after each of its rounds, the last included, and carry it on: the same bytes?

    python -m benchmarks.resumes [--engine in_process|ray|superlink] [--warm] [--strategies savic,...] [key=value ...]

A run of one round is carried on to the second, that one to the third, and so on, each by a new command's work on the
engine that is asked for; after the last round it is carried on once more, with nothing left to do. In the end it has
the bytes of an undisturbed run in process: so what a round leaves in memory alone, on any engine, would show. With
superlink a federation of one node for each client is started first. Most of the time goes to importing torch and
Flower, eight times for each run, and with --warm what is started are forks of a process that has imported them; so are
the workers of the Ray cluster of one CPU that all runs then share. A run that fails is named and kept where it is.
Further keys apply to the runs that are stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from benchmarks.kills import results, strategies
from benchmarks.warm_commands import cluster, warm
from fedscale_local import compose, federation, lifecycle, reports
from fedscale_local.errors import FedscaleError

ROUNDS, CLIENTS = 12, 4
SMALL = (
    f"data=synthetic data.dimension=10 data.num_classes=4 num_clients={CLIENTS} clients_per_round=3 model=logistic "
    "client.local_steps=2 client.batch_size=4 engine.workers=1 engine.mode=looped eval_clients=false "
    f"checkpoint_every=1 num_rounds={ROUNDS}"
)


def unequal(name: str, engine: Sequence[str], folder: Path) -> bool:
    """Does this strategy, carried on after each round by this engine, end with other bytes than an undisturbed one?"""
    overrides = [*SMALL.split(), f"strategy={name}"]
    others = [override for override in overrides if not override.startswith("engine.")]
    here, there = compose.config(overrides), compose.config([*others, *engine] if engine else overrides)
    whole, stopped = folder / "whole", folder / "stopped"
    lifecycle.run(here.model_copy(update={"run_dir": str(whole)}))
    lifecycle.run(there.model_copy(update={"run_dir": str(stopped), "num_rounds": 1}))
    for round in [*range(2, ROUNDS + 1), ROUNDS]:
        lifecycle.resume(stopped, there.model_copy(update={"run_dir": str(stopped), "num_rounds": round}))
    return results(stopped) != results(whole)


@contextmanager
def engine(name: str, folder: Path, commands: Path | None) -> Iterator[list[str]]:
    """The overrides that choose it; commands: where those that are warm are."""
    if name == "in_process":
        yield []
    elif name == "ray" and commands is not None:
        with cluster(commands) as overrides:
            yield ["engine=ray", *overrides]
    elif name == "ray":
        yield ["engine=ray"]
    else:
        federation.up(folder, CLIENTS)
        try:
            yield ["engine=superlink", f"superlink.federation={folder}"]
        finally:
            federation.down(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["in_process", "ray", "superlink"], default="in_process")
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default=strategies(), help="default: all"
    )
    parser.add_argument(
        "--warm", action="store_true", help="what Flower and Ray start are forks of one process"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    failed, began = 0, time.monotonic()
    print(
        f"| strategy | carried on, {arguments.engine} | same bytes | seconds |\n|---|---|---|---|", flush=True
    )
    with (
        tempfile.TemporaryDirectory() as place,
        warm(Path(place) / "commands") if arguments.warm else nullcontext() as commands,
        engine(arguments.engine, Path(place) / "federation", commands) as overrides,
    ):
        for name in arguments.strategies:
            start, folder = time.monotonic(), Path(tempfile.mkdtemp())
            try:
                found = "NO" if unequal(name, [*overrides, *arguments.overrides], folder) else "yes"
            except FedscaleError as error:
                found = f"NO: {error}"
            if found == "yes":
                shutil.rmtree(folder)
            failed += found != "yes"
            print(f"| {name} | {ROUNDS} | {found} | {time.monotonic() - start:.0f} |", flush=True)
    print(f"\n{failed} strategies that ended otherwise, {time.monotonic() - began:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
