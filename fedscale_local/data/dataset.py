"""What a data set is, and what a model sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["classification", "tokens", "regression"]


@dataclass(frozen=True)
class Dataset:
    """A training and a test set in memory, in the form in which it is stored (images as bytes).

    Attributes:
        name: the name in the configuration.
        kind: "classification", "tokens" (predict the next token) or "regression".
        x: (n, ...) uint8 images (n, channels, height, width), float features, or int64 tokens (n, T).
        y: (n,) int64 labels; (n, T) int64 next tokens, -1 where there is none; or (n,) float targets.
        test_x, test_y: the same for testing; may have 0 rows.
        num_classes: of the labels; size of the alphabet for tokens; 1 for regression.
        mean, std: (channels,) float64, in units of 0..1, for uint8 images only.
        client, test_client: (n,) int64 natural owner 0..k-1 of each row, or None.
        class_names: one per class where the set has names.
        note: what a reader of the results must know about the source.
    """

    name: str
    kind: Kind
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    mean: Tensor | None = None
    std: Tensor | None = None
    client: np.ndarray | None = None
    test_client: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    note: str = ""

    @property
    def num_examples(self) -> int:
        """Rows of the training set."""
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) int64 training labels, for partition schemes; None unless it is a classification."""
        return self.y.numpy() if self.kind == "classification" else None


def inputs(dataset: Dataset, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the model sees of stored rows ``x`` (..., *input_shape), with any leading axes.

    uint8 images become (x/255 - mean)/std channel by channel, features are cast, tokens stay as they are.

    >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> half = torch.tensor([0.5], dtype=torch.float64)
    >>> dataset = Dataset("bw", "classification", images, torch.tensor([0, 1]), images[:0],
    ...                   torch.empty(0, dtype=torch.int64), 2, mean=half, std=half)
    >>> inputs(dataset, images, torch.float32).flatten().tolist()
    [-1.0, 1.0]
    """
    if dataset.kind == "tokens":
        return x
    if x.dtype != torch.uint8:
        return x.to(dtype)
    scaled = x.to(dtype) / 255
    if dataset.mean is None or dataset.std is None:
        return scaled
    mean, std = (v.to(device=x.device, dtype=dtype).reshape(-1, 1, 1) for v in (dataset.mean, dataset.std))
    return (scaled - mean) / std
