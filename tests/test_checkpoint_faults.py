"""Every call that a run makes to put something on disk fails, or is its last: carried on, the run ends the same."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from whole_runs import configured, left_over

from fedscale_local import checkpoint, disk, lifecycle
from fedscale_local.checkpoint_writer import Writer
from fedscale_local.config import Config
from fedscale_local.errors import FedscaleError, StorageError

CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "mkdir")
TINY = (
    "data=quadratic",
    "data.dimension=3",
    "data.examples=4",
    "num_clients=3",
    "clients_per_round=2",
    "num_rounds=4",
    "client.local_steps=1",
    "scaling=adam",
    "engine.workers=1",
    "checkpoint_every=1",
)
PLACES = {"memory": (), "disk": ("scaling.scope=local", "engine.client_state=disk")}
"""Where what clients keep lies; on disk there is more to write, rename and remove."""


class Calls:
    """Stands for the module os inside fedscale_local.disk: at call number `at` it does `fault` instead."""

    def __init__(self, at: int = -1, fault: Callable[..., Any] | None = None) -> None:
        self.at, self.fault, self.made = at, fault, 0
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            with self.lock:
                number, self.made = self.made, self.made + 1
            if number == self.at and self.fault is not None:
                return self.fault(name, real, *arguments)
            return real(*arguments)

        return call


def fails(name: str, real: Callable[..., Any], *arguments: Any) -> Any:
    if name == "close":
        real(*arguments)
    raise OSError(errno.ENOSPC, "No space left on device")


def dies_before(name: str, real: Callable[..., Any], *arguments: Any) -> Any:
    if name == "write":  # in the middle of it
        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
    os._exit(9)


def dies_after(name: str, real: Callable[..., Any], *arguments: Any) -> Any:
    real(*arguments)
    os._exit(9)


@contextmanager
def one_after_the_other(calls: Calls) -> Iterator[None]:
    """With these calls, and with each checkpoint written before the next round, so that call n is always the same."""
    offer = Writer.offer

    def written(self: Any, *arguments: Any) -> None:
        offer(self, *arguments)
        self._raise_failures(wait=True)

    with (
        patch.object(disk, "os", calls),
        patch.object(Writer, "offer", written),
        patch("fedscale_local.checkpoint_writer.REST", 0),
        patch("fedscale_local.reports.write"),
    ):
        yield


def results(run_dir: Path) -> tuple[bytes, bytes]:
    return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()


def config_in(run_dir: Path, *overrides: str, **settings: Any) -> Config:
    return configured(*TINY, *overrides, settings={"run_dir": str(run_dir), **settings})


def in_a_child(work: Callable[[], object]) -> int:
    """How this work ended in a forked child: 0 done, 1 a FedscaleError, 9 ended by a fault, 2 anything else."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            work()
            status = 0
        except FedscaleError:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def every_call(place: str, faults: dict[Callable[..., Any], int], tmp_path: Path, step: int) -> int:
    """Each fault at every `step`-th call of a run; how many cases there were."""
    counting, whole = Calls(), tmp_path / "whole"
    short = {"num_rounds": 2, "checkpoint_keep": 1}
    with one_after_the_other(counting):
        lifecycle.run(config_in(whole, *PLACES[place], **short))
    cases, run_dir = 0, tmp_path / "run"
    for at in range(0, counting.made, step):
        for fault, status in faults.items():
            shutil.rmtree(run_dir, ignore_errors=True)

            def faulty(at: int = at, fault: Callable[..., Any] = fault) -> None:
                with one_after_the_other(Calls(at, fault)):
                    lifecycle.run(config_in(run_dir, *PLACES[place], **short))

            ended = in_a_child(faulty)
            if not (run_dir / "manifest.json").exists():  # nothing was begun: one begins anew
                assert not (run_dir / "rounds.jsonl").exists()
                continue
            assert ended == status, (at, fault.__name__)
            with one_after_the_other(Calls()):
                lifecycle.resume(run_dir)
            assert results(run_dir) == results(whole), (at, fault.__name__)
            assert not left_over(run_dir), (at, fault.__name__)
            cases += 1
    return cases


FAULTS = {fails: 1, dies_before: 9, dies_after: 9}


