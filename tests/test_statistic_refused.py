"""A statistic that the model cannot give is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedscale_local import compose, lifecycle
from fedscale_local.errors import ConfigError

OVERRIDES = ("num_clients=4", "clients_per_round=2", "num_rounds=1", "engine.workers=1")


class _Product(torch.autograd.Function):
    """x W^T whose backward pass cannot be differentiated again."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x @ weight.T

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = context.saved_tensors
        return None, gradient.T @ x


class DifferentiableOnce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 784))

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x.flatten(1), self.weight)
        return product


@pytest.mark.parametrize("rule", ["oasis", "adahessian"])
def test_hessian_products_of_a_model_that_has_none_are_refused(rule: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    model = "model._target_=test_statistic_refused.DifferentiableOnce"
    with pytest.raises(ConfigError, match=r"scaling\.statistic=hutchinson: model=custom .*; set scaling"):
        lifecycle.run(compose.config([*OVERRIDES, model, f"scaling={rule}", f"run_dir={run_dir}"]))
    assert not run_dir.exists()


def test_the_same_model_trains_with_a_statistic_that_it_has(tmp_path: Path) -> None:
    model = "model._target_=test_statistic_refused.DifferentiableOnce"
    run_dir = lifecycle.run(
        compose.config([*OVERRIDES, model, "scaling=adam", f"run_dir={tmp_path / 'run'}"])
    )
    assert (run_dir / "model.safetensors").exists()
