"""Small convolutional networks, over images and over signals in time.

Max pooling comes before ReLU: the two commute, and so ReLU and its derivative touch a quarter of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedscale_local.errors import ConfigError


def cnn(input_shape: tuple[int, ...], num_outputs: int, *, channels: Sequence[int] = (16, 32)) -> nn.Module:
    """For each width in `channels` a 3x3 convolution, 2x2 max pooling and ReLU; then one linear layer.

    >>> cnn((1, 28, 28), 10)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    depth, height, width = input_shape
    _check_pooling(channels, min(height, width))
    layers: list[nn.Module] = []
    for wide in channels:
        layers += [nn.Conv2d(depth, wide, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        depth, height, width = wide, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, num_outputs))


def cnn1d(input_shape: tuple[int, ...], num_outputs: int, *, channels: Sequence[int] = (32, 64)) -> nn.Module:
    """The same along time for (channels, time): convolutions over five samples, then the mean over time.

    >>> cnn1d((6, 128), 6)(torch.zeros(5, 6, 128)).shape
    torch.Size([5, 6])
    """
    depth, time = input_shape
    _check_pooling(channels, time)
    layers: list[nn.Module] = []
    for wide in channels:
        layers += [nn.Conv1d(depth, wide, 5, padding=2), nn.MaxPool1d(2), nn.ReLU()]
        depth = wide
    return nn.Sequential(*layers, MeanOverTime(), nn.Linear(depth, num_outputs))


def _check_pooling(channels: Sequence[int], size: int) -> None:
    if size < 2 ** len(channels):
        raise ConfigError(
            f"model.channels={list(channels)}",
            f"every layer halves the input, which has only {size} pixels or times along one side",
            "give fewer layers",
        )


class MeanOverTime(nn.Module):
    """(batch, channels, time) -> (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the last axis."""
        return torch.mean(x, -1)
