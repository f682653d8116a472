"""data=arrays: what is accepted comes out as it went in; everything else ends with one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedscale_local.data import load
from fedscale_local.data.dataset import Dataset, inputs
from fedscale_local.errors import DataError

X = np.random.default_rng(0).standard_normal((6, 3))
Y = np.array([0, 1, 2, 0, 1, 2])
GOOD: dict[str, Any] = {"x": X, "y": Y}


def read(path: Path | None) -> Dataset:
    return load(SimpleNamespace(name="arrays", path=None if path is None else str(path), download=False), 0)


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def test_float64_comes_through_unchanged(tmp_path: Path) -> None:
    dataset = read(saved(tmp_path, **GOOD))
    assert np.array_equal(dataset.x.numpy(), X) and dataset.x.dtype == torch.float64
    assert np.array_equal(dataset.labels, Y)  # type: ignore[arg-type]
    assert dataset.num_classes == 3 and len(dataset.test_x) == len(dataset.test_y) == 0
    assert dataset.client is None and dataset.test_client is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, np.int64, bool])
def test_other_numbers_become_float32(tmp_path: Path, dtype: type) -> None:
    x: np.ndarray = (X * 10).clip(0).astype(dtype)
    dataset = read(saved(tmp_path, x=x, y=Y.astype(np.uint8)))
    assert dataset.x.dtype == torch.float32 and np.array_equal(dataset.x.numpy(), x.astype(np.float32))
    assert dataset.y.dtype == torch.int64


def test_test_rows_and_owners(tmp_path: Path) -> None:
    file = saved(
        tmp_path, **GOOD, client=[7, 3, 3, 7, 40, 3], x_test=X[:2], y_test=[3, 0], client_test=[40, 3]
    )
    dataset = read(file)
    assert dataset.client.tolist() == [1, 0, 0, 1, 2, 0]  # type: ignore[union-attr]
    assert dataset.test_client.tolist() == [2, 0]  # type: ignore[union-attr]
    assert dataset.num_classes == 4 and dataset.test_y.tolist() == [3, 0]


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 1, 4, 4), (6, 3, 4, 4)])
def test_bytes_are_images_and_are_normalised(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    dataset = read(saved(tmp_path, x=x, y=Y, x_test=x[:2], y_test=Y[:2]))
    assert dataset.x.dtype == torch.uint8 and dataset.x.ndim == dataset.test_x.ndim == 4
    seen = inputs(dataset, dataset.x, torch.float64)
    assert seen.mean((0, 2, 3)).abs().max() < 1e-12
    assert (seen.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-12


def test_parquet_gives_the_same_as_npz(tmp_path: Path) -> None:
    client = [0, 0, 1, 1, 2, 2]
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float64(), 3)):
        table = pa.table({"x": pa.array(X.tolist(), kind), "y": Y, "client": client})
        pq.write_table(table, tmp_path / "mine.parquet", row_group_size=4)
        dataset, same = read(tmp_path / "mine.parquet"), read(saved(tmp_path, **GOOD, client=client))
        assert torch.equal(dataset.x, same.x) and torch.equal(dataset.y, same.y)
        assert np.array_equal(dataset.client, same.client)  # type: ignore[arg-type]
        test = table.append_column("test", pa.array([False, True] * 3))
        pq.write_table(test, tmp_path / "split.parquet")
        split = read(tmp_path / "split.parquet")
        assert np.array_equal(split.x.numpy(), X[::2]) and np.array_equal(split.test_x.numpy(), X[1::2])
        assert split.test_client.tolist() == [0, 1, 2]  # type: ignore[union-attr]


class Explosive:
    """Unpickling it would raise."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return exec, ("raise SystemExit('a pickle was read')",)


