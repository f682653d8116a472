"""CIFAR-10: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

Published for research without a formal licence. Three forms are read: parquet of encoded images (decoded
once per process, with pillow), the binary version (cifar-10-batches-bin) and the Python version
(cifar-10-batches-py). The last one's files are pickles: they are scanned for their arrays, never unpickled.
"""

from __future__ import annotations

import io
import pickletools
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.images import channel_statistics
from fedscale_local.data.locate import locate
from fedscale_local.data.tables import read_table
from fedscale_local.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARQUET = ("train.parquet", "test.parquet")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY = tuple(f"cifar-10-batches-bin/{name}.bin" for name in BATCHES)
PYTHON = tuple(f"cifar-10-batches-py/{name}" for name in BATCHES)
URL, MD5 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
PIXELS = 3 * 32 * 32
BETTER = "take the binary version of CIFAR-10"
LOSSY = "lossy JPEG copy of CIFAR-10: accuracies are close to, but not the same as, those on the original"

Arrays = tuple[np.ndarray, np.ndarray]  # (n, 3, 32, 32) uint8, (n,) int64


def cifar10(data: Any) -> Dataset:
    """CIFAR-10: x (50000, 3, 32, 32) uint8, 10,000 for testing. The note says so where the copy is lossy."""
    files = locate(data, [PARQUET, BINARY, PYTHON], download=_download)
    note = ""
    if files[0].suffix == ".parquet":
        decoded = [_decoded(file, file.stat().st_mtime_ns) for file in files]
        (x, y, lossy), (test_x, test_y, _) = decoded
        note = LOSSY if lossy else ""
    else:
        read = read_binary if files[0].suffix == ".bin" else scan_python
        batches = [read(file) for file in files]
        x, y = (np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True))
        test_x, test_y = batches[-1]
    images = torch.from_numpy(x)
    mean, std = channel_statistics(images)
    return Dataset(
        data.name, "classification", images, torch.from_numpy(y), torch.from_numpy(test_x),
        torch.from_numpy(test_y), len(CLASSES), mean, std, class_names=CLASSES, note=note,
    )  # fmt: skip


@lru_cache(maxsize=2)
def _decoded(file: Path, modified: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images, labels, and whether they are JPEGs; kept in memory for the next run in this process."""
    from PIL import Image

    table = read_table(file, ["img", "label"])
    raw = table["img"].combine_chunks().field("bytes")
    x = np.empty((len(raw), 32, 32, 3), np.uint8)

    def decode(rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                x[row] = np.asarray(Image.open(io.BytesIO(raw[row].as_py())).convert("RGB"))
            except (OSError, TypeError, ValueError) as error:
                where = f"{file} row {row}"
                raise DataError(where, f"expected a 32x32 image ({error})", "fetch it again") from error

    with ThreadPoolExecutor() as pool:  # pillow decodes without the interpreter's lock
        list(pool.map(decode, np.array_split(np.arange(len(raw)), 16)))
    lossy = len(raw) > 0 and raw[0].as_py()[:2] == b"\xff\xd8"
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), table["label"].to_numpy().astype(np.int64), lossy


def read_binary(file: Path) -> Arrays:
    """One file of the binary version: rows of one label and 3,072 bytes, channel by channel."""
    raw = np.fromfile(file, np.uint8)
    if len(raw) == 0 or len(raw) % (1 + PIXELS):
        raise DataError(
            str(file), f"expected rows of {1 + PIXELS} bytes, found {len(raw)} bytes", "fetch it again"
        )
    rows = raw.reshape(-1, 1 + PIXELS)
    return np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def scan_python(file: Path) -> Arrays:
    """One file of the Python version, without running its pickle.

    The stream holds the pixels as one long string and, after the key "labels", a list of small integers.
    """
    pixels, in_labels = b"", False
    labels: list[int] = []
    try:
        for opcode, value, _ in pickletools.genops(file.read_bytes()):
            if isinstance(value, str):  # Python 2 strings: keys, file names, and the pixels
                in_labels = value == "labels"
                pixels = max(pixels, value.encode("latin-1"), key=len)
            elif in_labels and isinstance(value, int) and opcode.name.startswith("BININT"):
                labels.append(value)
    except ValueError as error:
        raise DataError(str(file), f"cannot be read ({error})", BETTER) from error
    if not labels or len(pixels) != len(labels) * PIXELS:
        raise DataError(
            str(file),
            f"expected {PIXELS} bytes of pixels a label, found {len(pixels)} for {len(labels)}",
            BETTER,
        )
    x = np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, 3, 32, 32)
    return x, np.array(labels, np.int64)


def _download(folder: Path) -> None:
    from fedscale_local._torchvision import torchvision

    folder.mkdir(parents=True, exist_ok=True)
    torchvision.datasets.utils.download_and_extract_archive(URL, str(folder), md5=MD5)
