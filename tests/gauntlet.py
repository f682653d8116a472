"""The table of strategies that tests/test_gauntlet.py runs: one line for each name of conf/strategy/.

A line says which slow twin the strategy equals, with which of its parameters, and what the run has to be told beside
its name; which test works the twin's first two rounds out by hand; to what the strategy reduces, and at which settings;
and what a client sends and receives in a round (up, down), in multiples of the model's d numbers, beside them single
numbers by name.

Of the scaled local method a default and a few of its places for D stand here. The others are held elsewhere: every
memory, floor, scope, mixing, statistic, momentum and period against the twin in tests/test_run_equals_numpy.py (whole
runs) and tests/test_core_equals_twin.py (the core alone); the claims of the method, its bounds and its traffic list in
tests/test_conformance.py and tests/test_conformance_of_runs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import test_twins_adaptive_by_hand as adaptive_hand
import test_twins_by_hand as hand
import test_twins_reduce as reduce
import test_twins_robust_by_hand as robust_hand
import twins_adam as adam
import twins_control as control
import twins_muon as muon
import twins_robust as robust
import twins_scaled as scaled
import twins_server as server
import twins_sgd as sgd
import twins_warm as warm

Settings = Mapping[str, Any]
Test = Callable[..., None]
NOTHING: Settings = MappingProxyType({})


class To(NamedTuple):
    """What a run reduces to: with `settings` it is the run of this strategy."""

    name: str
    settings: Settings = NOTHING
    both: Settings = NOTHING
    """Keys of both runs."""
    others: Settings = NOTHING
    """Keys of the other run alone."""


class Line(NamedTuple):
    """One strategy."""

    twin: Callable[..., Any]
    told: Settings
    """The twin's parameters, where they differ from its own defaults."""
    settings: Settings
    """Keys of the run, where they differ from conf/strategy/."""
    by_hand: Test | None = None
    """Works out the first two rounds of the twin on two parameters; wanted of each line."""
    reduces: tuple[To | Test, ...] = ()
    """To FedAvg, to another strategy, or to a method of one machine, which takes a test; one at least is wanted."""
    up: float = 1
    down: float = 1
    beside: Mapping[str, Fraction | int] = NOTHING
    """Single numbers that travel with the vectors, each way."""
    probe: tuple[int, int] = (0, 0)
    """(up, down) of round 0, where there is one."""


FEDOPT = {"strategy.eta": 0.1}
BETA1 = {"beta1": 0.9, "beta2": 0.99}
CLOCKS = {"first_clock": 1, "second_clock": 1}

ONE_STEP = {"client.local_steps": 1}
ONE_ROUND = {"num_rounds": 1}
ONE_CLIENT = {"clients_per_round": 1}
EVERYBODY = {"clients_per_round": None}
UNIFORM = {"strategy.weighting": "uniform"}

HUGE = 1e12
"""Beside it, whatever else stands in a divisor vanishes, and a step size as many times larger makes up for it."""
NOT_ADAPTIVE = {"strategy.eta": HUGE, "strategy.tau": HUGE, "strategy.beta1": 0.0, "strategy.beta2": 0.0}
"""v is the last Delta^2 alone, or with a v that starts at tau^2 and does not forget it, the divisor is 2 tau."""
TWICE = NOT_ADAPTIVE | {"strategy.eta": 2 * HUGE}
PLAIN_ADAM = {
    "strategy.local.beta1": 0.0,
    "strategy.local.epsilon": HUGE,
    "client.step_size": 0.05 * HUGE,
}
PLAIN_D = {"scaling.alpha": HUGE, "client.step_size": 0.05 * HUGE}

