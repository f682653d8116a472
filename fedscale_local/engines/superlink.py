"""Real devices: the SuperNodes of a SuperLink.

The server's side runs beside this command, as a `flower-superexec` of this run's own, so that records and model land
in the local run directory. For that the SuperLink is started with `--isolation process`. It hands out whatever waits
to be run, so give one SuperLink one run at a time.

With superlink.serverapp=remote the SuperLink starts the server's side itself, on its own host, and records and model
come back through the run's log (parcels.py).
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedscale_local import checkpoint, records
from fedscale_local.config_engines import SuperLink
from fedscale_local.engines import cost_model, flower_command
from fedscale_local.engines.submit import Remote, run_app
from fedscale_local.errors import ConfigError, FedscaleError, RunDirError
from fedscale_local.experiment import Experiment
from fedscale_local.keys import refuse_readable
from fedscale_local.parcels import GROWING, Inbox, packed
from fedscale_local.processes import guarded_folder

RECORDS_BYTES = 8 << 20
"""Of a run that goes on remotely: they travel in its configuration, which every node is given too."""

log = logging.getLogger(__name__)


class Link(NamedTuple):
    """Where the SuperLink is, what proves that it is the right one, and what proves that we may serve it."""

    address: str
    root_certificates: Path | None
    superexec_secret: Path | None
    insecure: bool
    is_remote: bool
    """Does the SuperLink start the server's side?"""


def choose(experiment: Experiment, before: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the manifest; whatever is wrong with keys, certificates and address is refused here."""
    link = find(experiment.config.superlink)
    greet(link)
    if link.is_remote:
        _refuse_large(Path(str(experiment.config.run_dir)))
    if link.insecure:
        log.warning("superlink.insecure=true: models and statistics travel unencrypted to %s", link.address)
    chosen = {"name": "superlink", "address": link.address, "insecure": link.insecure}
    chosen |= {"serverapp": "remote" if link.is_remote else "beside"}
    return chosen | cost_model.LOOPED._asdict()


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds. The apps travel by name: devices import them."""
    link = find(experiment.config.superlink)
    with guarded_folder() as folder:
        env = flower_command.environment(folder)
        flower_command.write_connection(folder, link.address, link.root_certificates, link.insecure)
        if link.is_remote:
            run_dir = Path(str(experiment.config.run_dir))
            with Inbox(run_dir, experiment.config.checkpoint_keep) as inbox:
                run_app(experiment.config, folder, env, remote=Remote(_records(run_dir), inbox))
            return
        command: flower_command.Command = ["flower-superexec", "--runtime-api-address", link.address]
        command += trust(link)
        if link.superexec_secret is not None:
            command += ["--superexec-auth-secret-file", link.superexec_secret]
        flower_command.start(command, folder, folder / "superexec.log", env)
        run_app(experiment.config, folder, env)


def _refuse_large(run_dir: Path) -> None:
    """Raise RunDirError if what a run would go on from is more than goes along with one."""
    found = checkpoint.rounds(run_dir)
    names = [*checkpoint.files(run_dir, found[-1]), *GROWING] if found else []
    size = sum((run_dir / name).stat().st_size for name in names if (run_dir / name).exists())
    if size > RECORDS_BYTES:
        raise RunDirError(
            f"run_dir={run_dir}",
            f"its checkpoint and records are {size / 1e6:.1f} MB, and with superlink.serverapp=remote a run takes no "
            f"more than {RECORDS_BYTES / 1e6:.1f} MB along",
            "carry on where the server's side runs here: with superlink.serverapp=beside, or engine=in_process "
            "engine.mode=looped",
        )


def _records(run_dir: Path) -> str:
    """What the server's side goes on from; the run directory is put back to there, as it will do with its own."""
    kept = checkpoint.newest(run_dir).checkpoint
    checkpoint.forget_after(run_dir, kept.round if kept else 0)
    if kept is None:
        records.rewind(run_dir, 0)
        return ""
    records.rewind(run_dir, kept.round, kept.before, kept.record)
    return packed(run_dir, kept.round)


def greet(link: Link, seconds: float = 10.0) -> None:
    """Return if somebody listens at the address and, with root certificates, proves to be the one they vouch for.

    Raises ConfigError for a certificate that they do not vouch for, FedscaleError where nobody answers.
    """
    host, _, port = link.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            if link.root_certificates is not None and not link.insecure:
                context = ssl.create_default_context(cafile=str(link.root_certificates))
                context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"superlink.root_certificates={link.root_certificates}",
            f"it does not vouch for {link.address} ({error.verify_message})",
            "name the CA certificate (ca.crt) that the SuperLink's own was signed with",
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(
            f"superlink.root_certificates={link.root_certificates}",
            f"no TLS with {link.address} came about ({error.reason})",
            "name a CA certificate in PEM, and the port of a SuperLink that speaks TLS",
        ) from None
    except OSError as error:
        raise FedscaleError(
            f"superlink.address={link.address}: nobody answers there ({error.strerror or error}); "
            "start the SuperLink, or correct the address."
        ) from None


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
    if secret is not None:
        refuse_readable(secret, "superlink.superexec_secret")
    return Link(str(config.address), certificates, secret, config.insecure, config.serverapp == "remote")


def _of_federation(folder: Path) -> Link:
    try:
        state = json.loads((folder / "federation.json").read_text(encoding="utf-8"))
        refuse_readable(folder / "superexec.secret", "superexec.secret")
    except (OSError, ValueError):
        raise ConfigError(
            f"superlink.federation={folder}",
            "no federation is up there",
            f"start one: fedscale-local federation up --dir {folder}",
        ) from None
    files = folder / "ca.crt", folder / "superexec.secret"
    return Link(state["address"], *files, insecure=False, is_remote=state.get("serverapp") == "remote")


def _file(key: str, given: str | None) -> Path | None:
    path = None if given is None else Path(given).expanduser().resolve()
    if path is not None and not path.is_file():
        raise ConfigError(f"{key}={given}", "there is no such file", "correct the path")
    return path
