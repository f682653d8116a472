"""One run submitted to a SuperLink by `flwr run`, followed, and stopped if it must not go on."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fedscale_local
from fedscale_local.config import Config, to_json
from fedscale_local.engines.flower_command import HERE, Command, flwr, last_lines, reading, start
from fedscale_local.errors import FedscaleError
from fedscale_local.experiment import CLIENT_APP, SERVER_APP
from fedscale_local.parcels import RECORDS, Inbox

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
{keys}
"""
LOG = "flower.log"
"""In the run directory: what a run that failed had logged at its SuperLink."""
START_SECONDS = 60.0
"""What a SuperLink that starts ServerApps itself may take to start one."""
WATCH_SECONDS = 120.0
"""Between two times that the SuperLink is asked whether it is there, while the log is followed."""
RETURN_SECONDS = 30.0
"""How long one that ended may take to come back, as where a service manager starts it again: the run may go on."""


class Remote(NamedTuple):
    """A run whose server's side is on another host: the records that it goes on from, and where the new ones go."""

    records: str
    inbox: Inbox


def run_app(
    config: Config,
    folder: Path,
    env: Mapping[str, str],
    options: Sequence[str] = (),
    remote: Remote | None = None,
) -> None:
    """Submit our apps with this configuration to the SuperLink "here", and return when the run has ended.

    remote: if the server's side does not write into the run directory itself.

    Raises FedscaleError with Flower's reason if it did not end well. Whatever ends this function early stops the run.
    """
    keys = {"config": to_json(_portable(config))} | ({RECORDS: remote.records} if remote else {})
    app = _write_app(folder, keys)
    config_file = folder / "run-config.toml"
    # A JSON string is a TOML string.
    config_file.write_text("".join(f"{key} = {json.dumps(text)}\n" for key, text in keys.items()), "utf-8")
    submitted = flwr(["run", app, HERE, "--run-config", config_file, *options], folder, env)
    run_id, log = submitted["run-id"], folder / "run.log"
    try:
        # Following the log ends with the run, and costs less than asking again and again; but a connection can break.
        follow: Command = ["flwr", "log", run_id, HERE, "--stream"]
        if remote is not None:
            _await_start(config, run_id, folder, env)
        row: dict[str, Any] = {"status": "running"}
        while not row["status"].startswith("finished"):
            if remote is None:
                follower = start(follow, folder, log, env)
                with _watched(follower, partial(_ask, run_id, folder, env)):
                    follower.wait()
            else:
                _receive(remote.inbox, follow, folder, log, env, partial(_ask, run_id, folder, env))
            row = _row(config, run_id, folder, env)
    except BaseException:
        with suppress(FedscaleError):
            flwr(["stop", run_id, HERE], folder, env)
        raise
    if row["status"] != "finished:completed":
        reason = row.get("status-details") or last_lines(log)
        kept = Path(str(config.run_dir)) / LOG
        kept.write_bytes(log.read_bytes() if log.exists() else b"")  # the reason seldom names a cause
        raise FedscaleError(f"the run is {row['status']}: {reason} (its log: {kept})")
    if remote is not None:
        ask = partial(_ask, run_id, folder, env)
        _receive(remote.inbox, follow, folder, log, env, ask)  # what a stream that broke did not bring
        if not remote.inbox.is_complete:
            raise _missing(remote.inbox)


@contextmanager
def _watched(follower: subprocess.Popen[Any], ask: Callable[[], object]) -> Iterator[None]:
    """End this process, which waits for a word of the SuperLink, if `ask` finds that there is none to be had."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_SECONDS):
            try:
                ask()
            except FedscaleError:
                follower.kill()
                return

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _receive(
    inbox: Inbox, follow: Command, folder: Path, log: Path, env: Mapping[str, str], ask: Callable[[], object]
) -> None:
    """Open the parcels in the run's log as they come, and write the rest of it to `log`.

    The SuperLink keeps the log. So if a parcel is missing it is read again from its beginning, as long as that helps:
    the stream leaves out what is added between its last look and the end of the run.
    """
    while not inbox.is_complete:
        before, inbox.is_behind = inbox.expected, False
        with (
            reading(follow, folder, log, env) as (follower, lines),
            _watched(follower, ask),
            log.open("w", encoding="utf-8") as rest,
        ):
            for line in lines:
                if not inbox.take(line) and line.strip():
                    rest.write(line)
                    rest.flush()
                if inbox.is_behind:
                    break
        if inbox.expected == before:
            if inbox.is_behind:
                raise _missing(inbox)
            return


def _missing(inbox: Inbox) -> FedscaleError:
    return FedscaleError(
        f"parcel {inbox.expected} of the records is not in the run's log, or is damaged there; "
        "what came before it is in the run directory"
    )


def _await_start(config: Config, run_id: str, folder: Path, env: Mapping[str, str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _row(config, run_id, folder, env)["status"] == "pending":
        if time.monotonic() > deadline:
            raise FedscaleError(
                f"superlink.serverapp=remote: the SuperLink did not start the server's side in {START_SECONDS:.0f} s; "
                "start it without --isolation process, or set superlink.serverapp=beside"
            )


def _row(config: Config, run_id: str, folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """What the SuperLink says of the run; FedscaleError if it is gone for good, or has forgotten it."""
    deadline = time.monotonic() + RETURN_SECONDS
    while True:
        try:
            return _ask(run_id, folder, env)
        except FedscaleError as error:
            if time.monotonic() < deadline:
                continue
            raise FedscaleError(
                f"the SuperLink says nothing of the run any more ({error}); the rounds of its checkpoints are kept: "
                f"see to the SuperLink, then carry on with fedscale-local resume {config.run_dir}"
            ) from None


def _ask(run_id: str, folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = flwr(["list", HERE, "--run-id", run_id], folder, env)["runs"]
    if len(rows) != 1:
        raise FedscaleError(f"it knows {len(rows)} runs with the id {run_id}")
    return rows[0]


def _portable(config: Config) -> Config:
    """Paths as another process sees them, whatever its working directory."""
    data = config.data
    if data.path is not None:
        data = data.model_copy(update={"path": str(Path(data.path).resolve())})
    return config.model_copy(update={"run_dir": str(Path(str(config.run_dir)).resolve()), "data": data})


def _write_app(folder: Path, keys: Iterable[str]) -> Path:
    """What `flwr run` submits: the names of the apps, which the other side imports, and these declared keys."""
    app = folder / "app"
    app.mkdir()
    server, client = (":".join(name.rsplit(".", 1)) for name in (SERVER_APP, CLIENT_APP))
    names = {"version": fedscale_local.__version__, "server_app": server, "client_app": client}
    text = _APP.format(**names, keys="\n".join(f'{key} = ""' for key in keys))
    (app / "pyproject.toml").write_text(text, encoding="utf-8")
    return app