BAD_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("x is missing", {"features": X, "y": Y}, r"expected arrays x and y, found \['features', 'y'\]"),
    ("y is missing", {"x": X}, r"expected arrays x and y, found \['x'\]"),
    ("a name too much", {**GOOD, "weights": Y}, r"unknown arrays \['weights'\]"),
    ("x_test alone", {**GOOD, "x_test": X}, "x_test and y_test belong together"),
    ("y_test alone", {**GOOD, "y_test": Y}, "x_test and y_test belong together"),
    ("x with one axis", {"x": Y * 1.0, "y": Y}, r"x has shape \(6,\)"),
    ("x without rows", {"x": X[:0], "y": Y[:0]}, r"x has shape \(0, 3\) and is empty"),
    ("x without columns", {"x": X[:, :0], "y": Y}, r"x has shape \(6, 0\) and is empty"),
    ("x with NaN", {"x": np.where(X[4, 1] == X, np.nan, X), "y": Y}, "x has NaN .* first in row 4"),
    ("x with infinity", {"x": np.where(X[2, 0] == X, -np.inf, X), "y": Y}, "x has NaN .* first in row 2"),
    ("x of objects", {"x": np.array([[Explosive()]] * 6), "y": Y}, "x is an array of Python objects"),
    ("y of objects", {"x": X, "y": np.array([Explosive()] * 6)}, "y is an array of Python objects"),
    ("x of words", {"x": np.array([["a"]] * 6), "y": Y}, "x holds <U1, not real numbers"),
    ("x complex", {"x": X * 1j, "y": Y}, "x holds complex128"),
    ("x beyond float32", {"x": np.full((6, 1), np.longdouble("1e300")), "y": Y}, "beyond float32"),
    ("fewer labels than rows", {"x": X, "y": Y[:5]}, r"y has shape \(5,\), its x has 6 rows"),
    ("y as a column", {"x": X, "y": Y[:, None]}, r"y has shape \(6, 1\)"),
    ("y one-hot", {"x": X, "y": np.eye(3, dtype=int)[Y]}, r"y has shape \(6, 3\)"),
    ("y of floats", {"x": X, "y": Y * 1.0}, "y holds float64, not whole numbers"),
    ("y of words", {"x": X, "y": Y.astype(str)}, "y holds <U21, not whole numbers"),
    ("y negative", {"x": X, "y": Y - 1}, "y has the negative value -1; number y from 0"),
    ("y far out of range", {"x": X, "y": Y * 10**12}, "y has the label 2000000000000 with 6 examples"),
    ("y beyond int64", {"x": X, "y": np.full(6, 2**64 - 1, np.uint64)}, "beyond int64"),
    ("client of floats", {**GOOD, "client": Y / 2}, "client holds float64"),
    ("client negative", {**GOOD, "client": Y - 2}, "client has the negative value -2"),
    ("client too short", {**GOOD, "client": Y[:3]}, r"client has shape \(3,\)"),
    ("test of another shape", {**GOOD, "x_test": X[:, :2], "y_test": Y}, r"shape \(3,\), x_test of \(2,\)"),
    ("test with NaN", {**GOOD, "x_test": X * np.nan, "y_test": Y}, "x_test has NaN"),
    ("test labels negative", {**GOOD, "x_test": X, "y_test": -Y}, "y_test has the negative value -2"),
    ("test labels too few", {**GOOD, "x_test": X, "y_test": Y[:1]}, r"y_test has shape \(1,\)"),
    ("test of a stranger", {**GOOD, "client": Y, "x_test": X, "y_test": Y, "client_test": Y + 1}, "client 3"),
    ("images channel-last", {"x": np.zeros((6, 4, 4, 3), np.uint8), "y": Y}, "transpose x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arrays", "message"), BAD_ARRAYS, ids=[row[0] for row in BAD_ARRAYS])
def test_bad_arrays_end_with_one_message(
    tmp_path: Path, name: str, arrays: dict[str, Any], message: str
) -> None:
    file = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(f"data.path={file}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\3\4 cut off", b"\x80\4\x95 a pickle"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"expected an .npz with arrays x and y"):
        read(tmp_path / "mine.npz")


def test_cut_off_npz_and_single_array(tmp_path: Path) -> None:
    file = saved(tmp_path, **GOOD)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"expected an .npz"):
        read(file)
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(DataError, match="found one array"):
        read(tmp_path / "one.npy")


def test_damaged_inside_npz(tmp_path: Path) -> None:
    file = saved(tmp_path, **GOOD)
    raw = bytearray(file.read_bytes())
    raw[raw.index(X.tobytes()) + 5] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"expected an .npz"):
        read(file)


def test_missing_file_directory_and_null(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(DataError, match="there is no such file"):
            read(path)
    with pytest.raises(DataError, match=r"data.path=null"):
        read(None)


BAD_TABLES: list[tuple[str, dict[str, Any], str]] = [
    ("ragged x", {"x": [[1.0, 2.0], [1.0]], "y": [0, 1]}, "column x have different lengths"),
    ("null label", {"x": [[1.0], [2.0]], "y": [0, None]}, "column y has 1 nulls"),
    ("null inside x", {"x": [[1.0], [None]], "y": [0, 1]}, "x has NaN|x holds object"),
    ("flat x", {"x": [1.0, 2.0], "y": [0, 1]}, r"x has shape \(2,\)"),
    ("no y", {"x": [[1.0], [2.0]]}, "expected columns"),
    ("another column", {"x": [[1.0], [2.0]], "y": [0, 1], "z": [0, 1]}, r"unknown columns \['z'\]"),
    ("test of numbers", {"x": [[1.0], [2.0]], "y": [0, 1], "test": [0, 1]}, "column test holds int64"),
    ("all rows for testing", {"x": [[1.0], [2.0]], "y": [0, 1], "test": [True, True]}, "is empty"),
    ("clients by name", {"x": [[1.0], [2.0]], "y": [0, 1], "client": ["a", "b"]}, "client holds"),
    ("no rows", {"x": pa.array([], pa.list_(pa.float64())), "y": pa.array([], pa.int64())}, "no rows"),
]


@pytest.mark.parametrize(("name", "columns", "message"), BAD_TABLES, ids=[row[0] for row in BAD_TABLES])
def test_bad_parquet_ends_with_one_message(
    tmp_path: Path, name: str, columns: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "mine.parquet")
