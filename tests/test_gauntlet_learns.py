"""Every named strategy learns a small real problem with the hyper-parameters that its name brings.

Fashion-MNIST's 12,000 images over 50 clients with a Dirichlet(0.3) share of each class, ten of them a round, ten steps
of 32 images, a network with 32 hidden units, 30 rounds, one seed. It says that a default works, not which is better:
nothing here was tuned to this problem, and one seed decides nothing.

The bound is six test images of ten, where guessing gives one and each of three clients alone reaches fewer than six.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gauntlet import STRATEGIES
from whole_runs import NATURAL, configured, run

from fedscale_local import compose, experiment
from fedscale_local.data.dataset import inputs

GUESSING, BOUND, ROUNDS, CLIENTS, ALONE = 0.1, 0.6, 30, 50, 3
SETTINGS: dict[str, Any] = {
    "num_rounds": ROUNDS,
    "eval_every": ROUNDS,
    "clients_per_round": 10,
    "client.local_steps": 10,
    "client.batch_size": 32,
}
MODEL = ("model=mlp", "model.hidden=[32]")
CHOICES = [f"strategy={name}" for name in sorted(STRATEGIES) if name != "savic"]
CHOICES += [f"scaling={name}" for name in compose.groups()["scaling"].choices]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The images of all clients, and of some of them alone, as arrays that load quickly."""
    settings = {"num_clients": CLIENTS, "clients_per_round": None}
    built = experiment.build(configured("strategy=fedavg", *MODEL, settings=settings))
    data, torch32 = built.dataset, built.task.dtype
    test = {"x_test": inputs(data, data.test_x, torch32).numpy(), "y_test": data.test_y.numpy()}
    x, y, folder = inputs(data, data.x, torch32).numpy(), data.y.numpy(), tmp_path_factory.mktemp("clothes")
    owner = np.empty(len(x), dtype=np.int64)
    for client in range(CLIENTS):
        owner[built.partition[client]] = client
    np.savez(folder / "all.npz", x=x, y=y, client=owner, **test)
    for client in range(ALONE):
        own = built.partition[client]
        np.savez(
            folder / f"{client}.npz", x=x[own], y=y[own], client=np.zeros(len(own), dtype=np.int64), **test
        )
    return {file.stem: file for file in folder.glob("*.npz")}


def accuracy(run_dir: Path, file: Path, *overrides: str, **more: Any) -> float:
    settings = SETTINGS | {"data.path": str(file)} | more
    finished = run(run_dir, *NATURAL, *MODEL, *overrides, settings=settings)
    assert not any(line["failures"] for line in finished.lines)
    return float(finished.lines[-1]["test_accuracy"])


@pytest.mark.slow
def test_clients_alone_stay_below_the_bound(files: dict[str, Path], tmp_path: Path) -> None:
    """As many steps as a client of the federation could take at the most, on its own images."""
    alone = [
        accuracy(tmp_path / str(client), files[str(client)], "strategy=fedavg", clients_per_round=None)
        for client in range(ALONE)
    ]
    assert min(alone) > GUESSING and max(alone) < BOUND, alone


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_it_learns(choice: str, files: dict[str, Path], tmp_path: Path) -> None:
    assert accuracy(tmp_path / "run", files["all"], choice) > BOUND
