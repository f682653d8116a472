"""Make the embedded subset of Fashion-MNIST: the first 1,200 and 200 of each class, in their order.

    python -m fedscale_local.data.embedded.build [FOLDER WITH THE FOUR IDX FILES]

The folder defaults to that of the Debian package dataset-fashion-mnist. The same input gives the same bytes
(with the same version of liblzma; the arrays are the same with any).
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path

import numpy as np

from fedscale_local.data.embedded import FILE
from fedscale_local.data.images import DEBIAN_FASHION_MNIST, IDX, read_idx

PER_CLASS, TEST_PER_CLASS = 1200, 200


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, ascending, of the first ``count`` examples of each class.

    >>> first_of_each_class(np.array([1, 0, 1, 1, 0, 0]), 2).tolist()
    [0, 1, 2, 4]
    """
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def subset(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the subset: x (12000, 28, 28) and test_x (2000, 28, 28) uint8; y and test_y uint8."""
    x, y, test_x, test_y = (read_idx(folder / f"{name}.gz") for name in IDX)
    keep, keep_test = first_of_each_class(y, PER_CLASS), first_of_each_class(test_y, TEST_PER_CLASS)
    return {"x": x[keep], "y": y[keep], "test_x": test_x[keep_test], "test_y": test_y[keep_test]}


def main(folder: str = DEBIAN_FASHION_MNIST) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **subset(Path(folder)))  # type: ignore[arg-type]
    packed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    (Path(__file__).parent / FILE).write_bytes(packed)


if __name__ == "__main__":
    main(*sys.argv[1:])
