"""Flower's commands as child processes: where they start, what they inherit, how they end.

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fedscale_local
from fedscale_local.config import Config, to_json
from fedscale_local.errors import FedscaleError
from fedscale_local.experiment import CLIENT_APP, SERVER_APP

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nothing is installed, reported or looked up."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""More threads would change the order of sums."""

HERE = "here"

_APP = """\
[project]
name = "fedscale-local"
version = "{version}"
description = "The apps of the installed fedscale-local; this bundle holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedscale-local"

[tool.flwr.app.components]
serverapp = "{server_app}"
clientapp = "{client_app}"

[tool.flwr.app.config]
config = ""
"""


def environment(folder: Path) -> dict[str, str]:
    """What a child process inherits: the same packages, the same commands, Flower's state in `folder`."""
    prefixes = tuple(str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix))
    own = [str(Path(entry).resolve()) for entry in sys.path]
    own = [entry for entry in dict.fromkeys(own) if not entry.startswith(prefixes) and Path(entry).exists()]
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        **os.environ,
        **QUIET,
        **ONE_THREAD,
        "PATH": commands,
        "PYTHONPATH": os.pathsep.join(own),
        "FLWR_HOME": str(folder),
    }


def write_connection(folder: Path, address: str, root_certificates: Path | None) -> None:
    """Make this SuperLink the one called "here" in Flower's own configuration; None as certificates means no TLS."""
    trust = (
        "insecure = true"
        if root_certificates is None
        else f"root-certificates = {_quoted(root_certificates)}"
    )
    text = f'[superlink]\ndefault = "{HERE}"\n\n[superlink.{HERE}]\naddress = "{address}"\n{trust}\n'
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


def run_app(config: Config, folder: Path, env: Mapping[str, str], options: Sequence[str] = ()) -> None:
    """Submit our apps with this configuration to the SuperLink "here", and return when the run has ended.

    Raises FedscaleError with Flower's reason if it did not end well. Whatever ends this function early stops the run.
    """
    app = _write_app(folder)
    config_file = folder / "run-config.toml"  # a JSON string is a TOML string
    config_file.write_text(f"config = {json.dumps(to_json(_portable(config)))}\n", encoding="utf-8")
    submitted = flwr(["run", app, HERE, "--run-config", config_file, *options], folder, env)
    run_id, log = submitted["run-id"], folder / "run.log"
    try:
        # Following the log ends when the run ends, and costs less than asking again and again.
        start(["flwr", "log", run_id, HERE, "--stream"], folder, log, env).wait()
        (row,) = flwr(["list", HERE, "--run-id", run_id], folder, env)["runs"]
    except BaseException:
        with suppress(FedscaleError):
            flwr(["stop", run_id, HERE], folder, env)
        raise
    if row["status"] != "finished:completed":
        reason = row.get("status-details") or row.get("details") or last_lines(log)
        raise FedscaleError(f"the run is {row['status']}: {reason}")


def _portable(config: Config) -> Config:
    """Paths as another process sees them, whatever its working directory."""
    data = config.data
    if data.path is not None:
        data = data.model_copy(update={"path": str(Path(data.path).resolve())})
    return config.model_copy(update={"run_dir": str(Path(str(config.run_dir)).resolve()), "data": data})


def _write_app(folder: Path) -> Path:
    """What `flwr run` submits: the names of the apps, which the other side imports, and one declared key."""
    app = folder / "app"
    app.mkdir()
    server, client = (":".join(name.rsplit(".", 1)) for name in (SERVER_APP, CLIENT_APP))
    text = _APP.format(version=fedscale_local.__version__, server_app=server, client_app=client)
    (app / "pyproject.toml").write_text(text, encoding="utf-8")
    return app


def flwr(arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """What `flwr ... --format json` answers. Its exit status says nothing; its "success" does.

    Raises FedscaleError with Flower's reason.
    """
    command = ["flwr", *map(str, arguments), "--format", "json"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=dict(env),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
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


def _quoted(path: Path) -> str:
    return json.dumps(str(path))
