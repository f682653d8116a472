"""Encoded vectors: real bytes in the ledger, the same run wherever it is stopped, and feedback that helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from test_codecs import num_bytes
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import codecs, lifecycle
from fedscale_local.cli import main
from fedscale_local.config_base import Section
from fedscale_local.config_sending import Sending

FEATURES, CLASSES = 30, 4
D = (FEATURES + 1) * CLASSES


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, FEATURES)) for n in (12, 9, 7, 9)]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "four.npz", x, [rng.integers(0, CLASSES, len(p)) for p in x]
    )


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    settings = {"data.path": str(arrays), "num_rounds": 4, "clients_per_round": 3, "client.local_steps": 2}
    return run(run_dir, *NATURAL, *overrides, settings=settings | more)


SENDINGS: dict[str, tuple[str, ...]] = {
    "compact": ("scaling=adam", "sending=compact"),
    "seldom": ("scaling=adam", "sending=compact", "scaling.refresh_every=3"),
    "sparse": ("strategy=fedavg", "sending.parameters.up=top_k", "sending.share=0.1"),
    "signs": ("strategy=scaffold", "sending.parameters.up=sign", "sending.control.up=qsgd"),
}


@pytest.mark.parametrize("name", SENDINGS)
def test_a_run_carried_on_ends_with_the_same_bytes(name: str, arrays: Path, tmp_path: Path) -> None:
    more = {"checkpoint_every": 1}
    whole = small(tmp_path / "whole", arrays, *SENDINGS[name], **more)
    assert not any(line["failures"] for line in whole.lines)
    part = small(tmp_path / "part", arrays, *SENDINGS[name], **more, num_rounds=2)
    shutil.copy(whole.run_dir / "config.yaml", part.run_dir / "config.yaml")
    lifecycle.resume(part.run_dir)
    assert Run(part.run_dir, [], {}).bytes == whole.bytes


def test_the_ledger_counts_the_bytes_that_travel(arrays: Path, tmp_path: Path) -> None:
    plain = small(tmp_path / "plain", arrays, "scaling=adam")
    compact = small(tmp_path / "compact", arrays, "scaling=adam", "sending=compact")
    for line in plain.lines[1:]:
        assert line["bytes_up_by"] == {"parameters": 12 * D, "statistic": 12 * D}
        assert line["bytes_down_by"] == {"parameters": 12 * D, "preconditioner": 12 * D}
    blocks = -(-D // 256)
    for line in compact.lines[
        1:
    ]:  # half a byte a number; one scale, or the two ends of a logarithm, for each block
        assert line["bytes_up_by"] == {"parameters": 12 * D, "statistic": 3 * (D // 2 + 4 * blocks)}
        assert line["bytes_down_by"] == {"parameters": 12 * D, "preconditioner": 3 * (D // 2 + 8 * blocks)}
        assert line["bytes_up"] == sum(line["bytes_up_by"].values())


EVERY = [
    (group, way, name)
    for group, field in Sending.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    for way, names in field.annotation.model_fields.items()
    for name in get_args(names.annotation)
    if name != "none"
]
"""Every codec that can be chosen, with its group and its way."""
USING = {
    "parameters": ("strategy=fedavg",),
    "statistic": ("scaling=adam",),
    "preconditioner": ("scaling=adam",),
    "preconditioner up": ("scaling=adam", "scaling.scope=local", "strategy.mixing=preconditioned"),
    "momentum": ("strategy=fedavg", "client.momentum=0.5", "client.momentum_buffer=averaged"),
    "control": ("strategy=scaffold",),
    "moments": ("strategy=local_adam_averaged",),
}
"""A method that sends vectors of this group."""
NUM_VECTORS, CLOCKS = {"moments": 2}, {"moments": 2}
"""Where it is not one, and where clocks go with them."""


def using(group: str, way: str) -> tuple[str, ...]:
    return USING.get(f"{group} {way}", USING[group])


def learnt(finished: Run) -> float:
    """How much the training loss fell."""
    assert not any(line["failures"] for line in finished.lines)
    return finished.lines[0]["train_loss"] - finished.lines[-1]["train_loss"]


@pytest.fixture(scope="module")
def plain_runs(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Run]:
    folder = tmp_path_factory.mktemp("plain")
    methods = sorted({using(group, way) for group, way, _ in EVERY})
    return {m: small(folder / str(i), arrays, *m, **ALL_CLIENTS) for i, m in enumerate(methods)}


ALL_CLIENTS = {"clients_per_round": None, "num_rounds": 6}


@pytest.mark.parametrize(("group", "way", "name"), EVERY)
def test_every_codec_of_every_group_takes_its_bytes_and_the_run_learns(
    group: str, way: str, name: str, arrays: Path, plain_runs: dict[tuple[str, ...], Run], tmp_path: Path
) -> None:
    """In each round the group has the bytes that the codec states, and half as much is learnt as without, or more."""
    method, share = using(group, way), 0.25
    chosen = (f"sending.{group}.{way}={name}", f"sending.share={share}")
    encoded = small(tmp_path / "run", arrays, *method, *chosen, **ALL_CLIENTS)
    plain = plain_runs[method]
    size = num_bytes(name, D, 4, 256, share, 15) * NUM_VECTORS.get(group, 1) + 4 * CLOCKS.get(group, 0)
    for line, before in zip(encoded.lines[1:], plain.lines[1:], strict=True):
        ways = {key: before[f"bytes_{key}_by"] for key in ("up", "down")}
        ways[way] = ways[way] | {group: 4 * size}
        assert {key: line[f"bytes_{key}_by"] for key in ways} == ways
    assert encoded.bytes[1] != plain.bytes[1]
    assert learnt(encoded) > 0.5 * learnt(plain) > 0


def test_four_bits_and_a_third_of_the_refreshes_cut_the_bytes_of_d_by_20(
    arrays: Path, tmp_path: Path
) -> None:
    """All clients in each round, the probe included: of 25 vectors in 12 rounds 5 are left in int4, 4 in log_int4."""

    def of_d(name: str, *overrides: str) -> int:
        more = {"num_rounds": 12, "clients_per_round": None, "model.name": "mlp", "model.hidden": [64]}
        lines = small(tmp_path / name, arrays, "scaling=adam", *overrides, **more).lines
        up = sum(line["bytes_up_by"].get("statistic", 0) for line in lines)
        return up + sum(line["bytes_down_by"].get("preconditioner", 0) for line in lines)

    plain, compact = of_d("plain"), of_d("compact", "sending=compact", "scaling.refresh_every=3")
    d = (FEATURES + 1) * 64 + (64 + 1) * CLASSES
    assert plain == 4 * 25 * 4 * d
    assert compact == 4 * (
        5 * num_bytes("int4", d, 4, 256, 1, 1) + 4 * num_bytes("log_int4", d, 4, 256, 1, 1)
    )
    assert plain >= 20 * compact


def test_eight_bits_change_little_and_the_codec_that_changes_nothing_nothing(
    arrays: Path, tmp_path: Path
) -> None:
    plain = small(tmp_path / "plain", arrays, "strategy=fedavg")
    eight = small(tmp_path / "eight", arrays, "strategy=fedavg", "sending.parameters.up=int8")
    # Four rounds, each wrong by half a step of 1/127 of the largest displacement, which is less than the model moves.
    assert 0 < np.abs(eight.model - plain.model).max() < 4 * np.abs(plain.model).max() / 127
    assert (
        small(tmp_path / "none", arrays, "strategy=fedavg", "sending.parameters.up=none").bytes == plain.bytes
    )


def test_what_the_largest_leave_out_is_sent_later(arrays: Path, tmp_path: Path) -> None:
    """With feedback no coordinate is forgotten: after enough rounds every one of them has moved."""
    sparse = small(tmp_path / "sparse", arrays, *SENDINGS["sparse"], num_rounds=40, clients_per_round=None)
    plain = small(tmp_path / "plain", arrays, "strategy=fedavg", num_rounds=40, clients_per_round=None)
    assert (sparse.model != 0).mean() > 0.95
    assert np.linalg.norm(sparse.model - plain.model) < 0.3 * np.linalg.norm(plain.model)
    top = codecs.make("top_k", share=0.1)
    assert top.biased


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sending.preconditioner.down=int4", "sending.preconditioner.down"),
        ("sending.parameters.down=top_k", "sending.parameters.down"),
        ("sending.parameters.up=zip", "sending.parameters.up"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(
    override: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", override, f"run_dir={tmp_path / 'run'}"]) == 2
    assert f"{named}=" in capsys.readouterr().err and not (tmp_path / "run").exists()