@pytest.mark.parametrize(("place", "step"), [("memory", 11), ("disk", 23)])
def test_a_fault_at_some_calls(place: str, step: int, tmp_path: Path) -> None:
    assert every_call(place, FAULTS, tmp_path, step) > 15


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_at_every_call(place: str, tmp_path: Path) -> None:
    assert every_call(place, FAULTS, tmp_path, step=1) > 150


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_message_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A real one: a file system in memory of 4 MiB, in a name space of its own."""
    inside = (
        'mount -t tmpfs -o size=4m none "$1" || exit 77; cd "$1"; shift; head -c 4000000 /dev/zero > ballast; "$@"; '
        'status=$?; rm ballast; "$PYTHON" -m fedscale_local.cli resume run > /dev/null || exit 78; '
        "cat run/rounds.jsonl; exit $status"
    )
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody unshare a name space of mounts")
    place = tmp_path / "small"
    place.mkdir()
    command = [sys.executable, "-m", "fedscale_local.cli", "run", *TINY, "num_rounds=300"]
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", inside, "-", str(place), *command, "run_dir=run"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )
    if done.returncode == 77:
        pytest.skip("this system lets nobody mount a file system in memory")
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("fedscale-local: ")]
    assert len(told) == 1 and "No space left on device" in told[0] and told[0].endswith("resume run")
    assert "Traceback" not in done.stderr
    with patch("fedscale_local.reports.write"):
        whole = lifecycle.run(config_in(tmp_path / "whole", num_rounds=300))
    assert done.stdout.encode() == (whole / "rounds.jsonl").read_bytes()


def test_files_that_may_grow_no_further_are_one_message(tmp_path: Path) -> None:
    """The limit on the size of a file fails in write, as permissions do in open, for root as for anybody."""
    import resource

    run_dir = tmp_path / "run"

    def limited() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
        try:
            lifecycle.run(config_in(run_dir, num_rounds=300))
        except StorageError as error:
            assert "File too large" in str(error) and "resume" in error.__notes__[0]
            raise

    assert in_a_child(limited) == 1
    with patch("fedscale_local.reports.write"):
        lifecycle.resume(run_dir)
        whole = lifecycle.run(config_in(tmp_path / "whole", num_rounds=300))
    assert results(run_dir) == results(whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: permissions mean nothing to it")
def test_permission_that_is_lost_is_one_message(tmp_path: Path) -> None:
    with patch("fedscale_local.reports.write"):
        run_dir = lifecycle.run(config_in(tmp_path / "run"))
        (run_dir / "checkpoints").chmod(0o500)
        with pytest.raises(StorageError, match="Permission denied"):
            lifecycle.resume(run_dir, config_in(run_dir, num_rounds=6))
        (run_dir / "checkpoints").chmod(0o700)
        lifecycle.resume(run_dir)


def test_a_write_that_failed_is_raised_at_the_next_checkpoint_or_the_end_and_never_lost(
    tmp_path: Path,
) -> None:
    write = checkpoint.write
    for failing in (2, 4):
        run_dir = tmp_path / str(failing)

        def faulty(run_dir: Path, kept: checkpoint.Checkpoint, keep: int, failing: int = failing) -> None:
            if kept.round == failing:
                raise StorageError(run_dir, "no luck")
            write(run_dir, kept, keep)

        with (
            patch.object(checkpoint, "write", faulty),
            patch("fedscale_local.reports.write"),
            pytest.raises(StorageError, match="no luck"),
            one_after_the_other(Calls()),
        ):
            lifecycle.run(config_in(run_dir))
        assert not (run_dir / "model.safetensors").exists()


def test_a_disk_that_is_slow_holds_up_no_round(tmp_path: Path) -> None:
    """The first write ends only when all rounds are done: the last checkpoint took the place of those between."""
    run_dir, write, written = tmp_path / "run", checkpoint.write, []
    all_done = threading.Event()

    def slow(run_dir: Path, kept: checkpoint.Checkpoint, keep: int) -> None:
        assert all_done.wait(60)
        written.append(kept.round)
        write(run_dir, kept, keep)

    append = disk.append

    def watched(path: Path, line: bytes) -> None:
        append(path, line)
        if path.name == "timing.jsonl" and line.startswith(b'{"round": 4'):
            all_done.set()

    with (
        patch.object(checkpoint, "write", slow),
        patch.object(disk, "append", watched),
        patch("fedscale_local.reports.write"),
    ):
        lifecycle.run(config_in(run_dir))
    assert written[0] in (1, 2, 3) and written[-1] == 4 and len(written) <= 2
    assert checkpoint.newest(run_dir).checkpoint is not None
