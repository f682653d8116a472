"""NIID-Bench's CIFAR-10 column in kind: four methods on six ways to divide images among ten parties.

    python -m benchmarks.niid_bench --out FOLDER [--form small|medium|full] [--data cifar10|fashion_mnist_12k]

Source: Li, Diao, Chen, He, Federated Learning on Non-IID Data Silos, ICDE 2022 (arXiv 2102.02079), table 3: 10 parties,
all in each round, 50 rounds of 10 local epochs, batch 64, step size 0.01, momentum 0.9. The published numbers beside
ours are those of Flower's reproduction of that table, PUBLISHED below; the paper's own were not at hand.

Departures, in every form: the first images of each class only; 3x3 convolutions of 6 and 16 channels with one linear
layer (theirs: 5x5 and three); quantity skew by log-normal sizes (theirs: Dirichlet); mu = 0.01 for FedProx (theirs: the
best of four); SCAFFOLD's models weighted alike. The forms other than full take fewer rounds, epochs and seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import studies
from benchmarks.studies import Images

PARTITIONS = {
    "#C = 1": ["partition=pathological", "partition.classes_per_client=1"],
    "#C = 2": ["partition=pathological", "partition.classes_per_client=2"],
    "#C = 3": ["partition=pathological", "partition.classes_per_client=3"],
    "Dir(0.5)": ["partition=dirichlet", "partition.alpha=0.5"],
    "quantity": ["partition=by_size", "partition.sigma=1"],
    "iid": ["partition=iid"],
}
METHODS = ("fedavg", "fedprox", "scaffold", "fednova")
PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "#C = 1": (10.0, 11.6, 10.0, 10.0),
    "#C = 2": (49.9, 50.0, 48.9, 46.4),
    "#C = 3": (58.1, 60.0, 60.0, 57.7),
    "Dir(0.5)": (63.4, 65.6, 68.0, 65.0),
    "iid": (71.7, 70.6, 70.7, 71.1),
}
"""Accuracy on CIFAR-10 in percent, one seed, in the order of METHODS; it has no quantity skew. From the README of
baselines/niid_bench in github.com/adap/flower at 1599d01c2f76a4139abe231b7e294f828ba62048."""


class Plan(NamedTuple):
    partitions: tuple[str, ...]
    num_rounds: int
    local_epochs: int
    seeds: tuple[int, ...]
    images: Images


FORMS = {
    "small": Plan(("#C = 2", "iid"), 3, 5, (0,), Images(100, 20, 1)),
    "medium": Plan(tuple(PARTITIONS), 25, 5, (0,), Images(500, 100, 1)),
    "full": Plan(tuple(PARTITIONS), 50, 10, (0, 1, 2), Images(1000, 200, 1)),
}


def study(out: Path, plan: Plan, source: str, at_once: int) -> list[dict[str, Any]]:
    """Every run, one sweep a partition; one row of results each."""
    note = studies.images(out, source, plan.images)
    shared = ["experiment=niid_bench", "data=arrays", f"data.path={out / 'images.npz'}", "model=cnn"]
    shared += [f"num_rounds={plan.num_rounds}", f"client.local_epochs={plan.local_epochs}"]
    shared += ["eval_every=1000000", "engine.workers=1"]
    results, rows = [], []
    for partition in plan.partitions:
        jobs = [[f"strategy={method}", f"seed={seed}"] for method in METHODS for seed in plan.seeds]
        words = "".join(c if c.isalnum() else "-" for c in partition)
        here = [*shared, *PARTITIONS[partition]]
        records = iter(studies.runs(out / words, here, jobs, at_once))
        published = PUBLISHED.get(partition, (None,) * len(METHODS))
        row = [partition]
        for method, number in zip(METHODS, published, strict=True):
            found = [next(records) for _ in plan.seeds]
            ours = studies.spread([record["test_accuracy"] for record in found])
            row += [ours, "-" if number is None else f"{number:.1f}"]
            results += [
                {
                    "partition": partition,
                    "method": method,
                    "seed": seed,
                    "test_accuracy": record["test_accuracy"],
                    "test_loss": record["test_loss"],
                    "published_percent": number,
                }
                for seed, record in zip(plan.seeds, found, strict=True)
            ]
        rows.append(row)
    head = ["partition", *(column for method in METHODS for column in (method, "published"))]
    text = (
        f"Test accuracy in percent; {note}; {plan.num_rounds} rounds of {plan.local_epochs} local epochs.\n"
    )
    text += "Published: Flower's reproduction on all of CIFAR-10, 50 rounds of 10 epochs, one seed.\n\n"
    studies.write(out, text + studies.table(head, rows), results)
    return results


if __name__ == "__main__":
    studies.main(__doc__, FORMS, study)
