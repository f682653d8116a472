"""Real devices: the SuperNodes of a SuperLink.

The server's side runs beside this command, as a `flower-superexec` of this run's own, so that records and model land
in the local run directory. For that the SuperLink is started with `--isolation process`. It hands out whatever waits
to be run, so give one SuperLink one run at a time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedscale_local.config_engines import SuperLink
from fedscale_local.engines import flower_command
from fedscale_local.engines.submit import run_app
from fedscale_local.errors import ConfigError
from fedscale_local.experiment import Experiment
from fedscale_local.processes import guarded_folder

log = logging.getLogger(__name__)


class Link(NamedTuple):
    """Where the SuperLink is, what proves that it is the right one, and what proves that we may serve it."""

    address: str
    root_certificates: Path | None
    superexec_secret: Path | None
    insecure: bool


def choose(experiment: Experiment) -> dict[str, Any]:
    """What goes into the manifest; whatever is wrong with the keys is refused here."""
    link = find(experiment.config.superlink)
    if link.insecure:
        log.warning("superlink.insecure=true: models and statistics travel unencrypted to %s", link.address)
    return {"name": "superlink", "mode": "looped", "address": link.address, "insecure": link.insecure}


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds. The apps travel by name: devices import them."""
    link = find(experiment.config.superlink)
    with guarded_folder() as folder:
        env = flower_command.environment(folder)
        flower_command.write_connection(folder, link.address, link.root_certificates, link.insecure)
        command: list[str | Path] = ["flower-superexec", "--runtime-api-address", link.address]
        command += trust(link)
        if link.superexec_secret is not None:
            command += ["--superexec-auth-secret-file", link.superexec_secret]
        flower_command.start(command, folder, folder / "superexec.log", env)
        run_app(experiment.config, folder, env)


def trust(link: Link) -> list[str | Path]:
    """The arguments of Flower's commands that say which server is believed."""
    if link.insecure:
        return ["--insecure"]
    return [] if link.root_certificates is None else ["--root-certificates", link.root_certificates]


def find(config: SuperLink) -> Link:
    """The SuperLink that the configuration means: a local federation's, or one by its address.

    Raises ConfigError for none or two of them, files that are not there, TLS both given and refused, and a secret that
    others on this machine can read.
    """
    if (config.address is None) == (config.federation is None):
        raise ConfigError(
            f"superlink.address={config.address or 'null'}",
            "engine=superlink needs either an address or a local federation",
            "set superlink.address=host:port, or superlink.federation to the directory of `federation up`",
        )
    if config.federation is not None:
        return _of_federation(Path(config.federation).resolve())
    if config.insecure and config.root_certificates is not None:
        raise ConfigError(
            "superlink.insecure=true",
            "without TLS there is no certificate to check",
            "leave out superlink.root_certificates, or set superlink.insecure=false",
        )
    certificates = _file("superlink.root_certificates", config.root_certificates)
    secret = _file("superlink.superexec_secret", config.superexec_secret)
    if secret is not None and secret.stat().st_mode & 0o077:
        raise ConfigError(
            f"superlink.superexec_secret={secret}",
            "others on this machine can read it",
            f"chmod 600 {secret}",
        )
    return Link(str(config.address), certificates, secret, config.insecure)


def _of_federation(folder: Path) -> Link:
    try:
        state = json.loads((folder / "federation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"superlink.federation={folder}",
            "no federation is up there",
            f"start one: fedscale-local federation up --dir {folder}",
        ) from None
    return Link(state["address"], folder / "ca.crt", folder / "superexec.secret", insecure=False)


def _file(key: str, given: str | None) -> Path | None:
    path = None if given is None else Path(given).expanduser().resolve()
    if path is not None and not path.is_file():
        raise ConfigError(f"{key}={given}", "there is no such file", "correct the path")
    return path