STRATEGIES: dict[str, Line] = {
    "savic": Line(
        scaled.scaled_local,
        {"beta": 0.99},
        {},
        hand.test_scaled_local,
        (To("fedavg", {"scaling.rule": "identity"}), To("fedavg", PLAIN_D)),
        2,
        2,
        probe=(1, 1),
    ),
    "fedavg": Line(
        server.fedavg,
        {},
        {},
        hand.test_fedavg,
        (reduce.test_fedavg_with_one_step_is_torchs_sgd_on_all_examples,),
    ),
    "fedavgm": Line(
        server.fedavgm,
        {"beta": 0.9, "eta": 0.1},
        {},
        hand.test_fedavgm,
        (To("fedavg", {"strategy.beta1": 0.0, "strategy.eta": 1.0}),),
    ),
    "fedadagrad": Line(server.fedadagrad, {}, FEDOPT, hand.test_fedadagrad, (To("fedavg", TWICE),)),
    "fedadam": Line(server.fedadam, BETA1, FEDOPT, hand.test_fedadam, (To("fedavg", NOT_ADAPTIVE),)),
    "fedyogi": Line(server.fedyogi, BETA1, FEDOPT, hand.test_fedyogi, (To("fedavg", TWICE),)),
    "fedams": Line(server.fedams, BETA1, FEDOPT, hand.test_fedams, (To("fedavg", TWICE),)),
    "fedscaled": Line(
        server.scaled_server,
        {"floor": "add"},
        FEDOPT,
        hand.test_scaled_server,
        (To("fedavg", {"strategy.memory": "identity", "strategy.eta": 1.0}),),
    ),
    "fednova": Line(
        sgd.fednova,
        {"momentum": 0.5},
        {"client.momentum": 0.5},
        hand.test_fednova,
        (To("fedavg", {"client.momentum": 0.0}), To("fedavg", others={"client.momentum": 0.5})),
    ),
    "fednova_prox": Line(
        sgd.fednova,
        {"mu": 0.3},
        {"strategy.local.mu": 0.3},
        hand.test_fednova_with_proximal_term,
        (To("fedprox"), To("fednova", {"strategy.local.mu": 0.0}, both={"client.momentum": 0.0})),
    ),
    "fedprox": Line(
        sgd.fedprox,
        {"mu": 0.3},
        {"strategy.local.mu": 0.3},
        hand.test_fedprox,
        (To("fedavg", {"strategy.local.mu": 0.0}),),
    ),
    "scaffold": Line(
        control.scaffold,
        {"weights": "uniform"},
        {},
        hand.test_scaffold,
        (
            To("fedavg", both=ONE_STEP | EVERYBODY, others=UNIFORM),
            To("fedavg", both=ONE_ROUND, others=UNIFORM),
        ),
        2,
        2,
    ),
    "mime": Line(
        control.mime,
        {"base": "sgd", "beta1": 0.9},
        {},
        hand.test_mime,
        (
            To("fedavg", {"strategy.local.beta": 0.0}, both=ONE_STEP),
            To("mimelite", both=ONE_STEP | {"client.step_size": 0.5}),
        ),
        2,
        3,
    ),
    "mimelite": Line(
        control.mimelite,
        {"base": "sgd", "beta1": 0.9},
        {},
        hand.test_mimelite_with_momentum,
        (To("fedavg", {"strategy.local.beta": 0.0}),),
        2,
        2,
    ),
    "local_adam": Line(adam.local_adam, {}, {}, adaptive_hand.test_local_adam, (To("fedavg", PLAIN_ADAM),)),
    "local_adamw": Line(
        adam.local_adamw,
        {},
        {},
        adaptive_hand.test_local_adamw_shrinks_before_the_step,
        (To("local_adam", {"strategy.local.decay": 0.0}),),
    ),
    "local_adam_kept": Line(
        adam.local_adam,
        {"state": "kept"},
        {},
        adaptive_hand.test_local_adam,
        (To("fedavg", PLAIN_ADAM), To("local_adam", both=ONE_ROUND), reduce.test_one_client_is_torch),
    ),
    "local_adam_averaged": Line(
        adam.local_adam,
        {"state": "averaged"},
        {},
        adaptive_hand.test_local_adam,
        (To("fedavg", PLAIN_ADAM), To("local_adam", both=ONE_ROUND), reduce.test_one_client_is_torch),
        3,
        3,
        CLOCKS,
    ),
    "des_loc": Line(
        warm.des_loc,
        {},
        {},
        adaptive_hand.test_des_loc,
        (To("local_adam_averaged", {"strategy.local.first_every": 1, "strategy.local.second_every": 1}),),
        1.5,
        1.5,
        {"first_clock": Fraction(1, 3), "second_clock": Fraction(1, 6)},
    ),
    "fedada2": Line(adam.fedada2, {}, FEDOPT, adaptive_hand.test_fedada2, (To("local_adam", NOT_ADAPTIVE),)),
    "diloco": Line(
        adam.diloco,
        {"beta2": 0.95, "weight_decay": 0.1},
        {},
        adaptive_hand.test_diloco,
        (
            To(
                "local_adam_kept",
                {"strategy.eta": 1.0, "strategy.beta1": 0.0},
                both={"strategy.local.decay": 0.1, "strategy.local.beta2": 0.95},
            ),
        ),
    ),
    "feddyn": Line(
        control.feddyn,
        {"weights": "uniform"},
        {},
        hand.test_feddyn,
        (
            # h is 0 at first: x + eta (1 + S/N) Delta of proximal clients, with S/N = 1/2
            To(
                "fedprox",
                {"strategy.mu": 0.3, "strategy.local.mu": 0.3, "strategy.eta": 2 / 3},
                ONE_ROUND,
                UNIFORM,
            ),
            reduce.test_feddyn_with_one_step_is_optimistic_gradient_descent,
        ),
    ),
    "fedmedian": Line(
        robust.median,
        {},
        {},
        robust_hand.test_median,
        (To("fedavg", both={"clients_per_round": 2}, others=UNIFORM),),
    ),
    "trimmed_mean": Line(
        robust.trimmed_mean,
        {"trim": 0.34},
        {"strategy.combine.trim": 0.34},
        robust_hand.test_trimmed_mean,
        (To("fedavg", {"strategy.combine.trim": 0.0}, others=UNIFORM), To("fedmedian")),
    ),
    "krum": Line(
        robust.krum,
        {"num_hostile": 0},
        {"strategy.combine.num_malicious": 0},
        robust_hand.test_krum,
        (To("fedavg", both=ONE_CLIENT), To("multikrum", others={"strategy.combine.num_selected": 1})),
    ),
    "multikrum": Line(
        robust.multikrum,
        {"num_hostile": 0, "num_kept": 2},
        {"strategy.combine.num_malicious": 0, "strategy.combine.num_selected": 2},
        robust_hand.test_multikrum,
        (To("fedavg", {"strategy.combine.num_selected": 3}, others=UNIFORM),),
    ),
    "bulyan": Line(
        robust.bulyan,
        {"num_hostile": 0},
        {"strategy.combine.num_malicious": 0},
        robust_hand.test_bulyan,
        (To("fedavg", others=UNIFORM),),
    ),
    "geometric_median": Line(
        robust.geometric_median,
        {"num_iterations": 10},
        {},
        robust_hand.test_geometric_median,
        (To("fedavg", {"strategy.combine.smoothing": HUGE}),),
    ),
    "norm_clipping": Line(
        robust.norm_clipping,
        {"max_norm": 0.02},
        {"strategy.combine.max_norm": 0.02},
        robust_hand.test_norm_clipping,
        (To("fedavg", {"strategy.combine.max_norm": HUGE}),),
    ),
    "fedlada": Line(
        warm.fedlada,
        {},
        {},
        adaptive_hand.test_fedlada_and_fedpac,
        (
            To("fedavg", PLAIN_ADAM | {"strategy.local.lean": 0.0}),
            To("local_adam", {"strategy.local.lean": 0.0}, ONE_ROUND),
        ),
        2,
        3,
        {"second_clock": 1},
    ),
    "fedpac": Line(
        warm.fedpac,
        {"b": 0.5},
        {},
        adaptive_hand.test_fedlada_and_fedpac,
        (To("fedlada", both={"strategy.local.lean": 0.3}),),
        2,
        3,
        {"second_clock": 1},
    ),
    "fedadamw": Line(
        warm.fedadamw,
        {"blocks": [12, 4]},
        {},
        adaptive_hand.test_fedadamw,
        (
            To("fedavg", PLAIN_ADAM | {"strategy.local.lean": 0.0, "strategy.local.decay": 0.0}),
            To("local_adamw", {"strategy.local.lean": 0.0}, ONE_ROUND),
        ),
        1,
        2,
        {"second of the weights": 1, "second of the biases": 1, "second_clock": 1},
    ),
    "fafed": Line(
        warm.fafed,
        {},
        {},
        adaptive_hand.test_fafed,
        (
            # Without memory the first m, the probe's, is the mean gradient at x_0, and each later one that at x
            To(
                "fedavg",
                {
                    "strategy.local.storm": 1.0,
                    "strategy.local.epsilon": HUGE,
                    "client.step_size": 0.05 * HUGE,
                },
                ONE_STEP | EVERYBODY,
            ),
        ),
        3,
        3,
        probe=(2, 1),
    ),
    "local_muon": Line(
        muon.local_muon,
        {"shapes": [(4, 3), (4,)]},
        {},
        adaptive_hand.test_local_muon,
        (reduce.test_one_client_is_torch,),
    ),
    "fedmuon": Line(
        muon.fedmuon,
        {"shapes": [(4, 3), (4,)], "weights": "uniform"},
        {},
        adaptive_hand.test_fedmuon_corrects_before_it_orthogonalises,
        (To("local_muon", both=ONE_ROUND | {"strategy.local.beta": 0.0}, others=UNIFORM),),
        2,
        2,
    ),
}


