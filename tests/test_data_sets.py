"""Each real data set: counts, ranges and owners as its source states them. The small facts are the claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedscale_local.data import NAMES, load
from fedscale_local.data.dataset import Dataset, inputs
from fedscale_local.data.images import DEBIAN_FASHION_MNIST
from fedscale_local.data.shakespeare import ALPHABET, PADDING, windows
from fedscale_local.errors import DataError


def config(name: str, path: Path | str | None = None, **options: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, path=None if path is None else str(path), download=False, **options)


def class_counts(labels: torch.Tensor) -> list[int]:
    return torch.bincount(labels).tolist()


def seen_by_model(dataset: Dataset) -> torch.Tensor:
    return inputs(dataset, dataset.x, torch.float32)


def test_names_are_read_without_torch_or_a_reader() -> None:
    code = (
        "import sys; from fedscale_local.data import NAMES; assert len(NAMES) == 10; "
        "assert not {'torch', 'pyarrow', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"data.name=mnits: no such data set; take one of .*mnist"):
        load(config("mnits"), 0)
    assert all("\n" not in line and len(line) < 100 for line in NAMES.values())


def test_embedded_fashion_mnist_is_balanced_and_standardised() -> None:
    dataset = load(config("fashion_mnist_12k"), 0)
    assert dataset.x.shape == (12000, 1, 28, 28) and dataset.x.dtype == torch.uint8
    assert class_counts(dataset.y) == [1200] * 10 and class_counts(dataset.test_y) == [200] * 10
    assert dataset.input_shape == (1, 28, 28) and dataset.num_examples == 12000
    seen = seen_by_model(dataset)
    assert abs(seen.mean()) < 1e-4 and abs(seen.std() - 1) < 1e-3
    # no test image is a training image
    train = {row.numpy().tobytes() for row in dataset.x}
    assert sum(row.numpy().tobytes() in train for row in dataset.test_x) == 0


def test_embedded_fashion_mnist_can_be_learnt() -> None:
    """Nearest class mean: a wrong pairing of images and labels would give 0.1."""
    dataset = load(config("fashion_mnist_12k"), 0)
    x, test_x = (part.flatten(1).float() for part in (dataset.x, dataset.test_x))
    means = torch.stack([x[dataset.y == c].mean(0) for c in range(10)])
    accuracy = (torch.cdist(test_x, means).argmin(1) == dataset.test_y).float().mean()
    assert 0.65 < accuracy < 0.72


@pytest.mark.skipif(not Path(DEBIAN_FASHION_MNIST).is_dir(), reason="needs the package dataset-fashion-mnist")
def test_whole_fashion_mnist_from_the_system() -> None:
    dataset = load(config("fashion_mnist"), 0)
    assert class_counts(dataset.y) == [6000] * 10 and class_counts(dataset.test_y) == [1000] * 10
    assert dataset.mean is not None and dataset.std is not None
    assert dataset.mean.item() == pytest.approx(0.2860, abs=5e-5)  # the numbers that everybody uses
    assert dataset.std.item() == pytest.approx(0.3530, abs=5e-5)


def test_cifar10(shared_data: Path) -> None:
    dataset = load(config("cifar10", shared_data / "cifar10"), 0)
    assert dataset.x.shape == (50000, 3, 32, 32) and dataset.test_x.shape == (10000, 3, 32, 32)
    assert class_counts(dataset.y) == [5000] * 10 and class_counts(dataset.test_y) == [1000] * 10
    assert dataset.mean is not None and dataset.std is not None
    assert dataset.mean.tolist() == pytest.approx([0.4913, 0.4821, 0.4465], abs=1e-4)
    assert dataset.std.tolist() == pytest.approx([0.2452, 0.2428, 0.2606], abs=1e-4)
    assert "lossy" in dataset.note
    seen = seen_by_model(dataset)
    assert seen.mean((0, 2, 3)).abs().max() < 1e-3 and (seen.std((0, 2, 3)) - 1).abs().max() < 1e-3
    again = load(config("cifar10", shared_data / "cifar10"), 1)
    assert again.x.data_ptr() == dataset.x.data_ptr(), "decoded once in a process"


def test_cifar10_image_is_channel_first_and_upright(shared_data: Path) -> None:
    import io

    from PIL import Image

    table = pq.read_table(shared_data / "cifar10/test.parquet")
    row = table.slice(7, 1).to_pylist()[0]
    dataset = load(config("cifar10", shared_data / "cifar10"), 0)
    image = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])))
    assert np.array_equal(dataset.test_x[7].permute(1, 2, 0).numpy(), image)
    assert dataset.test_y[7] == row["label"]


def test_shakespeare(shared_data: Path) -> None:
    dataset = load(config("shakespeare", shared_data / "shakespeare", window=80), 0)
    assert dataset.num_classes == PADDING + 1 == 75
    assert dataset.client is not None and dataset.test_client is not None
    assert len(np.unique(dataset.client)) == len(np.unique(dataset.test_client)) == 1119
    assert dataset.labels is None and dataset.input_shape == (80,)
    # every character but the first of each role is a target exactly once
    assert int((dataset.y >= 0).sum()) == 3_517_048 - 1119
    assert int((dataset.test_y >= 0).sum()) == 789_636 - 1119
    assert not (dataset.y == PADDING).any()
    assert torch.equal(dataset.x == PADDING, dataset.y == -1)
    # the target is the next input
    following = dataset.x[:, 1:]
    assert torch.equal(following[following != PADDING], dataset.y[:, :-1][following != PADDING])


def test_shakespeare_windows_spell_the_text(shared_data: Path) -> None:
    table = pq.read_table(shared_data / "shakespeare/train.parquet").to_pydict()
    roles = sorted(table["role"])
    dataset = load(config("shakespeare", shared_data / "shakespeare", window=80), 0)
    assert dataset.client is not None
    texts = dict(zip(table["role"], table["text"], strict=True))
    for role in ("hamlet/HORATIO", min(texts, key=lambda role: len(texts[role]))):
        text = texts[role]
        rows = torch.from_numpy(np.flatnonzero(dataset.client == roles.index(role)))
        x, y = dataset.x[rows], dataset.y[rows]
        spelt = "".join(ALPHABET[token] for token in y[y >= 0])
        assert ALPHABET[x[0, 0]] + spelt == text
        assert len(rows) == max(1, -(-(len(text) - 1) // 80))


def test_windows_of_texts_at_the_edges() -> None:
    texts = [np.arange(n) for n in (0, 1, 2, 4, 5, 9)]
    x, y, owner = windows(texts, np.arange(6), 4)
    assert owner.tolist() == [2, 3, 4, 5, 5]
    assert x.tolist()[:3] == [[0, 74, 74, 74], [0, 1, 2, 74], [0, 1, 2, 3]]
    assert y.tolist()[:3] == [[1, -1, -1, -1], [1, 2, 3, -1], [1, 2, 3, 4]]
    assert x.tolist()[3:] == [[0, 1, 2, 3], [4, 5, 6, 7]] and y.tolist()[4] == [5, 6, 7, 8]


def test_shakespeare_refuses_characters_it_has_no_token_for(tmp_path: Path) -> None:
    for name in ("train", "test"):
        pq.write_table(pa.table({"role": ["a"], "text": ["Où es-tu? 你"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"characters \['ù', '你'\] are outside the alphabet of 74"):
        load(config("shakespeare", tmp_path), 0)


def test_hapt(shared_data: Path) -> None:
    dataset = load(config("hapt", shared_data / "hapt"), 0)
    assert dataset.x.shape == (8084, 6, 128) and dataset.test_x.shape == (2154, 6, 128)
    assert dataset.x.dtype == torch.float32 and dataset.num_classes == 6
    assert dataset.x.double().mean((0, 2)).abs().max() < 1e-6
    assert (dataset.x.double().std((0, 2)) - 1).abs().max() < 1e-5
    assert dataset.client is not None and dataset.test_client is not None
    sizes, test_sizes = np.bincount(dataset.client), np.bincount(dataset.test_client)
    assert len(sizes) == len(test_sizes) == 30
    assert (sizes.min(), sizes.max(), test_sizes.min(), test_sizes.max()) == (219, 323, 59, 84)
    # the layout is (channel, time): row 0, channel 2, sample 5 of the file's time-major signal
    table = pq.read_table(shared_data / "hapt/train.parquet")
    raw = np.stack(table["signal"].to_numpy()).reshape(-1, 128, 6)
    expected = (raw[0, 5, 2] - raw[:, :, 2].mean(dtype=float)) / raw[:, :, 2].std(dtype=float)
    assert dataset.x[0, 2, 5].item() == pytest.approx(expected, rel=1e-5)


def test_heart_disease(shared_data: Path) -> None:
    dataset = load(config("heart_disease", shared_data / "heart_disease"), 0)
    assert len(dataset.x) == 613 and len(dataset.test_x) == 307
    assert dataset.client is not None and dataset.test_client is not None
    total = np.bincount(dataset.client) + np.bincount(dataset.test_client)
    assert total.tolist() == [303, 294, 123, 200]  # cleveland, hungarian, switzerland, va
    labels = torch.cat([dataset.y, dataset.test_y])
    owner = torch.from_numpy(np.concatenate([dataset.client, dataset.test_client]))
    prevalence = [labels[owner == m].float().mean().item() for m in range(4)]
    assert prevalence == pytest.approx([0.46, 0.36, 0.93, 0.75], abs=0.006)
    assert torch.isfinite(dataset.x).all() and torch.isfinite(dataset.test_x).all()
    flags = dataset.x[:, 13:]
    assert set(flags.unique().tolist()) == {0.0, 1.0} and flags.any(0).all()
    # all of Switzerland's cholesterol is missing: imputed by the mean, which is 0, and flagged
    chol = 4
    swiss = dataset.client == 2
    assert (dataset.x[swiss, chol] == 0).all()
    assert (flags[swiss] == 1).all(0).any()
    # deviations are of the values that are there: imputed zeros only shrink a column's variance
    assert dataset.x[:, :13].std(0, unbiased=False).max() < 1 + 1e-5


def test_heart_disease_is_as_learnable_as_its_source_says(shared_data: Path) -> None:
    """Pooled logistic regression: 0.89, 0.83, 0.85, 0.79 at the four hospitals, without our flags."""
    dataset = load(config("heart_disease", shared_data / "heart_disease"), 0)
    x, test_x = dataset.x.double(), dataset.test_x.double()
    weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ weight[:-1] + weight[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, dataset.y.double())
        loss = loss + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    correct = ((test_x @ weight[:-1] + weight[-1] > 0) == dataset.test_y.bool()).float().numpy()
    accuracy = [correct[dataset.test_client == m].mean() for m in range(4)]
    assert accuracy == pytest.approx([0.89, 0.83, 0.85, 0.79], abs=0.06)
