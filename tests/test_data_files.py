"""Where files are looked for, what is said when they are not there, and the forms in which they may lie."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedscale_local.data import load
from fedscale_local.data.cifar10 import BATCHES, scan_python
from fedscale_local.data.images import IDX, read_idx
from fedscale_local.errors import DataError

SMALL = {name: np.arange(size, dtype=np.uint8).reshape(shape) % 10 for name, size, shape in zip(
    IDX, (40, 10, 20, 5), ((10, 2, 2), (10,), (5, 2, 2), (5,)), strict=True)}  # fmt: skip


def config(name: str, path: Path | str | None = None, download: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=name, path=None if path is None else str(path), download=download)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_small(folder: Path, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in SMALL.items():
        raw = idx_bytes(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["", "raw", "MNIST/raw"])
def test_idx_files_are_found_in_each_layout(tmp_path: Path, inside: str, zipped: bool) -> None:
    write_small(tmp_path / inside, zipped)
    dataset = load(config("mnist", tmp_path), 0)
    assert dataset.x.shape == (10, 1, 2, 2) and dataset.y.tolist() == list(range(10))
    assert torch.equal(dataset.x[:, 0], torch.from_numpy(SMALL[IDX[0]]))
    assert dataset.test_y.tolist() == [0, 1, 2, 3, 4]


def test_environment_variable_names_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path / "mnist", zipped=True)
    monkeypatch.setenv("FEDSCALE_DATA", str(tmp_path))
    assert load(config("mnist"), 0).num_examples == 10


def test_given_path_is_not_replaced_by_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path / "mnist", zipped=True)
    monkeypatch.setenv("FEDSCALE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load(config("mnist", tmp_path / "elsewhere"), 0)
    message = str(caught.value)
    assert f"looked at {tmp_path}/elsewhere;" in message and "data.download=true" in message


def test_not_found_names_places_and_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSCALE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load(config("hapt"), 0)
    message = str(caught.value)
    assert message.startswith("data.name=hapt: ") and f"{tmp_path}/hapt" in message
    assert "train.parquet" in message and "set data.path" in message
    assert "download" not in message, "nobody offers a download of it"
    monkeypatch.delenv("FEDSCALE_DATA")
    with pytest.raises(DataError, match="FEDSCALE_DATA is not set"):
        load(config("hapt"), 0)


def test_no_download_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []
    record = lambda name, folder: asked.append((name, folder))  # noqa: E731
    monkeypatch.setattr("fedscale_local.data.images._download", record)
    with pytest.raises(DataError):
        load(config("mnist", tmp_path), 0)
    assert asked == []
    with pytest.raises(DataError, match="not there"):  # asked for, but nothing came
        load(config("mnist", tmp_path, download=True), 0)
    assert asked == [("MNIST", tmp_path)]


def test_download_that_brings_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring = lambda name, folder: write_small(folder / name / "raw", zipped=True)  # noqa: E731
    monkeypatch.setattr("fedscale_local.data.images._download", bring)
    assert load(config("mnist", tmp_path, download=True), 0).num_examples == 10


def test_download_without_a_folder_or_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSCALE_DATA", raising=False)
    with pytest.raises(DataError, match=r"data.download=true: a download needs a folder to go to"):
        load(config("mnist", download=True), 0)

    def fail(name: str, folder: Path) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("fedscale_local.data.images._download", fail)
    with pytest.raises(DataError, match=r"failed \(OSError: Name or service not known\)"):
        load(config("mnist", tmp_path, download=True), 0)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0\x08", b"\0\0\x09\1\0\0\0\1a", idx_bytes(np.zeros((3, 2), np.uint8))[:-1], b"<html>"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_broken_idx_files_are_refused(tmp_path: Path, raw: bytes, zipped: bool) -> None:
    file = tmp_path / ("broken" + ".gz" * zipped)
    file.write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(DataError, match="expected an idx file"):
        read_idx(file)


def test_cut_off_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((30, 20), np.uint8)))[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "cut.gz")


def test_images_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    write_small(tmp_path, zipped=False)
    (tmp_path / IDX[1]).write_bytes(idx_bytes(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match="do not fit together"):
        load(config("mnist", tmp_path), 0)


def cifar_batch(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 256, (rows, 3072), dtype=np.uint8), rng.integers(0, 10, rows, dtype=np.uint8)


def python2_pickle(x: np.ndarray, y: np.ndarray) -> bytes:
    """The opcodes of a batch file as Python 2's cPickle wrote it, protocol 2."""
    key = lambda text: b"U" + bytes([len(text)]) + text  # noqa: E731
    labels = b"".join(b"K" + bytes([label]) for label in y)
    data = b"cnumpy.core.multiarray\n_reconstruct\nq\2cnumpy\nndarray\nq\3K\0\x85U\1b\x87Rq\4("
    data += b"K\1K" + bytes([len(x)]) + b"M\0\x0c\x86cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNN"
    data += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T" + struct.pack("<i", x.size) + x.tobytes() + b"tb"
    names = b"](" + b"".join(key(b"image_%d.png" % i) for i in range(len(y))) + b"e"
    return (
        b"\x80\2}q\1(" + key(b"batch_label") + key(b"training batch 1 of 5") + key(b"labels")
        + b"](" + labels + b"e" + key(b"data") + data + key(b"filenames") + names + b"u."
    )  # fmt: skip


