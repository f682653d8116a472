"""model.safetensors loads into the model as it is, with what was trained and what was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedscale_local import compose, experiment, lifecycle

OVERRIDES = (
    "num_clients=4",
    "clients_per_round=2",
    "num_rounds=2",
    "client.local_steps=2",
    "engine.workers=1",
)


class PartlyFrozen(nn.Module):
    """A frozen first layer, running statistics, a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(784, 8)
        self.body.requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.body(x.flatten(1))))
        return y


def test_the_saved_model_loads_strictly(tmp_path: Path) -> None:
    model = "model._target_=test_saved_model.PartlyFrozen"
    config = compose.config([*OVERRIDES, model, "strategy=fedavg", f"run_dir={tmp_path / 'run'}"])
    start = {name: t.clone() for name, t in experiment.build(config).task.module.state_dict().items()}
    saved = load_file(lifecycle.run(config) / "model.safetensors")
    PartlyFrozen().load_state_dict(saved)
    assert torch.equal(saved["body.weight"], start["body.weight"])
    assert not torch.equal(saved["head.weight"], start["head.weight"])
    assert not torch.equal(saved["norm.running_mean"], start["norm.running_mean"])


def test_how_it_does_on_each_client_is_told_unless_it_is_not_wanted(tmp_path: Path) -> None:
    overrides = (
        "data=synthetic",
        "num_clients=3",
        "clients_per_round=2",
        "num_rounds=1",
        "client.local_steps=2",
    )
    told, spared = (
        lifecycle.run(compose.config([*overrides, f"eval_clients={wanted}", f"run_dir={tmp_path / wanted}"]))
        for wanted in ("true", "false")
    )
    assert not (spared / "clients.json").exists()
    built = experiment.build(compose.config([*overrides, f"run_dir={told}"]))
    model = load_file(told / "model.safetensors")
    found = json.loads((told / "clients.json").read_text())
    for client in range(3):
        x, y = built.task.examples(built.shard(client))
        logits = x @ model["weight"].T + model["bias"]
        loss = nn.functional.cross_entropy(logits, y)
        assert found["train_loss"][client] == pytest.approx(float(loss), rel=1e-5)
        assert found["train_accuracy"][client] == float((logits.argmax(1) == y).double().mean())
