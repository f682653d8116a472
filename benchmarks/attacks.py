"""Which ways of combining models bear which attacks: test accuracy over five seeds.

    python -m benchmarks.attacks --out FOLDER [--small]

Every cell is the same problem with the same seeds, so the same start, batches and hostile clients; only the attack and
the strategy differ. Each defence is told the true number of hostile clients, with which it is at its best: the share of
values to trim, Krum's and Bulyan's f. Norm clipping gets MAX_NORM, about the length of an honest update after round 10
(0.65 in round 1). A finished run is read and not run again.

Writes trials.jsonl and table.md into FOLDER.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from fedscale_local import compose, lifecycle
from fedscale_local.config import from_container

CLIENTS, SHARE, MAX_NORM = 20, 0.3, 0.3
NUM_HOSTILE = round(SHARE * CLIENTS)
PROBLEM = (
    "data=fashion_mnist_12k", f"num_clients={CLIENTS}", "clients_per_round=null", "model.hidden=[32]",
    "client.local_steps=5", "client.step_size=0.1", "strategy.weighting=uniform", "eval_every=1000000",
    "engine.workers=1",
)  # fmt: skip
PARTITIONS = {"iid": ("partition=iid",), "dirichlet 0.5": ("partition=dirichlet", "partition.alpha=0.5")}
DEFENCES = {
    "mean": ("strategy=fedavg",),
    "median": ("strategy=fedmedian",),
    "trimmed mean": ("strategy=trimmed_mean", f"strategy.combine.trim={SHARE}"),
    "geometric median": ("strategy=geometric_median",),
    "Krum": ("strategy=krum", f"strategy.combine.num_malicious={NUM_HOSTILE}"),
    "Bulyan": ("strategy=bulyan", f"strategy.combine.num_malicious={NUM_HOSTILE}"),
    "norm clipping": ("strategy=norm_clipping", f"strategy.combine.max_norm={MAX_NORM}"),
}
ATTACKS = {
    "none": ("attack=none",),
    "sign flip, 4": ("attack=sign_flip", "attack.strength=4"),
    "gaussian, 20": ("attack=gaussian", "attack.strength=20"),
    "label flip": ("attack=label_flip",),
    "inner product, 0.5": ("attack=inner_product", "attack.strength=0.5"),
    "inner product, 5": ("attack=inner_product", "attack.strength=5"),
    "alie, z_max": ("attack=alie",),
    "alie, z=1.5": ("attack=alie", "attack.z=1.5"),
}


class Plan(NamedTuple):
    seeds: tuple[int, ...]
    num_rounds: int
    attacks: dict[str, tuple[str, ...]]
    """By partition."""
    defences: tuple[str, ...]


WHOLE = Plan(
    (0, 1, 2, 3, 4),
    20,
    {"iid": tuple(ATTACKS), "dirichlet 0.5": ("none", "sign flip, 4", "label flip", "alie, z_max")},
    tuple(DEFENCES),
)
SMALL = Plan((0, 1, 2, 3, 4), 8, {"iid": ("none", "sign flip, 4")}, tuple(DEFENCES)[:4])


class Trial(NamedTuple):
    """One run: test accuracy after the last round, in percent."""

    partition: str
    attack: str
    defence: str
    seed: int
    accuracy: float


@cache
def composed(partition: str, attack: str, defence: str) -> dict[str, Any]:
    """The configuration that the seeds share."""
    own = [] if attack == "none" else [f"attack.share={SHARE}"]
    return compose.compose([*PROBLEM, *PARTITIONS[partition], *DEFENCES[defence], *ATTACKS[attack], *own])


def trial(out: Path, plan: Plan, partition: str, attack: str, defence: str, seed: int) -> Trial:
    """One run, or what a finished one left."""
    torch.set_num_threads(1)
    words = "-".join(
        "".join(c if c.isalnum() else "-" for c in part) for part in (partition, attack, defence)
    )
    folder = out / "runs" / f"{words}-s{seed}"
    if not (folder / "model.safetensors").exists():
        own = {"seed": seed, "num_rounds": plan.num_rounds, "run_dir": str(folder)}
        with patch("fedscale_local.reports.write"):  # nobody reads hundreds of reports
            lifecycle.run(from_container({**composed(partition, attack, defence), **own}))
    last = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
    return Trial(partition, attack, defence, seed, 100 * last["test_accuracy"])


def table(trials: Sequence[Trial], partition: str, plan: Plan) -> str:
    """Mean over the seeds and, in brackets, the lowest and highest of them."""
    lines = [["attack", *plan.defences], ["---"] * (1 + len(plan.defences))]
    for attack in plan.attacks[partition]:
        row = [attack]
        for defence in plan.defences:
            found = [t.accuracy for t in trials if t[:3] == (partition, attack, defence)]
            row.append(f"{statistics.fmean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        lines.append(row)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and table")
    parser.add_argument("--small", action="store_true", help="8 rounds, sign flips and four defences alone")
    arguments = parser.parse_args()
    plan, out = SMALL if arguments.small else WHOLE, arguments.out
    jobs = [
        (out, plan, partition, attack, defence, seed) for partition, attacks in plan.attacks.items()
        for attack in attacks for defence in plan.defences for seed in plan.seeds
    ]  # fmt: skip
    if arguments.small:
        trials = [trial(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            trials = list(pool.map(trial, *zip(*jobs, strict=True), chunksize=len(plan.seeds)))
    (out / "trials.jsonl").write_text("".join(json.dumps(t._asdict()) + "\n" for t in trials))
    tables = [f"{partition}\n\n{table(trials, partition, plan)}" for partition in plan.attacks]
    (out / "table.md").write_text("\n".join(tables))
    print("\n".join(tables), end="")


if __name__ == "__main__":
    main()
