"""Fashion-MNIST (whole, and the embedded subset) and MNIST.

Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv 1708.07747; MIT licence, Zalando SE. 60,000 + 10,000 images.
MNIST: LeCun, Cortes, Burges, 1998; 60,000 + 10,000 images.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.embedded import embedded_file
from fedscale_local.data.locate import Layout, locate
from fedscale_local.errors import DataError

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")


def fashion_mnist_12k(data: Any) -> Dataset:
    """12,000 training and 2,000 test images of Fashion-MNIST, equally many of each class, in the package.

    x (12000, 1, 28, 28) uint8. Made by fedscale_local/data/embedded/build.py; MIT licence, notice beside it.
    """
    with np.load(io.BytesIO(lzma.decompress(embedded_file().read_bytes())), allow_pickle=False) as arrays:
        parts = [arrays[key] for key in ("x", "y", "test_x", "test_y")]
    note = "stratified subset of Fashion-MNIST: the first 1,200 training and 200 test images of each class"
    return _grey(data.name, parts, CLOTHES, note)


def fashion_mnist(data: Any) -> Dataset:
    """Fashion-MNIST, whole: x (60000, 1, 28, 28) uint8, 10,000 for testing."""
    layouts, fetch = _layouts("FashionMNIST"), partial(_download, "FashionMNIST")
    files = locate(data, layouts, [DEBIAN_FASHION_MNIST], fetch)
    return _grey(data.name, [read_idx(file) for file in files], CLOTHES)


def mnist(data: Any) -> Dataset:
    """MNIST: x (60000, 1, 28, 28) uint8, 10,000 for testing."""
    files = locate(data, _layouts("MNIST"), download=partial(_download, "MNIST"))
    return _grey(data.name, [read_idx(file) for file in files], DIGITS)


def read_idx(file: Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, gzipped or not.

    Raises:
        DataError: the file is no idx file of unsigned bytes, or is cut off.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(file), f"cannot be read ({error})", "fetch it again") from error
    dimensions = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(raw, ">u4", dimensions, 4).tolist()) if len(raw) >= 4 + 4 * dimensions else ()
    if not shape or len(raw) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise DataError(str(file), "expected an idx file of unsigned bytes, whole", "fetch it again")
    return np.frombuffer(bytearray(raw), np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (channels,) float64 in units of 0..1, of images (n, channels, h, w) uint8.

    >>> mean, std = channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    >>> mean.item(), std.item()
    (0.5, 0.5)
    """
    counts = np.zeros((x.shape[1], 256))
    for part in x.split(2000):  # exact, and never a float copy of all images
        for channel in range(x.shape[1]):
            counts[channel] += np.bincount(part[:, channel].flatten().numpy(), minlength=256)
    share, level = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
    return torch.from_numpy(mean), torch.from_numpy(np.where(std > 0, std, 1.0))


def _grey(name: str, parts: list[np.ndarray], class_names: tuple[str, ...], note: str = "") -> Dataset:
    x, y, test_x, test_y = (torch.from_numpy(part) for part in parts)
    if len(x) != len(y) or len(test_x) != len(test_y) or x.ndim != 3 or max(y.max(), test_y.max()) > 9:
        raise DataError(f"data.name={name}", "images and labels do not fit together", "fetch the files again")
    x, test_x = x.unsqueeze(1), test_x.unsqueeze(1)
    mean, std = channel_statistics(x)
    return Dataset(
        name, "classification", x, y.long(), test_x, test_y.long(), len(class_names), mean, std,
        class_names=class_names, note=note,
    )  # fmt: skip


def _layouts(torchvision_name: str) -> list[Layout]:
    """The four files, gzipped or not, in the folder itself or where torchvision puts them below it."""
    folders = ("", "raw/", f"{torchvision_name}/raw/")
    return [tuple(f"{folder}{name}{end}" for name in IDX) for folder in folders for end in (".gz", "")]


def _download(name: str, folder: Path) -> None:
    from fedscale_local._torchvision import torchvision

    folder.mkdir(parents=True, exist_ok=True)
    getattr(torchvision.datasets, name)(str(folder), download=True)
