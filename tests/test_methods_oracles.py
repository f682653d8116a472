"""Other people's code as judges: torch.optim and pytorch-optimizer for steps, Flower's own strategies for whole runs.

The steps run on gradients -sin(v + shift), another shift each step, in float64. Flower's strategies get the messages of
the same clients, seven of them with five examples each, so that weighted and plain means are one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor
from twin import Softmax
from twins_base import FullBatch
from twins_control import mimelite
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local.client_step import scaled_local_steps
from fedscale_local.curvature import Batch, Oracle
from fedscale_local.local_rule import LocalRule, Setting, State
from fedscale_local.local_rules.adam import adam
from fedscale_local.local_rules.muon import muon, newton_schulz
from fedscale_local.scaling import Scaling
from fedscale_local.server_rule import ServerRule
from fedscale_local.server_rules import RULES
from fedscale_local.vector import Layout

SHAPE = (3, 4)
STEP_SIZE = 0.05
SETTING = Setting(Layout(("weight",), (SHAPE,)), STEP_SIZE)
START = torch.linspace(-1, 2, 12, dtype=torch.float64)
SHIFTS = torch.linspace(0, 5, 6 * 12, dtype=torch.float64).reshape(6, 12)


def gradient(v: Tensor, shift: Tensor) -> Tensor:
    return -torch.sin(v + shift)


class Wave(Oracle):
    """The derivatives that a client asks for; a mini-batch is its shift."""

    def start(self, x: Tensor) -> Tensor:
        return x.clone()

    def finish(self, v: Tensor) -> Tensor:
        return v

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.zeros((), dtype=v.dtype), gradient(v, batch.x)

    def gradient_at(self, v: Tensor, batch: Batch) -> Tensor:
        return gradient(v, batch.x)


def locally(rule: LocalRule, rounds: int, momentum: float = 0.0) -> Tensor:
    """One client's six steps in so many rounds, with what it keeps."""
    x, state, buffer = START, State(), None
    for shifts in SHIFTS.chunk(rounds):
        batches = [Batch(x=shift, y=shift, rows=...) for shift in shifts]  # type: ignore[arg-type]
        done = scaled_local_steps(
            Wave(),
            x,
            batches,
            Scaling(),
            step_size=STEP_SIZE,
            momentum=momentum,
            buffer=buffer,
            rule=rule,
            state=state,
        )  # type: ignore[arg-type]
        x, buffer, state = done.params, done.momentum, {name: done.state[name] for name in rule.keeps}
    return x


def judged(make: Callable[..., torch.optim.Optimizer], rounds: int, **options: Any) -> Tensor:
    """The same steps by an optimiser that is made anew for each so many rounds."""
    x = torch.nn.Parameter(START.reshape(SHAPE).clone())
    for shifts in SHIFTS.chunk(rounds):
        optimizer = make([x], lr=STEP_SIZE, **options)
        for shift in shifts:
            x.grad = gradient(x.detach(), shift.reshape(SHAPE))
            optimizer.step()
    return x.detach().flatten()


def close(found: Tensor, expected: Tensor, atol: float = 1e-14) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------ clients

BETAS = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
TORCH = {"betas": (0.8, 0.95), "eps": 1e-3}


@pytest.mark.parametrize("moments", ["kept", "restart"])
@pytest.mark.parametrize(
    ("make", "decay"), [(torch.optim.Adam, 0.0), (torch.optim.AdamW, 0.1), (pytorch_optimizer.AdamW, 0.1)]
)
def test_adam_on_the_client(make: Any, decay: float, moments: str) -> None:
    """Kept: two rounds of three steps are one optimiser's six. Restart: two optimisers'."""
    rule = adam(SETTING, **BETAS, decay=decay, moments=moments)
    close(locally(rule, 2), judged(make, 1 if moments == "kept" else 2, weight_decay=decay, **TORCH))


def test_heavy_ball_on_the_client() -> None:
    close(locally(LocalRule(), 2, momentum=0.9), judged(torch.optim.SGD, 1, momentum=0.9))


ITERATED = 1e-12
"""Five iterations stretch small singular values, and the rounding of a sum, by 3.44^5 = 480."""


def test_newton_schulz() -> None:
    for shape in ((3, 4), (4, 3), (5, 5)):
        matrix = torch.linspace(-1, 2, shape[0] * shape[1], dtype=torch.float64).reshape(shape).sin()
        close(
            newton_schulz(matrix, 5), zero_power_via_newton_schulz_5(matrix, 5, dtype=torch.float64), ITERATED
        )


def test_muon_on_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Newton-Schulz works in bfloat16; with the other library's in float64 in its place, its Muon is ours."""

    def in_float64(grad: Tensor, coefficients: Any, steps: int, eps: float) -> Tensor:
        return zero_power_via_newton_schulz_5(grad, steps, eps, weights=coefficients, dtype=torch.float64)

    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float64)
    found = locally(muon(SETTING, 0.9, 5), 1)
    close(found, judged(torch.optim.Muon, 1, momentum=0.9, weight_decay=0.0), atol=ITERATED)
    assert (found - START).abs().max() > 2 * STEP_SIZE