def also(
    name: str, told: Settings, settings: Settings, twin: Callable[..., Any] | None = None, **more: Any
) -> Line:
    """The line of this strategy with other options."""
    line = STRATEGIES[name]
    return line._replace(twin=twin or line.twin, told=told, settings=settings, **more)


SELDOM = {"weights": "uniform", "control_every": 2}
LOCAL = {"scaling.scope": "local"}
MIXED = {"strategy.mixing": "preconditioned"}
OASIS = {"rule": "oasis", "statistic": "hutchinson"}

OPTIONS: dict[str, Line] = {
    "savic oasis": also(
        "savic", {"beta": 0.99, **OASIS}, {f"scaling.{key}": value for key, value in OASIS.items()}
    ),
    "savic local": also(
        "savic",
        {"beta": 0.99, "scope": "local"},
        LOCAL,
        by_hand=hand.test_scaled_local_with_a_d_of_each_clients_own,
        reduces=(To("fedavg", PLAIN_D),),
        up=1,
        down=1,
        probe=(0, 0),
    ),
    "savic mixed": also(
        "savic",
        {"beta": 0.99, "scope": "local", "mixing": "preconditioned"},
        LOCAL | MIXED,
        by_hand=hand.test_scaled_local_with_a_d_of_each_clients_own,
        reduces=(To("fedavg", PLAIN_D), To("savic local", both=ONE_CLIENT)),
        up=2,
        down=1,
        probe=(0, 0),
    ),
    "scaffold option 1": also(
        "scaffold",
        {"option": 1},
        {"strategy.local.option": 1, "strategy.weighting": "examples"},
        by_hand=hand.test_scaffold_option_one,
        reduces=(To("fedavg", both=ONE_STEP | EVERYBODY), To("fedavg", both=ONE_ROUND)),
    ),
}
"""Other options that pass through everything too; the first word is the name."""

