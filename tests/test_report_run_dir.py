"""Reading a run directory: as far as a run got, and one message where something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import run_dirs

from fedscale_local.errors import RunDirError
from fedscale_local.run_dir import read


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_dirs.usual(tmp_path / "run", 5, clients=10)


def test_what_was_written_is_read(run: Path) -> None:
    found = read(run)
    assert found.path == run and found.config == run_dirs.config(num_rounds=5, num_clients=10)
    assert found.manifest == run_dirs.manifest() and found.rounds == run_dirs.rounds(5)
    assert (
        found.timing == run_dirs.timing(5) and found.partition == run_dirs.partition(10) and found.notes == ()
    )


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_is_left_out_and_mentioned(run: Path, keep: int) -> None:
    whole = (run / "rounds.jsonl").read_bytes()
    last = whole.splitlines()[-1]
    (run / "rounds.jsonl").write_bytes(whole[: -len(last) - 1] + last[:keep])
    found = read(run)
    assert [record["round"] for record in found.rounds] == [1, 2, 3, 4]
    assert len(found.notes) == 1 and "rounds.jsonl is incomplete" in found.notes[0]


def test_a_character_torn_in_two_is_a_torn_line(run: Path) -> None:
    with (run / "rounds.jsonl").open("ab") as file:
        file.write('{"round": 6, "failures": [{"client": 1, "reason": "ä'.encode()[:-1])
    assert len(read(run).rounds) == 5


def test_a_run_that_has_just_begun_has_no_rounds(run: Path) -> None:
    for name in ("rounds.jsonl", "timing.jsonl", "partition.json"):
        (run / name).unlink()
    found = read(run)
    assert (found.rounds, found.timing, found.partition, found.notes) == ([], [], None, ())


def test_numbers_that_are_not_finite_or_absent_are_no_value(run: Path) -> None:
    (run / "rounds.jsonl").write_text('{"round": 1, "train_loss": NaN, "test_loss": 1e999}\n')
    expected = dict.fromkeys(("train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down"))
    assert read(run).rounds == [{"round": 1, **expected}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", None, "this file of the run directory is missing; name a directory that a run wrote"),
        ("manifest.json", None, "this file of the run directory is missing"),
        ("config.yaml", "a: [", "cannot be parsed"),
        ("config.yaml", "- 1", "expected a mapping, found list"),
        ("config.yaml", "a: !!python/object/apply:os.getcwd []", "cannot be parsed"),
        ("manifest.json", "{", "cannot be parsed"),
        ("manifest.json", "3", "expected a mapping, found int"),
        ("rounds.jsonl", "{}\n", "rounds.jsonl:1: expected an integer under 'round', found None"),
        (
            "rounds.jsonl",
            '{"round": 1}\nx\n{"round": 2}\n',
            "rounds.jsonl:2: expected one JSON object a line",
        ),
        ("rounds.jsonl", "[1]\n", "expected one JSON object a line, found list"),
        ("rounds.jsonl", '{"round": true}\n', "expected an integer under 'round', found True"),
        ("rounds.jsonl", '{"round": 1, "test_loss": "0.3"}\n', "expected a number or null under 'test_loss'"),
        ("rounds.jsonl", '{"round": 1, "d_min": []}\n', "expected a number or null under 'd_min'"),
        ("rounds.jsonl", '{"round": 1, "clients": 3}\n', "expected a list under 'clients'"),
        ("rounds.jsonl", '{"round": 1, "failures": ["x"]}\n', "expected objects with 'client' and 'reason'"),
        ("rounds.jsonl", '{"round": 2}\n{"round": 2}\n', "round 2 follows round 2, rounds must go upwards"),
        ("timing.jsonl", '"x"\n', "timing.jsonl:1: expected one JSON object a line, found str"),
        ("partition.json", "{}", "expected 'counts'"),
        ("partition.json", '{"sizes": [1, -1]}', "expected whole numbers of examples, 0 or more"),
        ("partition.json", '{"sizes": ["1"]}', "expected whole numbers of examples"),
        ("partition.json", '{"counts": [[1, 2], [3]]}', "expected one number for each class"),
        ("clients.json", '{"train_loss": 3}', "expected a list of numbers and nulls under 'train_loss'"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    run: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(RunDirError) as caught:
        read(run)
    text = str(caught.value)
    assert message in text and str(run / name) in text and "\n" not in text and text.endswith(".")


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no such directory; name the directory that a run wrote"):
        read(tmp_path / "none")
