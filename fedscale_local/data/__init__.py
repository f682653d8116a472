"""Data sets and their division among clients. Importing this module loads neither torch nor a reader."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedscale_local.errors import DataError

if TYPE_CHECKING:
    from fedscale_local.data.dataset import Dataset

NAMES = {
    "fashion_mnist_12k": "12,000 + 2,000 images of clothes, 10 classes; comes with the package",
    "fashion_mnist": "60,000 + 10,000 images of clothes, 10 classes",
    "mnist": "60,000 + 10,000 images of handwritten digits, 10 classes",
    "cifar10": "50,000 + 10,000 colour images, 10 classes",
    "shakespeare": "next character; natural clients: 1,119 speaking roles",
    "hapt": "activities from a phone's sensors, 6 classes; natural clients: 30 subjects",
    "heart_disease": "diagnosis with missing values, 2 classes; natural clients: 4 hospitals",
    "quadratic": "generated: clients with known quadratic objectives; natural clients",
    "synthetic": "generated: LEAF's Synthetic(a, b), 10 classes; natural clients of power-law sizes",
    "arrays": "your own .npz or parquet file (data.path)",
}
_MODULES = dict.fromkeys(("fashion_mnist_12k", "fashion_mnist", "mnist"), "images")
GENERATED = ("quadratic", "synthetic")
"""Sets that depend on the seed and on how many clients there are."""


def load(data: Any, seed: int, num_clients: int | None = None) -> Dataset:
    """The data set that the configuration's data group names.

    Args:
        data: has name, path, download and the options of the generated sets.
        seed: of the run; only generated sets depend on it.
        num_clients: how many natural clients a generated set gets; None: its default. Others ignore it.

    Raises:
        DataError: the set is unknown, not found, or malformed.
    """
    if data.name not in NAMES:
        raise DataError(f"data.name={data.name}", "no such data set", f"take one of {', '.join(NAMES)}")
    module = import_module(f"fedscale_local.data.{_MODULES.get(data.name, data.name)}")
    loader = getattr(module, data.name)
    return loader(data, seed, num_clients) if data.name in GENERATED else loader(data)
