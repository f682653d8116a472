"""What docs/explanation-scaling-scopes.md claims, as inequalities over the small form of its command."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pages import REPO
from safetensors.numpy import load_file

from fedscale_local.data.quadratic import quadratics


def _loaded() -> ModuleType:
    """By its file: benchmarks are not installed, and the repository on the path would hide what is."""
    spec = spec_from_file_location("scaling_scopes", REPO / "benchmarks" / "scaling_scopes.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scopes = _loaded()
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scaling_scopes")]
LONG, SHORT = scopes.SMALL.lengths
Distances = dict[tuple[str, int, float], float]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scopes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scaling_scopes", "--small", "--out", str(folder)])
        scopes.main()
    return folder


@pytest.fixture(scope="module")
def trials(out: Path) -> list[Any]:
    return [scopes.Trial(**json.loads(line)) for line in (out / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def distance(trials: list[Any]) -> Distances:
    return {(t.method, t.local_steps, t.length): t.distance or 0.0 for t in trials}


def test_table_and_figure_are_written(out: Path) -> None:
    assert (out / "table.md").read_text().count("\n") == 2 + 2 * len(scopes.METHODS)
    assert (out / "figure.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("prefix", ["", "curvature: "])
def test_plain_mean_of_locally_scaled_clients_ends_elsewhere(prefix: str, distance: Distances) -> None:
    """Whatever the length, and others do not; halving the length takes away a small part of it at most."""
    for h in (1, 16):
        plain = [distance[f"{prefix}local, plain mean", h, length] for length in (LONG, SHORT)]
        assert min(plain) > 0.08 and plain[1] > 0.7 * plain[0]
    for name in (
        f"{prefix}global" if prefix else "global, gradient",
        f"{prefix}local, preconditioned mixing",
    ):
        assert max(distance[name, 1, length] for length in (LONG, SHORT)) < 2e-3


def test_where_d_is_the_curvature_the_plain_mean_ends_at_the_mean_of_the_minimisers(out: Path) -> None:
    _, c, minimiser = quadratics(0, 5, scopes.DIMENSION, 30.0, 1.0)
    for length in (LONG, SHORT):
        folder = scopes.run_dir(out, "curvature: local, plain mean", 0, 1, length)
        x = load_file(folder / "model.safetensors")["weight"].ravel()
        np.testing.assert_allclose(x, c.mean(0), atol=1e-3)
    assert np.abs(c.mean(0) - minimiser).max() > 0.1


def test_the_bias_of_many_local_steps_shrinks_with_the_length(distance: Distances) -> None:
    for name in ("Local SGD", "global, gradient", "global, displacement", "curvature: global"):
        assert distance[name, 16, SHORT] < 0.7 * distance[name, 16, LONG]


def test_preconditioned_mixing_beats_a_global_d_at_many_local_steps(distance: Distances) -> None:
    for length in (LONG, SHORT):
        mixed = distance["local, preconditioned mixing", 16, length]
        assert mixed < 0.5 * distance["global, gradient", 16, length]
        assert mixed < 0.2 * distance["local, plain mean", 16, length]


def test_the_displacement_does_as_well_as_the_gradient_for_half_the_bytes(
    trials: list[Any], distance: Distances
) -> None:
    for h in (1, 16):
        for length in (LONG, SHORT):
            gradient = distance["global, gradient", h, length]
            assert distance["global, displacement", h, length] < 1.5 * gradient
    traffic = {t.method: t.traffic for t in trials}
    assert traffic["global, displacement"] == traffic["Local SGD"] == traffic["local, plain mean"] == 2
    assert traffic["global, gradient"] == 4 and traffic["local, preconditioned mixing"] == 3