MEMORIES: list[tuple[str, str, Settings]] = [
    ("identity", "add", NOTHING),
    ("adagrad", "add", NOTHING),
    ("rmsprop", "max", NOTHING),
    ("oasis", "max", {"upper_bound": 0.02}),
    ("oasis", "add", {"rho": 0.5}),
]
VARIANTS: list[tuple[str, Line]] = [
    *(
        ("fedavg", also("fedavg", momentum, {f"client.{k}": v for k, v in keys.items()}, sgd.local_momentum))
        for kind in ("reset", "kept", "averaged")
        for momentum, keys in [
            ({"momentum": 0.5, "buffer": kind}, {"momentum": 0.5, "momentum_buffer": kind})
        ]
    ),
    *(
        (
            "fedscaled",
            also(
                "fedscaled",
                {"rule": memory, "floor": floor, "alpha": 0.01, "eta": 0.7, **more},
                {
                    f"strategy.{key}": value
                    for key, value in {
                        "memory": memory,
                        "floor": floor,
                        "alpha": 0.01,
                        "eta": 0.7,
                        **more,
                    }.items()
                },
            ),
        )
        for memory, floor, more in MEMORIES
    ),
    ("scaffold", also("scaffold", {"weights": "uniform", "momentum": 0.5}, {"client.momentum": 0.5})),
    (
        "fedavgm",
        also("fedavgm", {"beta": 0.5, "eta": 0.7}, {"strategy.beta1": 0.5, "strategy.eta": 0.7}),
    ),
    ("fednova", also("fednova", {}, {})),
    ("local_adamw", also("local_adamw", {"weights": "uniform"}, UNIFORM)),
    (
        "local_adamw",
        also(
            "local_adamw",
            {"state": "averaged", "weight_decay": 0.1},
            {"strategy.local.moments": "averaged", "strategy.local.decay": 0.1},
        ),
    ),
    *(
        (name, also(name, {**STRATEGIES[name].told, **told}, {"strategy.local.control_every": 2, **settings}))
        for name, told, settings in [
            ("scaffold", SELDOM, {}),
            ("scaffold", SELDOM | {"option": 1}, {"strategy.local.option": 1}),
            ("fedmuon", SELDOM, {}),
        ]
    ),
    (
        "fedavg",
        also(
            "fedavg",
            {"momentum": 0.5, "buffer": "averaged", "every": 2},
            {"client.momentum": 0.5, "client.momentum_buffer": "averaged", "client.momentum_every": 2},
            sgd.local_momentum,
        ),
    ),
]
"""Other options of the same names, against the twin alone."""
