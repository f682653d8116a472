"""Progress is read from the run directory, says each round at most once, and never ends or delays a run."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import run_dirs
from rich.console import Console

from fedscale_local.progress import follow


class Stream(io.StringIO):
    """Collects what is written; `until` waits for it."""

    def until(self, seen: Callable[[str], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not seen(self.getvalue()):
            assert time.monotonic() < deadline, self.getvalue()
            time.sleep(0.005)


def append(run_dir: Path, record: dict[str, object]) -> None:
    with (run_dir / "rounds.jsonl").open("a") as file:
        file.write(run_dirs.line(record))


def shown_rounds(text: str) -> list[int]:
    assert all(re.match(r"round +\d+/\d+  ", line) for line in text.splitlines()), text
    return [int(number) for number in re.findall(r"^round +(\d+)/", text, re.M)]


def readable(text: str) -> str:
    """The text without the control sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def plain(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=False)


def test_each_round_is_one_line_with_its_numbers(tmp_path: Path) -> None:
    records, stream = run_dirs.rounds(3), Stream()
    with follow(tmp_path, 3, console=plain(stream), line_seconds=0):
        for number, record in enumerate(records, start=1):
            append(tmp_path, record)
            stream.until(lambda text, number=number: f"round {number}/3" in text)  # type: ignore[misc]
    lines = stream.getvalue().splitlines()
    assert shown_rounds(stream.getvalue()) == [1, 2, 3]
    for number, (text, record) in enumerate(zip(lines, records, strict=True), start=1):
        megabytes = number * 20 * 4 * 28938 * 3 / 1e6
        expected = (
            f"round {number}/3  train loss {record['train_loss']:.4f}  test loss {record['test_loss']:.4f}  "
            f"accuracy {record['test_accuracy']:.2%}  {megabytes:.3g} MB  "
        )
        assert text.startswith(expected) and re.fullmatch(r"\d+\.\d s", text.removeprefix(expected))


def test_many_quick_rounds_are_few_lines_and_the_last_is_among_them(tmp_path: Path) -> None:
    stream, began = Stream(), time.monotonic()
    with follow(tmp_path, 300, console=plain(stream), line_seconds=0.5):
        for record in run_dirs.rounds(300):
            append(tmp_path, record)
            time.sleep(0.003)
    shown = shown_rounds(stream.getvalue())
    assert shown[-1] == 300 and shown == sorted(set(shown))
    assert len(shown) <= 2 + (time.monotonic() - began) / 0.5


def test_numbers_of_an_earlier_round_carry_its_number(tmp_path: Path) -> None:
    stream, records = Stream(), run_dirs.rounds(5, eval_every=3)
    with follow(tmp_path, 8, console=plain(stream)):
        for record in records[:4]:
            append(tmp_path, record)
    assert f"accuracy {records[2]['test_accuracy']:.2%} (round 3)" in stream.getvalue()


def test_rounds_without_any_number_still_count(tmp_path: Path) -> None:
    stream = Stream()
    with follow(tmp_path, 2, console=plain(stream)):
        append(tmp_path, {"round": 1, "train_loss": None, "bytes_up": None, "test_accuracy": None})
    assert re.fullmatch(r"round 1/2  0 B  \d+\.\d s\n", stream.getvalue())


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    stream = Stream()
    whole = run_dirs.line(run_dirs.rounds(1)[0])
    with follow(tmp_path, 1, console=plain(stream), line_seconds=0):
        with (tmp_path / "rounds.jsonl").open("a") as file:
            file.write(whole[:30])
            file.flush()
            time.sleep(0.3)
            assert stream.getvalue() == ""
            file.write(whole[30:])
        stream.until(lambda text: "round 1/1" in text)
    assert shown_rounds(stream.getvalue()) == [1]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_directory_that_never_comes_is_no_trouble(tmp_path: Path, terminal: bool) -> None:
    stream = Stream()
    with follow(tmp_path / "never", 5, console=Console(file=stream, force_terminal=terminal)):
        time.sleep(0.25)
    assert terminal or stream.getvalue() == ""
    assert not (tmp_path / "never").exists()


def test_a_directory_that_comes_later_is_followed(tmp_path: Path) -> None:
    stream = Stream()
    with follow(tmp_path / "later", 2, console=plain(stream)):
        (tmp_path / "later").mkdir()
        append(tmp_path / "later", run_dirs.rounds(1)[0])
    assert shown_rounds(stream.getvalue()) == [1]


@pytest.mark.parametrize("terminal", [False, True])
def test_no_thread_is_left_however_the_run_ends(tmp_path: Path, terminal: bool) -> None:
    before, stream = set(threading.enumerate()), Stream()
    with (
        pytest.raises(KeyboardInterrupt),
        follow(tmp_path, 9, console=Console(file=stream, force_terminal=terminal, width=120)),
    ):
        append(tmp_path, run_dirs.rounds(1)[0])
        raise KeyboardInterrupt
    assert set(threading.enumerate()) == before
    assert "1/9" in readable(stream.getvalue())  # what was reached is shown all the same


def test_a_resumed_run_is_followed_back_to_its_checkpoint(tmp_path: Path) -> None:
    records, stream = run_dirs.rounds(6), Stream()
    for record in records[:4]:
        append(tmp_path, record)
    with follow(tmp_path, 6, console=plain(stream), line_seconds=0):
        # A resumed run drops the rounds after its checkpoint, then repeats them.
        (tmp_path / "rounds.jsonl").write_text("".join(map(run_dirs.line, records[:2])))
        stream.until(lambda text: "round 2/6" in text)
        append(tmp_path, records[2])
        stream.until(lambda text: "round 3/6" in text)
        for record in records[3:]:
            append(tmp_path, record)
    last = stream.getvalue().splitlines()[-1]
    assert (
        last.startswith("round 6/6") and f"{6 * 20 * 4 * 28938 * 3 / 1e6:.3g} MB" in last
    )  # each counted once


class Broken(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("terminal", [False, True])
def test_a_broken_pipe_does_not_end_a_run(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", Broken(terminal))
    monkeypatch.setenv("TERM", "xterm")
    with follow(tmp_path, 2, line_seconds=0):
        append(tmp_path, run_dirs.rounds(1)[0])
        time.sleep(0.5)
        print("still running", flush=True)
    assert capfd.readouterr().out == "still running\n"


def test_a_terminal_gets_a_bar_with_pace_and_remaining_time(tmp_path: Path) -> None:
    stream, records = Stream(), run_dirs.rounds(4)
    with follow(tmp_path, 4, console=Console(file=stream, force_terminal=True, width=160)):
        for record in records:
            append(tmp_path, record)
            time.sleep(0.15)
    text = readable(stream.getvalue())
    assert re.search(r"round +4/4", text) and f"accuracy {records[-1]['test_accuracy']:.2%}" in text
    assert re.search(r"[\d.]+ rounds/s", text) and re.search(r"\d:\d\d", text)


def test_lines_go_to_stderr_and_results_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with follow(tmp_path, 1):
        append(tmp_path, run_dirs.rounds(1)[0])
        print("a result")
    captured = capsys.readouterr()
    assert captured.out == "a result\n" and shown_rounds(captured.err) == [1]
