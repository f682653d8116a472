"""Flower's commands as child processes: where they start, what they inherit, what they answer.

They run from a directory of their own that holds no package, so that apps are the ones this process would import;
Flower unpacks what it finds beside pyproject.toml and searches that first.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fedscale_local.errors import FedscaleError
from fedscale_local.processes import KEEPS_MEMORY, ONE_THREAD, inherited_path

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""Nothing is installed, reported or looked up; who waits for work looks five times a second."""

HERE = "here"
ANSWER_SECONDS = 120.0
"""What a command of Flower may take that only asks; a SuperLink that is frozen never answers."""
Command = list[str | Path]


def environment(folder: Path) -> dict[str, str]:
    """What a child process inherits: the same packages, the same commands, Flower's state in `folder`."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        **os.environ,
        **QUIET,
        **ONE_THREAD,
        **KEEPS_MEMORY,
        "PATH": commands,
        "PYTHONPATH": inherited_path(),
        "FLWR_HOME": str(folder),
    }


def write_connection(folder: Path, address: str, root_certificates: Path | None, insecure: bool) -> None:
    """Make this SuperLink the one called "here" in Flower's own configuration.

    Without root certificates those of the system are trusted; insecure means no TLS at all.
    """
    trust = "insecure = true\n" if insecure else ""
    if root_certificates is not None:
        trust = f"root-certificates = {json.dumps(str(root_certificates))}\n"
    text = f'[superlink]\ndefault = "{HERE}"\n\n[superlink.{HERE}]\naddress = "{address}"\n{trust}'
    (folder / "config.toml").write_text(text, encoding="utf-8")


def start(
    command: Sequence[str | Path], folder: Path, log: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A child process that works in `folder`, writes to `log`, and gets no signal from the terminal."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def reading(
    command: Sequence[str | Path], folder: Path, log: Path, env: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A child process and its lines as it prints them; its stderr goes to `log`. It ends with the body."""
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def flwr(arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """What `flwr ... --format json` answers. Its exit status says nothing; its "success" does.

    Raises FedscaleError with Flower's reason, and where there is no answer in time.
    """
    command = ["flwr", *map(str, arguments), "--format", "json"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=dict(env),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FedscaleError(f"flwr {arguments[0]} failed: no answer in {ANSWER_SECONDS:.0f} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"error-message": (done.stderr or done.stdout).strip()}
    if not answer.get("success"):
        reason = answer.get("error-message") or answer
        raise FedscaleError(f"flwr {arguments[0]} failed: {reason}")
    return answer


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 60.0) -> None:
    """Return when somebody listens on the port; FedscaleError if the process ends before, or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise FedscaleError(f"what should listen on port {port} did not start: {last_lines(log)}")


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, on one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return " | ".join(line.strip() for line in lines[-count:]) or "it said nothing"