@pytest.mark.parametrize("form", ["bin", "py"])
def test_cifar10_in_its_published_forms(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / f"cifar-10-batches-{form}"
    folder.mkdir()
    batches = [cifar_batch(rng, 7) for _ in BATCHES]
    for name, (x, y) in zip(BATCHES, batches, strict=True):
        rows = np.hstack([y[:, None], x])
        raw = rows.tobytes() if form == "bin" else python2_pickle(x, y)
        (folder / (name + ".bin" * (form == "bin"))).write_bytes(raw)
    dataset = load(config("cifar10", tmp_path), 0)
    assert dataset.x.shape == (35, 3, 32, 32) and dataset.test_x.shape == (7, 3, 32, 32)
    assert np.array_equal(dataset.x.reshape(35, -1).numpy(), np.concatenate([x for x, _ in batches[:5]]))
    assert dataset.y.tolist() == np.concatenate([y for _, y in batches[:5]]).tolist()
    assert dataset.test_y.tolist() == batches[5][1].tolist() and dataset.note == ""


def test_python2_pickle_of_the_test_is_a_real_one() -> None:
    """The hand-made stream means what the real files mean."""
    import pickle

    x, y = cifar_batch(np.random.default_rng(1), 3)
    batch = pickle.loads(python2_pickle(x, y), encoding="latin1")
    assert batch["labels"] == y.tolist() and np.array_equal(batch["data"], x)


def test_scanning_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "written"
    touch = b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V%s\ntRtR." % str(target).encode()
    (tmp_path / "data_batch_1").write_bytes(touch)
    with pytest.raises(DataError, match="take the binary version"):
        scan_python(tmp_path / "data_batch_1")
    assert not target.exists()


def test_parquet_that_is_none_or_lacks_columns(tmp_path: Path, shared_data: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="expected a parquet file"):
        load(config("hapt", tmp_path), 0)
    with pytest.raises(DataError, match=r"expected columns .*'signal'.*, found .*; give it the columns"):
        load(config("hapt", shared_data / "heart_disease"), 0)


def test_parquet_of_pictures_that_are_none(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("train", "test"):
        images = pa.array([{"bytes": b"not a picture", "path": "0.jpg"}])
        pq.write_table(pa.table({"img": images, "label": [0]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"train.parquet row 0: expected a 32x32 image"):
        load(config("cifar10", tmp_path), 0)
