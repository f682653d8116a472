"""Every named strategy passes through here, by its one line in tests/gauntlet.py.

Own arrays with unequal shards, multinomial logistic regression, full batches, float64, three of six clients a round,
five rounds: no randomness but who takes part, which the twins are told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Message
from gauntlet import OPTIONS, STRATEGIES, VARIANTS, Line, To
from twin import Softmax
from twins import TWINS
from twins_base import FullBatch, Steps
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import checkpoint, compose, lifecycle
from fedscale_local.curvature import rademacher
from fedscale_local.engines.in_process import InProcessGrid
from fedscale_local.randomness import generator
from fedscale_local.tasks import Looped

SIZES, FEATURES, CLASSES = (4, 9, 1, 6, 5, 7), 3, 4
D = (FEATURES + 1) * CLASSES
STEPS, STEP_SIZE, CLIENTS, ROUNDS = 3, 0.05, 3, 5
LINES = STRATEGIES | OPTIONS
NAMES = sorted(LINES)
PASSES: dict[str, Any] = {"client.local_epochs": 1, "client.local_steps": None, "client.batch_size": 2}


@pytest.fixture(scope="module")
def problem() -> Softmax:
    return Softmax.drawn(SIZES, FEATURES, CLASSES)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "six.npz", problem.features, problem.targets)


@pytest.fixture(scope="module")
def done(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a line as it stands, looped, with a checkpoint after each round; several tests look at it."""
    runs: dict[str, Run] = {}

    def of(name: str) -> Run:
        if name not in runs:
            runs[name] = small(tmp_path_factory.mktemp("done") / "run", arrays, name)
        return runs[name]

    return of


def small(
    run_dir: Path,
    arrays: Path,
    name: str,
    more: Mapping[str, Any] = MappingProxyType({}),
    line: Line | None = None,
) -> Run:
    """A run of this line, with more keys."""
    settings = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": ROUNDS,
        "clients_per_round": CLIENTS,
        "client.batch_size": "full",
        "client.local_steps": STEPS,
        "client.step_size": STEP_SIZE,
        "engine.mode": "looped",
        "checkpoint_every": 1,
    }
    settings |= dict((line or LINES[name]).settings) | dict(more)
    finished = run(run_dir, *NATURAL, f"strategy={name.split()[0]}", settings=settings)
    assert not any(entry["failures"] for entry in finished.lines)
    return finished


def vector(finished: Run) -> np.ndarray:
    """Weight, then bias, as one vector (d,)."""
    named = finished.tensors
    return np.concatenate([named[name].ravel() for name in sorted(named, key=lambda n: -named[n].ndim)])


def twin_of(line: Line, finished: Run, problem: Softmax, steps: Steps) -> np.ndarray:
    """Where the line's twin is after the rounds of this run, whose participants and probes it is told."""
    told, wanted = dict(line.told), inspect.signature(line.twin).parameters
    if "probe" in wanted:
        order = torch.randperm(len(SIZES), generator=generator(0, "sampling", 0))
        told["probe"] = sorted(order[:CLIENTS].tolist())
    if "z" in wanted:
        told["z"] = lambda p, k: rademacher(generator(0, "probe", p), D, torch.float64).numpy()
    rounds = [entry["clients"] for entry in finished.lines]
    return line.twin(FullBatch(problem), np.zeros(D), rounds, steps, STEP_SIZE, **told)[-1]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0.01, "a run that goes nowhere compares nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_every_strategy_that_can_be_chosen_is_here() -> None:
    assert set(compose.groups()["strategy"].choices) - {"flower"} == set(STRATEGIES)
    assert {name.split()[0] for name in OPTIONS} <= set(STRATEGIES)


@pytest.mark.parametrize("name", NAMES)
def test_its_line_names_its_proofs(name: str) -> None:
    """The tests themselves run where they stand; agree() there asks for two rounds."""
    line = LINES[name]
    names = [line.twin.__name__, *(f'"{key}"' for key, twin in TWINS.items() if twin is line.twin)]
    assert line.by_hand is not None, (
        f"{name}: its line in tests/gauntlet.py has no by_hand: write a test that works out the first two "
        "rounds of its twin on two parameters, as tests/test_twins_by_hand.py does, and name it there"
    )
    assert line.reduces, (
        f"{name}: its line in tests/gauntlet.py has no reduces: name there what it reduces to, as "
        "To('fedavg', settings), or a test that compares it with a method of one machine"
    )
    for test in (line.by_hand, *(part for part in line.reduces if not isinstance(part, To))):
        source = inspect.getsource(test)
        assert test.__name__.startswith("test_") and any(word in source for word in names), (
            f"{name}: {test.__name__} does not look at its twin, {line.twin.__name__}"
        )
    assert "agree(" in inspect.getsource(line.by_hand), (
        f"{name}: {line.by_hand.__name__} compares nothing by agree()"
    )


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize(("name", "line"), [*LINES.items(), *VARIANTS])
def test_it_equals_its_slow_twin(
    name: str,
    line: Line,
    mode: str,
    problem: Softmax,
    arrays: Path,
    done: Callable[[str], Run],
    tmp_path: Path,
) -> None:
    is_done = mode == "looped" and line is LINES[name]
    finished = done(name) if is_done else small(tmp_path / "run", arrays, name, {"engine.mode": mode}, line)
    close(vector(finished), twin_of(line, finished, problem, STEPS))


@pytest.fixture(scope="module")
def alike(problem: Softmax) -> Softmax:
    """Each client's examples are copies of its first, so that every mini-batch has the gradient of all."""
    features = [np.repeat(x[:1], len(x), axis=0) for x in problem.features]
    return Softmax(features, [[y[0]] * len(y) for y in problem.targets], CLASSES)