# ------------------------------------------------------------------------------------------------ servers

TAU, ETA = 0.03, 0.1


def serve(rule: ServerRule) -> list[Tensor]:
    """The server's models when the clients offer Delta = sin(x + shift), that is, minus the gradient."""
    x, state, seen = START, rule.start(START), []
    for shift in SHIFTS:
        x = rule.move(x, x - gradient(x, shift), state, 1.0)
        seen.append(x)
    return seen


def optimise(make: Any, start: dict[str, float], correct: bool = False, **options: Any) -> list[Tensor]:
    """An optimiser's, from moments that start so. correct: step size and epsilon are chosen, step by step, such that
    Adam's correction of the bias cancels."""
    x, seen = torch.nn.Parameter(START.clone()), []
    optimizer = make([x], lr=ETA, **options)
    for t, shift in enumerate(SHIFTS, start=1):
        x.grad = gradient(x.detach(), shift)
        if t == 1 and start:
            kept = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(x)} if correct else {}
            optimizer.state[x].update(
                kept | {name: torch.full_like(x, value) for name, value in start.items()}
            )
        if correct:
            (group,) = optimizer.param_groups
            beta1, beta2 = group["betas"]
            root = (1 - beta2**t) ** 0.5
            group["lr"], group["eps"] = ETA * (1 - beta1**t) / root, TAU / root
        optimizer.step()
        seen.append(x.detach().clone())
    return seen


ADAPTIVE = {"beta1": 0.8, "beta2": 0.95, "tau": TAU}
SERVERS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "plain": ({}, {"make": torch.optim.SGD}),
    "momentum": ({"beta1": 0.9}, {"make": torch.optim.SGD, "momentum": 0.9}),
    "nesterov": ({"beta1": 0.9}, {"make": torch.optim.SGD, "momentum": 0.9, "nesterov": True}),
    "adagrad": (
        ADAPTIVE | {"beta1": 0.0},
        {"make": torch.optim.Adagrad, "initial_accumulator_value": TAU**2, "eps": TAU},
    ),
    "adam": (
        ADAPTIVE,
        {"make": torch.optim.Adam, "betas": (0.8, 0.95), "correct": True, "start": {"exp_avg_sq": TAU**2}},
    ),
    # AMSGrad's maximum is torch's too: of the second moment before its bias is corrected, by the step's own factor
    "ams": (
        ADAPTIVE,
        {
            "make": torch.optim.Adam,
            "betas": (0.8, 0.95),
            "amsgrad": True,
            "correct": True,
            "start": {"exp_avg_sq": TAU**2, "max_exp_avg_sq": TAU**2},
        },
    ),
    "yogi": (
        ADAPTIVE,
        {
            "make": pytorch_optimizer.Yogi,
            "betas": (0.8, 0.95),
            "correct": True,
            "start": {"exp_avg_sq": TAU**2},
        },
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_are_optimisers_of_minus_delta(name: str) -> None:
    keys, options = SERVERS[name]
    found = serve(RULES[name](eta=ETA, **keys))
    close(torch.stack(found), torch.stack(optimise(**({"start": {}} | options))), atol=1e-13)


def test_a_scaled_server_is_torchs_adam_without_a_first_moment() -> None:
    keys = {"memory": "adam", "beta": 0.95, "alpha": TAU, "floor": "add", "upper_bound": None, "rho": None}
    found = serve(RULES["scaled"](eta=ETA, **keys))
    close(
        torch.stack(found),
        torch.stack(optimise(torch.optim.Adam, {}, betas=(0.0, 0.95), eps=TAU)),
        atol=1e-13,
    )


# ------------------------------------------------------------------------------------------------ Flower's strategies

FLOWER = "flwr.serverapp.strategy."
NUM_CLIENTS, ROUNDS = 7, 4


@pytest.fixture(scope="module")
def problem() -> Softmax:
    rng = np.random.default_rng(5)
    features = [rng.normal(size=(5, 3)) + i / 3 for i in range(NUM_CLIENTS)]
    return Softmax(features, [rng.integers(0, 4, 5).tolist() for _ in range(NUM_CLIENTS)], 4)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "seven.npz", problem.features, problem.targets)


def small(run_dir: Path, arrays: Path, *overrides: str, rounds: int = ROUNDS, **more: Any) -> Run:
    settings = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": rounds,
        "client.batch_size": "full",
        "client.local_steps": 3,
        "client.step_size": 0.1,
    }
    return run(run_dir, *NATURAL, *overrides, settings=settings | more)


class Pair(NamedTuple):
    ours: str
    keys: dict[str, Any]
    flowers: str
    arguments: dict[str, Any]


