"""The setting of SAVIC's experiments: which optimiser, whose preconditioner, how many local steps, how unlike clients.

    python -m benchmarks.savic_study --out FOLDER [--form small|medium|full] [--problem 'share 0.7'] [--data ...]

Ten clients with a main class each, a ResNet-8 with GroupNorm; SGD, Adam, RMSProp and OASIS; one D for all (global),
one for each client (local), and local with preconditioned mixing; few and many local steps a round, at the same number
of local steps in all. Every method has equally many tuning trials for each number of local steps: step sizes half a
decade apart, at a main-class share of 0.5 and with a seed that is not used again. The best is then run at every share.
All of that is in conf/experiment/savic_study_*.yaml.

Source: Chezhegov et al., Local Methods with Adaptivity via Scaling, arXiv 2406.00846. No published number exists to
match.
Departures, for two cores: the first images of each class at half the resolution, ResNet-8, few rounds.
"""

from __future__ import annotations

from benchmarks import studies
from benchmarks.studies import Found, Study, Table


def tables(study: Study, found: Found) -> tuple[list[str], dict[str, Table]]:
    """A table for each share: methods by local steps."""
    words = [f"Test accuracy in percent; {found.note}; the same number of local steps of each client in all."]
    words.append("Mean over seeds ± half of the 95 % interval. There is no published number to match.")
    edge = sorted({(r["method"], r["work"], r["chosen"]) for r in found.results if r["on_edge"]})
    told = "; ".join(f"{method} at {work} ({values})" for method, work, values in edge) or "none"
    words.append(f"The best of the values tried lies on their edge for: {told}.")
    head = ["method", *(work.name for work in study.work)]
    return words, {
        f"Main-class {problem.name}": (
            head,
            [
                [
                    method.name,
                    *(
                        studies.cell(
                            found.results,
                            "test_accuracy",
                            problem=problem.name,
                            method=method.name,
                            work=work.name,
                        )
                        for work in study.work
                    ),
                ]
                for method in study.methods
            ],
        )
        for problem in study.problems
    }


if __name__ == "__main__":
    studies.main(__doc__, "savic_study", tables)
