"""Stop a run of every strategy after each of its rounds, the last included, and carry each on: the same bytes?

    python -m benchmarks.resumes [--engine in_process|ray|superlink] [--strategies savic,scaffold]

A stage is what a run had on disk after that many rounds; stages are made in process, one round at a time, and each is
carried on to the end by the engine that is asked for. So a run that is moved from one engine to another ends with
the same bytes, too. With superlink a federation of one node for each client is started first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.kills import results, strategies
from fedscale_local import compose, experiment, federation, reports

ROUNDS, CLIENTS = 12, 4
SMALL = (
    f"data=synthetic data.dimension=10 data.num_classes=4 num_clients={CLIENTS} clients_per_round=3 model=logistic "
    "client.local_steps=2 client.batch_size=4 engine.workers=1 engine.mode=looped eval_clients=false "
    f"checkpoint_every=1 num_rounds={ROUNDS}"
)


def unequal(name: str, engine: Sequence[str], folder: Path) -> list[int]:
    """The rounds after which a run of this strategy, carried on by this engine, does not end as an undisturbed one."""
    overrides = [*SMALL.split(), f"strategy={name}"]
    others = [override for override in overrides if not override.startswith("engine.")]
    here, there = compose.config(overrides), compose.config([*others, *engine] if engine else overrides)
    whole, stage, found = folder / "whole", folder / "stage", []
    experiment.run(here.model_copy(update={"run_dir": str(whole)}))
    for round in range(1, ROUNDS + 1):
        own = here.model_copy(update={"run_dir": str(stage), "num_rounds": round})
        experiment.run(own) if round == 1 else experiment.resume(stage, own)
        copy = folder / f"after-{round}"
        shutil.copytree(stage, copy)
        experiment.resume(copy, there)
        if results(copy) != results(whole):
            found.append(round)
        shutil.rmtree(copy)
    return found


@contextmanager
def engine(name: str, folder: Path) -> Iterator[list[str]]:
    """The overrides that choose it."""
    if name == "in_process":
        yield []
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    failed, began = 0, time.monotonic()
    print(f"| strategy | resumed, {arguments.engine} | other bytes after round |\n|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as place,
        engine(arguments.engine, Path(place) / "federation") as overrides,
    ):
        for name in arguments.strategies:
            with tempfile.TemporaryDirectory() as folder:
                found = unequal(name, overrides, Path(folder))
            failed += bool(found)
            print(f"| {name} | {ROUNDS} | {', '.join(map(str, found)) or 'none'} |", flush=True)
    print(f"\n{failed} strategies that ended otherwise, {time.monotonic() - began:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
