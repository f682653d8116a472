"""The table of strategies that tests/test_gauntlet.py runs: one line for each name of conf/strategy/.

A line says which slow twin the strategy equals, with which of its parameters, what it has to be told beside its name,
and what a client sends and receives in a round in multiples of the model's d numbers (up, down).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import twins_adam as adam
import twins_control as control
import twins_muon as muon
import twins_robust as robust
import twins_server as server
import twins_sgd as sgd
import twins_warm as warm


class Line(NamedTuple):
    """One strategy."""

    twin: Callable[..., Any]
    told: dict[str, Any]
    """The twin's parameters, where they differ from its own defaults."""
    settings: dict[str, Any]
    """Keys of the run, where they differ from conf/strategy/."""
    up: float = 1
    down: float = 1


def averaged_momentum(every: int) -> Line:
    """Clients with momentum, the mean of their buffers sent in every so many rounds."""
    settings = {"client.momentum": 0.5, "client.momentum_buffer": "averaged", "client.momentum_every": every}
    return Line(sgd.local_momentum, {"momentum": 0.5, "buffer": "averaged", "every": every}, settings)


SELDOM = {"weights": "uniform", "control_every": 2}
SHAPES = {"shapes": [(4, 3), (4,)]}
FEDOPT = {"strategy.eta": 0.1}
BETA1 = {"beta1": 0.9, "beta2": 0.99}

STRATEGIES: dict[str, Line] = {
    "fedavg": Line(server.fedavg, {}, {}),
    "fedavgm": Line(server.fedavgm, {"beta": 0.9, "eta": 0.1}, {}),
    "fedadagrad": Line(server.fedadagrad, {}, FEDOPT),
    "fedadam": Line(server.fedadam, BETA1, FEDOPT),
    "fedyogi": Line(server.fedyogi, BETA1, FEDOPT),
    "fedams": Line(server.fedams, BETA1, FEDOPT),
    "fedscaled": Line(server.scaled_server, {"floor": "add"}, FEDOPT),
    "fednova": Line(sgd.fednova, {"momentum": 0.5}, {"client.momentum": 0.5}),
    "fednova_prox": Line(sgd.fednova, {"mu": 0.3}, {"strategy.local.mu": 0.3}),
    "fedprox": Line(sgd.fedprox, {"mu": 0.3}, {"strategy.local.mu": 0.3}),
    "scaffold": Line(control.scaffold, {"weights": "uniform"}, {}, 2, 2),
    "mime": Line(control.mime, {"base": "sgd", "beta1": 0.9}, {}, 2, 3),
    "mimelite": Line(control.mimelite, {"base": "sgd", "beta1": 0.9}, {}, 2, 2),
    "local_adam": Line(adam.local_adam, {}, {}),
    "local_adamw": Line(adam.local_adamw, {}, {}),
    "local_adam_kept": Line(adam.local_adam, {"state": "kept"}, {}),
    "local_adam_averaged": Line(adam.local_adam, {"state": "averaged"}, {}, 3, 3),
    "des_loc": Line(warm.des_loc, {}, {}, 1.5, 1.5),
    "fedada2": Line(adam.fedada2, {}, FEDOPT),
    "diloco": Line(adam.diloco, {"beta2": 0.95, "weight_decay": 0.1}, {}),
    "feddyn": Line(control.feddyn, {"weights": "uniform"}, {}),
    "fedmedian": Line(robust.median, {}, {}),
    "trimmed_mean": Line(robust.trimmed_mean, {"trim": 0.34}, {"strategy.combine.trim": 0.34}),
    "krum": Line(robust.krum, {"num_hostile": 0}, {"strategy.combine.num_malicious": 0}),
    "multikrum": Line(
        robust.multikrum,
        {"num_hostile": 0, "num_kept": 2},
        {"strategy.combine.num_malicious": 0, "strategy.combine.num_selected": 2},
    ),
    "bulyan": Line(robust.bulyan, {"num_hostile": 0}, {"strategy.combine.num_malicious": 0}),
    "geometric_median": Line(robust.geometric_median, {"num_iterations": 10}, {}),
    "norm_clipping": Line(robust.norm_clipping, {"max_norm": 0.02}, {"strategy.combine.max_norm": 0.02}),
    "fedlada": Line(warm.fedlada, {}, {}, 2, 3),
    "fedpac": Line(warm.fedpac, {"b": 0.5}, {}, 2, 3),
    "fedadamw": Line(warm.fedadamw, {"blocks": [12, 4]}, {}, 1, 2),
    "fafed": Line(warm.fafed, {}, {}, 3, 3),
    "local_muon": Line(muon.local_muon, {"shapes": [(4, 3), (4,)]}, {}),
    "fedmuon": Line(muon.fedmuon, {"shapes": [(4, 3), (4,)], "weights": "uniform"}, {}, 2, 2),
}
VARIANTS: list[tuple[str, Line]] = [
    (
        "scaffold",
        Line(control.scaffold, {"option": 1}, {"strategy.local.option": 1, "strategy.weighting": "examples"}),
    ),
    ("scaffold", Line(control.scaffold, {"weights": "uniform", "momentum": 0.5}, {"client.momentum": 0.5})),
    (
        "fedavgm",
        Line(server.fedavgm, {"beta": 0.5, "eta": 0.7}, {"strategy.beta1": 0.5, "strategy.eta": 0.7}),
    ),
    ("fednova", Line(sgd.fednova, {}, {})),
    ("local_adamw", Line(adam.local_adamw, {"weights": "uniform"}, {"strategy.weighting": "uniform"})),
    *(("fedavg", averaged_momentum(every)) for every in (1, 2)),
    ("scaffold", Line(control.scaffold, SELDOM, {"strategy.local.control_every": 2})),
    (
        "scaffold",
        Line(
            control.scaffold,
            SELDOM | {"option": 1},
            {"strategy.local.control_every": 2, "strategy.local.option": 1},
        ),
    ),
    ("fedmuon", Line(muon.fedmuon, SELDOM | SHAPES, {"strategy.local.control_every": 2})),
]
"""Other options of the same names, against the twin alone."""
