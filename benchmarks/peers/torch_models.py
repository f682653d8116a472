"""The works' models in plain PyTorch, for the peers that use it; parameters are named as in initial.npz."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Logistic(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class Block(nn.Module):
    """conv-norm-relu-conv-norm with a shortcut, GroupNorm of two groups."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(2, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(2, outside)
        narrow = nn.Conv2d(inside, outside, 1, stride, bias=False), nn.GroupNorm(2, outside)
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(*narrow)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.output = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def build(model: str) -> nn.Module:
    if model == "logistic":
        return Logistic(784, 10)
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    if model == "cnn":
        parts = [nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        parts += [nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
    return ResNet8()


def started(model: str, initial: dict[str, np.ndarray]) -> nn.Module:
    """The model with the work's initial parameters."""
    module = build(model)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in initial.items()})
    return module


@torch.no_grad()
def test_loss(module: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross entropy over the test set."""
    parts = [
        F.cross_entropy(
            module(torch.from_numpy(x[i : i + 500])), torch.from_numpy(y[i : i + 500]), reduction="sum"
        )
        for i in range(0, len(x), 500)
    ]
    return float(sum(parts)) / len(x)
