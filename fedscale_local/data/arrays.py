"""The user's own arrays: an .npz or a parquet file. Nothing in it is trusted, and no pickle is read.

    numpy.savez("mine.npz", x=x, y=y, client=client, x_test=x_test, y_test=y_test)

x (n, ...) numbers, y (n,) whole-number labels from 0; the rest is optional: client (n,) whole numbers for
partition=natural, x_test and y_test, client_test. In a parquet file x is a column of lists (or fixed-size
lists) of numbers; a boolean column ``test`` marks the rows for testing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.images import channel_statistics
from fedscale_local.errors import DataError

NEEDED, OPTIONAL = ("x", "y"), ("client", "x_test", "y_test", "client_test")
SAVE = 'save it with numpy.savez("FILE.npz", x=x, y=y)'
LARGEST_LABEL = 1000  # a label may be larger only where there are more examples than this


def arrays(data: Any) -> Dataset:
    """A classification of the arrays in data.path.

    float64 stays float64, other numbers become float32; uint8 arrays (n, height, width) or (n, channels,
    height, width) with 1 or 3 channels are taken for images. Client numbers may have gaps; in order they are
    renumbered 0..k-1.

    Raises:
        DataError: anything about the file is not as above; the message names it.
    """
    if data.path is None:
        raise DataError("data.path=null", "data=arrays reads a file of yours", "set data.path to it")
    path = Path(data.path).expanduser()
    where = f"data.path={data.path}"
    if not path.is_file():
        raise DataError(where, "there is no such file", "set data.path to an .npz or .parquet file")
    found = _parquet(path, where) if path.suffix == ".parquet" else _npz(path, where)
    _check_names(found, where)
    x, y, client = _split(found, "", where)
    test = "x_test" in found
    test_x, test_y, test_client = _split(found, "_test", where) if test else (x[:0], y[:0], None)
    if x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            where, f"x has examples of shape {x.shape[1:]}, x_test of {test_x.shape[1:]}", "make them alike"
        )
    owners, owner = (None, None) if client is None else np.unique(client, return_inverse=True)
    images = x.dtype == np.uint8 and x.ndim in (3, 4)
    stored, test_stored = (_tensor(part, images, where) for part in (x, test_x))
    if stored.dtype != test_stored.dtype:
        test_stored = test_stored.to(stored.dtype)
    mean, std = channel_statistics(stored) if images else (None, None)
    return Dataset(
        data.name,
        "classification",
        stored,
        torch.from_numpy(y),
        test_stored,
        torch.from_numpy(test_y),
        int(max(y.max(), test_y.max(initial=0))) + 1,
        mean,
        std,
        client=owner,
        test_client=None if owners is None else _owners_of_test(owners, test_client, len(test_y), where),
    )


def _npz(path: Path, where: str) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(where, "expected an .npz with arrays x and y, found one array", SAVE)
        with file:
            return {name: _unpickled(file, name, where) for name in file.files}
    except DataError:
        raise
    except Exception as error:  # of what is in a damaged file nobody can say how it fails
        reason = str(error) or type(error).__name__
        raise DataError(where, f"expected an .npz with arrays x and y ({reason})", SAVE) from error


def _unpickled(file: Any, name: str, where: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            where, f"{name} is an array of Python objects, which is never read", f"save {name} as numbers"
        ) from error


def _parquet(path: Path, where: str) -> dict[str, np.ndarray]:
    from fedscale_local.data.tables import read_table  # whose library an .npz does not wait for

    table = read_table(path, list(NEEDED), others=True)
    unknown = sorted(set(table.column_names) - {*NEEDED, "client", "test"})
    if unknown:
        raise DataError(where, f"unknown columns {unknown}", "keep x, y, client and test")
    if len(table) == 0:
        raise DataError(where, "the table has no rows", "give at least one example")
    columns = {}
    for name in table.column_names:
        column = table[name]
        if column.null_count:
            raise DataError(where, f"column {name} has {column.null_count} nulls", "remove them")
        try:  # equal lists stack into (n, length); others are refused
            values = column.to_numpy()
            columns[name] = np.stack(list(values)) if values.dtype == object else values
        except ValueError as error:
            raise DataError(
                where, f"the lists in column {name} have different lengths", "make them alike"
            ) from error
    test = columns.pop("test", np.zeros(len(table), bool))
    if test.dtype != bool:
        raise DataError(where, f"column test holds {test.dtype}", "make it boolean")
    split = {name: values[~test] for name, values in columns.items()}
    return split | ({f"{name}_test": values[test] for name, values in columns.items()} if test.any() else {})


def _check_names(found: dict[str, np.ndarray], where: str) -> None:
    names = sorted(found)
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise DataError(where, f"expected arrays x and y, found {names}", SAVE)
    unknown = [name for name in names if name not in NEEDED + OPTIONAL]
    if unknown:
        raise DataError(where, f"unknown arrays {unknown}", f"keep {', '.join(NEEDED + OPTIONAL)} only")
    if ("x_test" in found) != ("y_test" in found):
        raise DataError(where, "x_test and y_test belong together, one is missing", "give both or neither")


def _split(
    found: dict[str, np.ndarray], end: str, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x, y (int64) and client (int64 or None) of the training ("") or the test ("_test") rows, checked."""
    x, y = found[f"x{end}"], found[f"y{end}"]
    client = found.get(f"client{end}")
    if x.dtype.kind not in "fiub":
        raise DataError(where, f"x{end} holds {x.dtype}, not real numbers", f"save x{end} as float32")
    if x.ndim < 2:
        raise DataError(where, f"x{end} has shape {x.shape}", f"give x{end} the shape (examples, features)")
    if x.size == 0:
        raise DataError(where, f"x{end} has shape {x.shape} and is empty", "give at least one example")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))[0])
        raise DataError(where, f"x{end} has NaN or infinite values, first in row {bad}", "remove that")
    labels = _whole_numbers(y, f"y{end}", len(x), where)
    if labels.max() >= max(LARGEST_LABEL, len(x)):
        found_label = f"y{end} has the label {labels.max()} with {len(x)} examples"
        raise DataError(where, found_label, "number the classes 0, 1, 2, ...")
    return x, labels, None if client is None else _whole_numbers(client, f"client{end}", len(x), where)


