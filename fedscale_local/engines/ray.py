"""Flower's simulation on Ray, through the entrance that Flower supports: `flwr run` to a SuperLink of this run's own.

The SuperLink is a child of this process, so it ends with the run. Ray starts anew for each run, which takes about
fifteen seconds, unless engine.address names a cluster that is up.

The ServerApp sends a round's clients in chunks (fedscale_local/engines/chunks.py), so Flower sees as many nodes as
there are chunks at most; with somebody else's ClientApp it sees the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedscale_local.config import CustomClient
from fedscale_local.config_engines import Ray
from fedscale_local.engines import cost_model, flower_command
from fedscale_local.engines.submit import run_app
from fedscale_local.errors import ConfigError
from fedscale_local.experiment import Experiment
from fedscale_local.processes import guarded_folder

SHORT = 40
"""Characters of a folder that Ray can have its sockets in: their whole paths must stay below 108."""

MOST_CHUNKS = 1000
"""Messages of a round where engine.chunks=auto: Flower looks through its nodes ten times a second."""


def choose(experiment: Experiment, before: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the manifest; refuses workers for a cluster, which has its own."""
    config = experiment.config.engine
    assert isinstance(config, Ray)
    if config.address is not None and config.workers != "auto":
        raise ConfigError(
            f"engine.workers={config.workers}",
            f"the cluster at engine.address={config.address} has its own CPUs",
            "set engine.workers=auto, and engine.num_cpus to what a worker takes",
        )
    if isinstance(experiment.config.client, CustomClient) and config.chunks != "auto":
        raise ConfigError(
            f"engine.chunks={config.chunks}",
            "somebody else's ClientApp takes one client at a time",
            "set engine.chunks=auto, which for client=custom packs nothing",
        )
    return {**cost_model.LOOPED._asdict(), **config.model_dump()}


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds. The apps travel by name: other processes import them."""
    config = experiment.config.engine
    assert isinstance(config, Ray)
    with guarded_folder() as folder:
        env = flower_command.environment(folder)
        if config.address is not None:
            env["RAY_ADDRESS"] = config.address
        elif len(str(folder)) <= SHORT:
            env["RAY_TMPDIR"] = str(folder)
        port, log = flower_command.free_port(), folder / "superlink.log"
        address = ["--host", "127.0.0.1", "--port", str(port)]
        command = ["flower-superlink", "--insecure", "--simulation", *address]
        superlink = flower_command.start(command, folder, log, env)
        flower_command.await_port(superlink, port, log)
        flower_command.write_connection(folder, f"127.0.0.1:{port}", None, insecure=True)
        run_app(
            experiment.config,
            folder,
            env,
            ["--federation-config", _resources(config, _num_nodes(experiment, config))],
        )


def _num_nodes(experiment: Experiment, config: Ray) -> int:
    """One for each chunk of a round; how many workers there will be says Ray later. Else one for each client."""
    num_clients = len(experiment.partition)
    if isinstance(experiment.config.client, CustomClient):
        return num_clients
    most = MOST_CHUNKS if config.chunks == "auto" else config.chunks
    return min(most, experiment.config.clients_per_round or num_clients)


def _resources(config: Ray, num_nodes: int) -> str:
    """Flower's simulation keys, as one argument."""
    keys = {
        "num-supernodes": num_nodes,
        "client-resources-num-cpus": config.num_cpus,
        "client-resources-num-gpus": float(config.num_gpus),
    }
    if config.workers != "auto":
        keys["init-args-num-cpus"] = config.workers * config.num_cpus
    return " ".join(f"{key}={value}" for key, value in keys.items())
