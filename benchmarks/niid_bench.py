"""NIID-Bench's CIFAR-10 column in kind: four methods on six ways to divide images among ten parties.

    python -m benchmarks.niid_bench --out FOLDER [--form small|medium|full] [--problem iid] [--data cifar10|...]

Source: Li, Diao, Chen, He, Federated Learning on Non-IID Data Silos, ICDE 2022 (arXiv 2102.02079), table 3: 10 parties,
all in each round, 50 rounds of 10 local epochs, batch 64, step size 0.01, momentum 0.9. The published numbers beside
ours are those of Flower's reproduction of that table, PUBLISHED below; the paper's own were not at hand. What is run is
in conf/experiment/niid_bench_*.yaml.

Departures, in every form: the first images of each class only; 3x3 convolutions of 6 and 16 channels with one linear
layer (theirs: 5x5 and three); quantity skew by log-normal sizes (theirs: Dirichlet); mu = 0.01 for FedProx (theirs: the
best of four); SCAFFOLD's models weighted alike. The forms other than full take fewer rounds and epochs.
"""

from __future__ import annotations

from benchmarks import studies
from benchmarks.studies import Found, Study, Table

PUBLISHED = {
    "#C = 1": {"fedavg": 10.0, "fedprox": 12.7, "scaffold": 10.0, "fednova": 10.0},
    "#C = 2": {"fedavg": 51.2, "fedprox": 50.4, "scaffold": 49.4, "fednova": 46.9},
    "#C = 3": {"fedavg": 59.1, "fedprox": 59.2, "scaffold": 61.0, "fednova": 57.8},
    "Dir(0.5)": {"fedavg": 62.5, "fedprox": 65.6, "scaffold": 68.1, "fednova": 63.9},
    "iid": {"fedavg": 71.3, "fedprox": 71.3, "scaffold": 71.7, "fednova": 70.7},
}
"""Accuracy on CIFAR-10 in percent, the best of all rounds, the mean of several runs; it has no quantity skew.

From the README of baselines/niid_bench in github.com/adap/flower at 73ec95c83270a5a16d1e37d28b2b41b3dc9ad92f. (An
earlier one, at 1599d01c2f76a4139abe231b7e294f828ba62048, has one seed: IID 71.7, 70.6, 70.7, 71.1.)
"""


def tables(study: Study, found: Found) -> tuple[list[str], dict[str, Table]]:
    """Partitions by methods: the best of all rounds beside what is published, and after the last round."""
    (work,) = study.work
    words = [
        f"Test accuracy in percent; {found.note}; {work.name}. Mean over seeds ± half of the 95 % interval.",
        "Published: Flower's reproduction on all of CIFAR-10, 50 rounds of 10 epochs, best of all rounds.",
    ]
    names = [method.name for method in study.methods]

    def ours(key: str, problem: str, method: str) -> str:
        return studies.cell(found.results, key, problem=problem, method=method)

    def published(problem: str, method: str) -> str:
        known = PUBLISHED.get(problem, {}).get(method)
        return "-" if known is None else f"{known:.1f}"

    beside = [
        [p.name, *(text for m in names for text in (ours("best_accuracy", p.name, m), published(p.name, m)))]
        for p in study.problems
    ]
    last = [[p.name, *(ours("test_accuracy", p.name, m) for m in names)] for p in study.problems]
    head = ["partition", *(column for name in names for column in (name, "published"))]
    return words, {
        "Best of all rounds": (head, beside),
        "After the last round": (["partition", *names], last),
    }


if __name__ == "__main__":
    studies.main(__doc__, "niid_bench", tables)