def _whole_numbers(values: np.ndarray, name: str, length: int, where: str) -> np.ndarray:
    if values.shape != (length,):
        shapes = f"{name} has shape {values.shape}, its x has {length} rows"
        raise DataError(where, shapes, f"give {name} the shape ({length},)")
    if values.dtype.kind not in "iub":
        raise DataError(where, f"{name} holds {values.dtype}, not whole numbers", f"save {name} as int64")
    if values.min() < 0:
        raise DataError(where, f"{name} has the negative value {values.min()}", f"number {name} from 0")
    if values.max() > np.iinfo(np.int64).max:
        raise DataError(where, f"{name} has the value {values.max()}, beyond int64", f"number {name} from 0")
    return values.astype(np.int64)


def _tensor(x: np.ndarray, images: bool, where: str) -> torch.Tensor:
    if images:
        x = x[:, None] if x.ndim == 3 else x
        if x.shape[1] not in (1, 3):
            raise DataError(
                where,
                f"x is uint8 of shape {x.shape}; images are (n, 1 or 3 channels, height, width)",
                "transpose x, or save it as float32",
            )
        return torch.tensor(x)
    with np.errstate(over="ignore"):  # refused below
        stored = x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=not x.flags.writeable)
    if stored.dtype != x.dtype and not np.isfinite(stored).all():
        raise DataError(where, f"x has values beyond float32 ({x.dtype})", "save x as float64")
    return torch.from_numpy(stored)


def _owners_of_test(
    owners: np.ndarray, test_client: np.ndarray | None, num_test: int, where: str
) -> np.ndarray | None:
    if num_test == 0:
        return np.empty(0, np.int64)
    if test_client is None:
        return None
    strangers = np.setdiff1d(test_client, owners)
    if len(strangers):
        unknown = f"client_test names client {strangers[0]}, who has no training example"
        raise DataError(where, unknown, "remove those rows")
    return np.searchsorted(owners, test_client)
