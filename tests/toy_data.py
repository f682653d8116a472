"""Small random data sets of any shape, for tests of models."""

import torch

from fedscale_local.data.dataset import Dataset


def dataset(kind="classification", shape=(1, 8, 8), num_classes=5, n=6):
    """A small set of random examples of one shape."""
    g = torch.Generator().manual_seed(1)
    if kind == "tokens":
        x, y = (torch.randint(0, num_classes, (n, *shape), generator=g) for _ in range(2))
    else:
        x = torch.randn(n, *shape, generator=g)
        y = (
            torch.randint(0, num_classes, (n,), generator=g)
            if kind == "classification"
            else x.flatten(1).sum(1)
        )
    return Dataset("toy", kind, x, y, x[:0], y[:0], num_classes)
