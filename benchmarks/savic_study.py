"""The setting of SAVIC's experiments: which optimiser, whose preconditioner, how many local steps, how unlike clients.

    python -m benchmarks.savic_study --out FOLDER [--form small|medium|full|full-SHARE] [--data cifar10|...]

Ten clients with a main class each, a ResNet-8 with GroupNorm; SGD, Adam, RMSProp and OASIS; one D for all (global),
one for each client (local), and local with preconditioned mixing; few and many local steps a round, at the same number
of local steps in all. Every method has equally many tuning trials for each number of local steps: step sizes half a
decade apart, at a main-class share of 0.5 and with a seed that is not used again. The best is then run at every share.

Source: Chezhegov et al., Local Methods with Adaptivity via Scaling, arXiv 2406.00846. No published number exists to
match.
Departures, for two cores: the first images of each class at half the resolution, ResNet-8, few rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import studies
from benchmarks.studies import Images

TUNING_SEED, TUNING_SHARE = 1000, 0.5
SCOPES = {
    "global": ["scaling.scope=global"],
    "local": ["scaling.scope=local"],
    "local, mixed": ["scaling.scope=local", "strategy.mixing=preconditioned"],
}
METHODS = {"sgd": ["strategy=fedavg", "scaling=identity"]}
METHODS |= {
    f"{rule}, {scope}": ["strategy=savic", f"scaling={rule}", *overrides]
    for rule in ("adam", "rmsprop", "oasis")
    for scope, overrides in SCOPES.items()
}
STEP_SIZES = {
    "sgd": (0.1, 0.03, 0.3),
    "adam": (0.001, 0.0003, 0.003),
    "rmsprop": (0.001, 0.0003, 0.003),
    "oasis": (0.01, 0.003, 0.03),
}
"""By rule, in the order in which they are tried."""


class Plan(NamedTuple):
    shares: tuple[float, ...]
    local_steps: tuple[int, ...]
    total_steps: int
    """Local steps of each client in a whole run."""
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    num_trials: int
    images: Images


FORMS = {
    "small": Plan((0.7,), (8,), 16, (0,), ("sgd", "oasis, local, mixed"), 2, Images(20, 10, 2)),
    "medium": Plan((0.0, 0.7), (8, 32), 128, (0, 1, 2), tuple(METHODS), 3, Images(500, 100, 2)),
    "full": Plan(
        (0.0, 0.3, 0.5, 0.7), (1, 8, 32), 128, (0, 1, 2, 3, 4), tuple(METHODS), 3, Images(500, 100, 2)
    ),
}
FORMS |= {f"full-{share}": FORMS["full"]._replace(shares=(share,)) for share in FORMS["full"].shares}
"""The full form's tables one by one, for who cannot spare a machine for hours; in one folder they share the tuning."""


def study(out: Path, plan: Plan, source: str, at_once: int) -> list[dict[str, Any]]:
    """Every run, tuning first; one row of results each."""
    note = studies.images(out, source, plan.images)
    shared = ["experiment=savic_study", "data=arrays", f"data.path={out / 'images.npz'}", "model=resnet8"]
    shared += ["eval_every=1000000", "engine.workers=1", "client.batch_size=16"]
    methods = {name: METHODS[name] for name in plan.methods}
    tried = {
        name: [[f"client.step_size={size}"] for size in STEP_SIZES[name.split(",")[0]][: plan.num_trials]]
        for name in methods
    }
    results, text = [], f"Test accuracy in percent; {note}; {plan.total_steps} local steps of each client.\n"
    text += "Mean over seeds ± half of the 95 % interval. There is no published number to match.\n"
    for share in plan.shares:
        rows = {name: [name] for name in methods}
        for h in plan.local_steps:
            work = [*shared, f"client.local_steps={h}", f"num_rounds={plan.total_steps // h}"]
            tuning = [*work, f"partition.share={TUNING_SHARE}", f"seed={TUNING_SEED}"]
            chosen = studies.tuned(out / f"tuning-h{h}", tuning, methods, tried, at_once)
            jobs = [
                [*methods[name], *chosen[name], f"seed={seed}"] for name in methods for seed in plan.seeds
            ]
            here = [*work, f"partition.share={share}"]
            records = iter(studies.runs(out / f"share{share}-h{h}", here, jobs, at_once))
            for name in methods:
                found = [next(records) for _ in plan.seeds]
                rows[name].append(studies.spread([record["test_accuracy"] for record in found]))
                edges = (tried[name][i] for i in _edges(name, plan.num_trials))
                results += [
                    {
                        "share": share,
                        "local_steps": h,
                        "method": name,
                        "seed": seed,
                        "chosen": " ".join(chosen[name]),
                        "on_edge": chosen[name] in edges,
                        "test_accuracy": record["test_accuracy"],
                        "test_loss": record["test_loss"],
                    }
                    for seed, record in zip(plan.seeds, found, strict=True)
                ]
        head = ["method", *(f"{h} local step{'s' * (h > 1)}" for h in plan.local_steps)]
        text += f"\nMain-class share {share}\n\n{studies.table(head, list(rows.values()))}"
    edge = sorted({(r["method"], r["local_steps"], r["chosen"]) for r in results if r["on_edge"]})
    text += f"\nOf the {plan.num_trials} step sizes tried, the best lies on the edge for: "
    text += ("; ".join(f"{m} at {h} ({c})" for m, h, c in edge) or "none") + "\n"
    studies.write(out, text, results)
    return results


def _edges(name: str, num_trials: int) -> tuple[int, int]:
    """Where the smallest and the largest of the step sizes that were tried stand."""
    sizes = STEP_SIZES[name.split(",")[0]][:num_trials]
    return sizes.index(min(sizes)), sizes.index(max(sizes))


if __name__ == "__main__":
    studies.main(__doc__, FORMS, study)
