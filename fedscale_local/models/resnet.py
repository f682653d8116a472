"""Residual networks for small images: 3x3 stem, no pooling before the blocks, GroupNorm.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (basic block; resnet8 is its 6n + 2
family for CIFAR with n = 1). Departures: GroupNorm (Wu & He, ECCV 2018) for BatchNorm, whose statistics over
a client's batch neither average well over unlike clients nor fit a stack of clients; resnet8 projects its
shortcuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale_local.errors import ConfigError


class Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the first convolution with the stride."""

    def __init__(self, inside: int, outside: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.GroupNorm(groups, outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inside, h, w) -> (batch, outside, h / stride, w / stride), rounded up."""
        residual = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(self.shortcut(x) + residual)


class ResNet(nn.Module):
    """Stem, one stage per width (each but the first halves the image), mean over the image, linear layer."""

    def __init__(self, depth: int, num_outputs: int, widths: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        if any(width % groups for width in widths):
            raise ConfigError(
                f"model.groups={groups}",
                f"every width of {tuple(widths)} is split into the groups",
                "set model.groups to a power of two up to 16",
            )
        self.conv = nn.Conv2d(depth, widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, widths[0])
        stages: list[nn.Module] = []
        inside = widths[0]
        for stage, outside in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(inside, outside, 2 if stage > 0 and block == 0 else 1, groups))
                inside = outside
        self.blocks = nn.Sequential(*stages)
        self.output = nn.Linear(inside, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, num_outputs)."""
        x = self.blocks(functional.relu(self.norm(self.conv(x))))
        return self.output(torch.mean(x, (-2, -1)))


def resnet8(input_shape: tuple[int, ...], num_outputs: int, *, groups: int = 2) -> nn.Module:
    """One block at each of the widths 16, 32, 64; `groups` are those of every GroupNorm."""
    return ResNet(input_shape[0], num_outputs, (16, 32, 64), blocks=1, groups=groups)


def resnet18(input_shape: tuple[int, ...], num_outputs: int, *, groups: int = 2) -> nn.Module:
    """Two blocks at each of the widths 64, 128, 256, 512; `groups` are those of every GroupNorm."""
    return ResNet(input_shape[0], num_outputs, (64, 128, 256, 512), blocks=2, groups=groups)