# Not FedProx: Flower's is FedAvg at the server and leaves the pull to the client app, so with ours it is FedAvg.
SAME = [
    Pair("fedavg", {}, "FedAvg", {}),
    Pair(
        "fedavgm",
        {"eta": 0.7, "beta1": 0.5},
        "FedAvgM",
        {"server_learning_rate": 0.7, "server_momentum": 0.5},
    ),
    Pair("fedmedian", {}, "FedMedian", {}),
    Pair("trimmed_mean", {"combine.trim": 0.3}, "FedTrimmedAvg", {"beta": 0.3}),
    Pair("krum", {"combine.num_malicious": 2}, "Krum", {"num_malicious_nodes": 2}),
    Pair(
        "multikrum",
        {"combine.num_malicious": 1, "combine.num_selected": 4},
        "MultiKrum",
        {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    ),
    Pair("bulyan", {"combine.num_malicious": 0}, "Bulyan", {"num_malicious_nodes": 0}),
    # tau^2 = 1e-22, where Flower's second moment starts at 0, vanishes beside squared displacements of 1e-4
    Pair("fedadagrad", {"eta": 0.05, "tau": 1e-11}, "FedAdagrad", {"eta": 0.05, "tau": 1e-11}),
    Pair("fedyogi", {"eta": 0.05, "tau": 1e-11}, "FedYogi", {"eta": 0.05, "tau": 1e-11}),
]


def both(pair: Pair, arrays: Path, tmp_path: Path, rounds: int = ROUNDS) -> tuple[np.ndarray, np.ndarray]:
    """The models of our run and of Flower's strategy on the same clients."""
    keys = {f"strategy.{key}": value for key, value in pair.keys.items()}
    ours = small(tmp_path / "ours", arrays, f"strategy={pair.ours}", rounds=rounds, **keys)
    section = {"strategy": {"name": "flower", "_target_": FLOWER + pair.flowers} | pair.arguments}
    theirs = small(tmp_path / "theirs", arrays, "strategy=flower", rounds=rounds, **section)
    assert not any(line["failures"] for line in ours.lines + theirs.lines)
    return ours.model, theirs.model


@pytest.mark.parametrize("pair", SAME, ids=lambda pair: pair.ours)
def test_it_is_flowers(pair: Pair, arrays: Path, tmp_path: Path) -> None:
    # Flower's Bulyan collects garbage once a reply, which takes most of a second each.
    ours, theirs = both(pair, arrays, tmp_path, rounds=1 if pair.flowers == "Bulyan" else ROUNDS)
    assert np.abs(ours).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_flowers_fedopt_starts_its_second_moment_at_zero(arrays: Path, tmp_path: Path) -> None:
    """The paper: at tau^2 or more. One round of Adagrad: Delta / (|Delta| + tau) against its root with tau^2."""
    pair = Pair("fedadagrad", {"eta": 1.0, "tau": 0.1}, "FedAdagrad", {"eta": 1.0, "tau": 0.1})
    ours, theirs = both(pair, arrays, tmp_path, rounds=1)
    delta = small(tmp_path / "delta", arrays, "strategy=fedavg", rounds=1).model  # from zero
    np.testing.assert_allclose(theirs, delta / (np.abs(delta) + 0.1), rtol=0, atol=1e-14)
    np.testing.assert_allclose(ours, delta / (np.sqrt(delta**2 + 0.01) + 0.1), rtol=0, atol=1e-14)


def test_flowers_fedadam_corrects_with_an_exponent_one_too_high(arrays: Path, tmp_path: Path) -> None:
    """Ours has no correction, as the paper; Flower's has one, of round p + 1 in round p."""
    arguments = {"eta": 0.05, "tau": 1e-11}
    pair = Pair("fedadam", arguments, "FedAdam", arguments)
    ours, theirs = both(pair, arrays, tmp_path, rounds=1)
    factor = (1 - 0.99**2) ** 0.5 / (1 - 0.9**2)
    assert factor == pytest.approx(0.7425, abs=1e-4)
    np.testing.assert_allclose(theirs, factor * ours, rtol=0, atol=1e-12)


def test_flowers_bulyan_chooses_once(arrays: Path, tmp_path: Path) -> None:
    """The paper chooses one model at a time, each among those that remain; Flower's takes the best by one count."""
    ours, theirs = both(Pair("bulyan", {}, "Bulyan", {"num_malicious_nodes": 1}), arrays, tmp_path, rounds=1)
    assert np.abs(ours - theirs).max() > 1e-6


# ------------------------------------------------------------------------------------------------ a reduction


@pytest.mark.parametrize("base", ["rmsprop", "adam"])
def test_scaled_steps_of_full_gradients_are_mimelite(
    base: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    """The scaled local method whose statistic is the full-batch gradient is MimeLite with that base."""
    more = {"scaling.statistic": "full_gradient", "scaling.beta": 0.9, "scaling.alpha": 0.01}
    found = small(
        tmp_path / "run", arrays, "strategy=savic", f"scaling={base}", **more, **{"client.step_size": 0.02}
    )
    named = found.tensors
    vector = np.concatenate([named[name].ravel() for name in sorted(named, key=lambda n: -named[n].ndim)])
    rounds = [list(range(NUM_CLIENTS))] * ROUNDS
    told = {"base": base, "beta1": 0.0, "beta2": 0.9, "alpha": 0.01, "start": "statistic"}
    expected = mimelite(FullBatch(problem), np.zeros(len(vector)), rounds, 3, 0.02, **told)[-1]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-12)
