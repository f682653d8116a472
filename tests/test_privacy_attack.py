"""Does the bound hold? An attack on whole runs: was the outlier there?

Client 0 is as easy to find as any can be: its displacement is clipped in every round and points where nobody else's
does. The attacker knows that direction, sees every model, and guesses by the likelihood ratio of a round. Each round
is a trial, because a tiny server step keeps the model where it was. The rate of its hits (the outlier was in the data)
is at most exp(epsilon) times the rate of false alarms, plus delta, if epsilon is right.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta
from torch import Tensor
from whole_runs import NATURAL, run, save_arrays

from fedscale_local import privacy, rounds, wire
from fedscale_local.privacy import Release

FEATURES, CLIENTS, ROUNDS, ETA, CLIP = 2, 4, 500, 1e-6, 0.5
DELTA = 1e-3


def seen(
    folder: Path, is_there: bool, share: int, noise: float, seed: int, mp: pytest.MonkeyPatch
) -> np.ndarray:
    """How far each round went in the outlier's direction, (rounds,), in units of one whole client."""
    x = [np.full((1, FEATURES), 0.0) for _ in range(CLIENTS)]
    if is_there:
        x[0][0, 0] = 1e3
    path = save_arrays(folder / f"{is_there}.npz", x, [[0]] + [[1]] * (CLIENTS - 1))
    models: list[np.ndarray] = []

    def watched(built: Any, round: int, arrays: Any) -> dict[str, None]:
        vector: Tensor = wire.from_model_record(arrays, built.task)[0]
        models.append(vector.numpy().copy())
        return {"test_loss": None, "test_accuracy": None}

    mp.setattr(rounds, "_evaluation", watched)
    settings = {
        "data.path": str(path), "dtype": "float64", "num_rounds": ROUNDS, "clients_per_round": share, "seed": seed,
        "client.batch_size": "full", "client.local_steps": 1, "client.step_size": 1.0, "engine.mode": "looped",
        "strategy.eta": ETA, "privacy.noise_multiplier": noise, "privacy.clip.parameters": CLIP,
    }  # fmt: skip
    run(folder / f"run-{is_there}-{noise}", *NATURAL, "strategy=fedavg", "privacy=central", settings=settings)
    moves = np.diff(np.stack([np.zeros_like(models[0]), *models]), axis=0)
    direction = np.zeros(len(moves[0]))
    direction[[0, FEATURES]] = (math.sqrt(0.5), -math.sqrt(0.5))  # towards class 0 by the first input
    return moves @ direction * share / (ETA * CLIP)


def found(present: np.ndarray, absent: np.ndarray, share: float, noise: float) -> float:
    """A lower bound of epsilon at 95 % each (Clopper and Pearson); one half of the rounds chooses the threshold."""
    present, absent = (
        np.log(1 - share + share * np.exp((2 * moved - 1) / (2 * noise**2))) for moved in (present, absent)
    )
    half = len(present) // 2

    def bound(threshold: float, part: slice) -> float:
        hits, alarms = int((present[part] > threshold).sum()), int((absent[part] > threshold).sum())
        count = len(present[part])
        low = beta.ppf(0.05, hits, count - hits + 1) if hits else 0.0
        high = beta.ppf(0.95, alarms + 1, count - alarms)
        return math.log((low - DELTA) / high) if low > DELTA else 0.0

    threshold = max(
        np.quantile(absent[:half], np.linspace(0.05, 1.0, 200)), key=lambda t: bound(t, slice(half))
    )
    return bound(float(threshold), slice(half, None))


@pytest.mark.slow
@pytest.mark.timeout(900)  # 3,000 rounds: 20 s on a free core
@pytest.mark.parametrize(("share", "noise", "least"), [(4, 1.0, 0.4), (2, 0.7, 0.4)], ids=["all", "poisson"])
def test_an_attack_on_an_outlier_stays_below_the_bound(
    share: int, noise: float, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes close enough to mean something; with a quarter of the noise that is charged it does not stay there."""
    chance = share / CLIENTS
    release = privacy.central(noise, "poisson", "pld", share, CLIENTS).release
    assert release == (Release(noise) if share == CLIENTS else Release(noise, "poisson", share, CLIENTS))
    bound = privacy.epsilon(((release, 1),), "pld", DELTA)

    def attack(used: float) -> float:
        both = (
            seen(tmp_path, there, share, used, seed, monkeypatch) for there, seed in ((True, 1), (False, 2))
        )
        return found(*both, chance, used)

    reached = attack(noise)
    print(f"epsilon {bound:.3f}, the attack shows {reached:.3f}")
    assert least < reached <= bound
    if share == CLIENTS:
        assert attack(noise / 4) > bound, "an attack that misses too little noise proves nothing"
