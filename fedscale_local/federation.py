"""A whole federation on this machine, for trying and for tests: one SuperLink, N SuperNodes, keys for all.

DIR/federation.json         address, number of nodes, where their shards are, version
DIR/ca.crt ca.key server.pem server.key superexec.secret
DIR/superlink/              the SuperLink's state and log
DIR/nodes/K/                node K's key, state and log; it serves client K, from SHARDS/K if there are shards
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedscale_local
from fedscale_local import keys
from fedscale_local.engines import flower_command
from fedscale_local.errors import FedscaleError, RunDirError
from fedscale_local.processes import end, processes_of

STATE, PID, HOST = "federation.json", "pid", "127.0.0.1"
START_SECONDS = 120.0
Command = list[str | Path]


def command(action: str, folder: Path, num_nodes: int, shards: Path | None = None) -> int:
    """What `fedscale-local federation up|status|down` does; status is 1 if something of it is not running."""
    if action == "up":
        up(folder, num_nodes, lambda text: print(text, file=sys.stderr), shards)
        print(
            f"run on it: fedscale-local run engine=superlink superlink.federation={folder} num_clients={num_nodes}"
        )
        return 0
    if action == "down":
        print(f"{down(folder)} processes ended")
        return 0
    state = status(folder)
    print(f"address    {state['address']}")
    for name, process in state["processes"].items():
        label = name if name == "superlink" else f"node {name}"
        print(f"{label:<11}{process or 'not running'}")
    return 0 if all(state["processes"].values()) else 1


def up(
    folder: Path,
    num_nodes: int,
    tell: Callable[[str], None] = lambda text: None,
    shards: Path | None = None,
) -> dict[str, Any]:
    """Make keys, start everything, return when every node is online. A failure leaves no process.

    shards: node K gets the folder K in it as its data-path; None: nodes hold the whole data set.

    Raises:
        RunDirError: the directory holds something already, or a node's shard is not there.
        FedscaleError: something did not start; the message has the end of its log.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        remedy = f"choose another --dir, or end it: fedscale-local federation down --dir {folder}"
        raise RunDirError(f"--dir={folder}", "the directory is not empty", remedy)
    shards = None if shards is None else shards.resolve()
    for node in range(num_nodes if shards is not None else 0):
        if not (shards / str(node)).is_dir():  # type: ignore[operator]
            remedy = "write them: fedscale-local shard --all --out DIR, with the overrides of the run"
            raise RunDirError(f"--shards={shards}", f"there is no folder {node} for node {node}", remedy)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        return _up(folder, num_nodes, tell, shards)
    except BaseException:
        end(_processes(folder))  # its logs stay
        raise


def _up(folder: Path, num_nodes: int, tell: Callable[[str], None], shards: Path | None) -> dict[str, Any]:
    keys.write_certificates(folder, [HOST, "localhost"])
    keys.write_shared_secret(folder / "superexec.secret")
    port, home = flower_command.free_port(), folder / "superlink"
    home.mkdir()
    address = f"{HOST}:{port}"
    state: dict[str, Any] = {"address": address, "nodes": num_nodes}
    state |= {"shards": shards and str(shards), "fedscale_local": fedscale_local.__version__}
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    env, log = flower_command.environment(home), home / "superlink.log"
    command: Command = ["flower-superlink", "--host", HOST, "--port", str(port), *_server_tls(folder)]
    command += ["--enable-supernode-auth", "--isolation", "process"]
    command += ["--superexec-auth-secret-file", folder / "superexec.secret"]
    superlink = flower_command.start(command, home, log, env)
    (home / PID).write_text(str(superlink.pid))
    flower_command.await_port(superlink, port, log)
    tell(f"SuperLink at {address}")
    flower_command.write_connection(home, address, folder / "ca.crt", insecure=False)
    for node in range(num_nodes):
        start_node(folder, node, num_nodes, address, register=True)
        tell(f"node {node} of {num_nodes} started")
    deadline = time.monotonic() + START_SECONDS
    while _online(home) < num_nodes:
        if time.monotonic() > deadline:
            said = flower_command.last_lines(folder / "nodes" / "0" / "supernode.log")
            raise FedscaleError(f"only {_online(home)} of {num_nodes} nodes came online: {said}")
    return state


def start_node(folder: Path, node: int, num_nodes: int, address: str, register: bool = False) -> int:
    """Start one node, which serves client `node`; a node is registered once, before its first start. Its process id."""
    home, key = folder / "nodes" / str(node), folder / "nodes" / str(node) / "key"
    home.mkdir(parents=True, exist_ok=True)
    end(processes_of(home))  # what a node that was killed has left
    if register:
        public, superlink = keys.write_node_key(key), folder / "superlink"
        arguments: Command = ["supernode", "register", public, flower_command.HERE]
        flower_command.flwr(arguments, superlink, flower_command.environment(superlink))
    command: Command = ["flower-supernode", "--superlink", address, "--root-certificates", folder / "ca.crt"]
    command += ["--auth-supernode-private-key", key, *_server_tls(folder)]
    command += ["--host", HOST, "--port", str(flower_command.free_port())]
    config, shards = f"partition-id={node} num-partitions={num_nodes}", _state(folder)["shards"]
    if shards is not None:
        config += f" data-path={json.dumps(str(Path(shards) / str(node)), ensure_ascii=False)}"
    command += ["--node-config", config]
    process = flower_command.start(
        command, home, home / "supernode.log", flower_command.environment(home)
    ).pid
    (home / PID).write_text(str(process))
    return process


def down(folder: Path) -> int:
    """End every process of the federation and remove its directory. How many processes there were."""
    folder = _existing(folder)
    processes = _processes(folder)
    end(processes)
    shutil.rmtree(folder)
    return len(processes)


def status(folder: Path) -> dict[str, Any]:
    """Address, and the process id of the SuperLink and of each node: None for one that is not running."""
    folder = _existing(folder)
    return _state(folder) | {"processes": {home.name: _running(home) for home in _homes(folder)}}


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def _running(home: Path) -> int | None:
    pid = home / PID
    process = int(pid.read_text()) if pid.exists() else -1
    return process if process in processes_of(home) else None


def _server_tls(folder: Path) -> Command:
    """The same certificate for all: they listen under the same name."""
    certificates: Command = ["--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "server.pem"]
    return [*certificates, "--ssl-keyfile", folder / "server.key"]


def _existing(folder: Path) -> Path:
    if not (folder / STATE).is_file():
        raise RunDirError(
            f"--dir={folder}", "no federation is up there", "start one: fedscale-local federation up"
        )
    return folder.resolve()


def _homes(folder: Path) -> list[Path]:
    nodes = sorted((folder / "nodes").glob("*"), key=lambda home: int(home.name))
    return [folder / "superlink", *nodes]


def _processes(folder: Path) -> list[int]:
    """Nodes first: a node whose SuperLink is gone keeps trying to reach it."""
    return [process for home in reversed(_homes(folder)) for process in processes_of(home)]


def _online(home: Path) -> int:
    nodes = flower_command.flwr(
        ["supernode", "list", flower_command.HERE], home, flower_command.environment(home)
    )["nodes"]
    return sum(node["status"] == "online" for node in nodes)