@pytest.mark.parametrize(("name", "line"), [*LINES.items(), *VARIANTS])
def test_it_equals_its_twin_where_clients_step_unequally(
    name: str, line: Line, alike: Softmax, tmp_path: Path
) -> None:
    """One pass in mini-batches of two: one to five local steps."""
    file = save_arrays(tmp_path / "alike.npz", alike.features, alike.targets)
    finished = small(tmp_path / "run", file, name, PASSES, line)
    close(vector(finished), twin_of(line, finished, alike, [-(-size // 2) for size in SIZES]))


REDUCTIONS = [(name, to) for name in NAMES for to in LINES[name].reduces if isinstance(to, To)]


@pytest.mark.parametrize(
    ("name", "to"), REDUCTIONS, ids=lambda part: part.name if isinstance(part, To) else part
)
def test_it_reduces(name: str, to: To, arrays: Path, done: Callable[[str], Run], tmp_path: Path) -> None:
    found = small(tmp_path / "found", arrays, name, {**to.both, **to.settings})
    others = {**to.both, **to.others}
    expected = small(tmp_path / "expected", arrays, to.name, others) if others else done(to.name)
    close(vector(found), vector(expected))


@pytest.mark.parametrize("name", NAMES)
def test_stacked_equals_looped_where_clients_step_unequally(name: str, arrays: Path, tmp_path: Path) -> None:
    """Mini-batches of two, two passes: two to ten local steps; within a stack, clients end one after the other."""
    more = PASSES | {"client.local_epochs": 2, "model.name": "mlp", "model.hidden": [5]}
    looped = small(tmp_path / "looped", arrays, name, more)
    # Clients of a stack that fails are done again one by one: here that must not happen.
    with patch.object(Looped, "gradient", side_effect=AssertionError("not stacked")):
        stacked = small(tmp_path / "stacked", arrays, name, more | {"engine.mode": "stacked"})
    size = np.abs(looped.model).max()
    np.testing.assert_allclose(stacked.model, looped.model, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_replies_changes_nothing(
    name: str, arrays: Path, done: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(name)
    send = InProcessGrid.send_and_receive

    def reversed_replies(self: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        return list(send(self, list(messages)[::-1], **options))

    monkeypatch.setattr(InProcessGrid, "send_and_receive", reversed_replies)
    assert small(tmp_path / "2", arrays, name).bytes == first.bytes


def leaves(tree: Any) -> Iterator[Any]:
    """Whatever a checkpoint's tree holds."""
    if isinstance(tree, Mapping | list | tuple):
        yield from chain.from_iterable(map(leaves, tree.values() if isinstance(tree, Mapping) else tree))
    else:
        yield tree


@pytest.mark.parametrize("name", NAMES)
def test_the_type_of_numbers_is_kept(
    name: str, arrays: Path, done: Callable[[str], Run], tmp_path: Path
) -> None:
    """In the model, in all that server and clients hold from round to round, and in what is sent."""
    single, double = small(tmp_path / "32", arrays, name, {"dtype": "float32"}), done(name)
    np.testing.assert_allclose(vector(single), vector(double), rtol=0, atol=1e-3)
    for finished, dtype in ((single, torch.float32), (double, torch.float64)):
        assert {str(tensor.dtype) for tensor in finished.tensors.values()} == {
            str(dtype).removeprefix("torch.")
        }
        kept = checkpoint.newest(finished.run_dir).checkpoint
        assert kept is not None and kept.round == ROUNDS
        assert not any(isinstance(leaf, np.ndarray) for leaf in leaves(kept.state)), "of another type"
        tensors = [leaf for leaf in leaves(kept.state) if isinstance(leaf, torch.Tensor)]
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}
    for key in ("bytes_up", "bytes_down"):
        assert [2 * entry[key] for entry in single.lines] == [entry[key] for entry in double.lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_carried_on_from_any_round_ends_with_the_same_bytes(
    name: str, arrays: Path, done: Callable[[str], Run], tmp_path: Path
) -> None:
    """Stopped after each round and carried on from there, the last included, after which nothing is left to do."""
    whole, part = done(name), small(tmp_path / "part", arrays, name, {"num_rounds": 1})
    config = part.run_dir / "config.yaml"
    text = config.read_text()
    for stop in (*range(2, ROUNDS + 1), ROUNDS):
        config.write_text(text.replace("num_rounds: 1\n", f"num_rounds: {stop}\n"))
        lifecycle.resume(part.run_dir)
    assert [entry["round"] for entry in whole.lines] == list(range(1, ROUNDS + 1))
    for file in ("rounds.jsonl", "model.safetensors"):
        assert (part.run_dir / file).read_bytes() == (whole.run_dir / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_has_its_traffic(
    name: str, arrays: Path, done: Callable[[str], Run], tmp_path: Path
) -> None:
    """To the byte, in each round; or over two periods after the first round where vectors travel seldom and everybody
    takes part."""
    line = LINES[name]
    is_seldom = line.up % 1 > 0
    everybody = {"clients_per_round": None, "num_rounds": 13}
    finished = small(tmp_path / "run", arrays, name, everybody) if is_seldom else done(name)
    asked = 8 * len(finished.lines[0]["clients"])
    for way, vectors, probed in zip(("up", "down"), (line.up, line.down), line.probe, strict=True):
        probe = finished.lines[0].get(f"probe_bytes_{way}", 0)
        sent = [entry[f"bytes_{way}"] for entry in finished.lines]
        sent[0] -= probe
        assert probe == asked * probed * D
        expected = asked * (vectors * D + sum(line.beside.values()))
        if is_seldom:
            assert sum(sent[1:]) == 12 * expected
        else:
            assert sent == [expected] * ROUNDS
