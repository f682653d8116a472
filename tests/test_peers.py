"""What the benchmark gives to other frameworks is the work that fedscale-local does itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedscale_local.models import convolutional, dense, resnet

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
from benchmarks import where
from benchmarks.peers import __main__ as peers
from benchmarks.peers import torch_models
from benchmarks.peers.work import Work, save

ONE_STEP = Work("logistic", "fashion_mnist_12k", 4, 4, 1, 30, 0.1, 2)
"""Everyone takes part in one step on the whole shard: nothing is left to chance."""


@pytest.mark.parametrize(("model", "shape"), [
    ("logistic", (1, 28, 28)), ("mlp", (1, 28, 28)), ("cnn", (1, 28, 28)), ("resnet8", (3, 32, 32)),
])  # fmt: skip
def test_models_are_the_same_functions_of_the_same_parameters(model: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, *shape)
    module = getattr(convolutional if model == "cnn" else resnet if model == "resnet8" else dense, model)(
        shape, 10
    )
    initial = {name: torch.randn_like(value).numpy() for name, value in module.named_parameters()}
    module.load_state_dict({name: torch.from_numpy(value) for name, value in initial.items()})
    torch.testing.assert_close(torch_models.started(model, initial)(x), module(x))


def test_the_plain_loop_and_fedscale_local_end_at_the_same_loss(tmp_path: Path) -> None:
    save(ONE_STEP, tmp_path, *peers.arrays(ONE_STEP))
    losses = [peers.measured(peer, tmp_path, tmp_path)["test_loss"] for peer in ("fedscale-local", "naive")]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_operations_of_a_round_are_counted() -> None:
    x = {"x": np.zeros((32, 1, 28, 28), np.float32)}
    weights, last = 784 * 128 + 128 * 10, 128 * 10
    expected = 100 * 10 * 32 * (4 * weights + 2 * last) / 1e9
    assert peers.gflop(Work("mlp", "", 200, 100, 10, 32, 0.1, 1), x) == pytest.approx(expected)


def test_a_profile_leaves_no_time_out(tmp_path: Path) -> None:
    work = replace(ONE_STEP, num_rounds=4)
    save(work, tmp_path, *peers.arrays(work))
    stats = where.profile(tmp_path, work, "")
    parts, most = where.seconds(stats, 2)
    assert sum(parts.values()) == pytest.approx(stats.total_tt / 2)  # type: ignore[attr-defined]
    assert {"local steps", "messages", "aggregation"} <= set(parts)
    assert max(most.values()) <= max(parts.values())
