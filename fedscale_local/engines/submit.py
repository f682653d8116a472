"""One run submitted to a SuperLink by `flwr run`, followed, and stopped if it must not go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import fedscale_local
from fedscale_local.config import Config, to_json
from fedscale_local.engines.flower_command import HERE, flwr, last_lines, start
from fedscale_local.errors import FedscaleError
from fedscale_local.experiment import CLIENT_APP, SERVER_APP

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
        reason = row.get("status-details") or last_lines(log)
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
