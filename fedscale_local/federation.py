"""A whole federation on this machine, for trying and for tests: one SuperLink, N SuperNodes, keys for all.

DIR/federation.json         address, number of nodes, where their shards and the server's side are, version
DIR/ca.crt ca.key server.pem server.key superexec.secret
DIR/superlink/              the SuperLink's state (registered nodes outlive it in state.db) and log
DIR/nodes/K/                node K's keys, state and log; it serves client K, from SHARDS/K if there are shards
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fedscale_local
from fedscale_local import keys
from fedscale_local.engines import flower_command
from fedscale_local.engines.flower_command import Command
from fedscale_local.errors import FedscaleError, RunDirError
from fedscale_local.processes import end, processes_of, words_of

STATE, PID, HOST = "federation.json", "pid", "127.0.0.1"
START_SECONDS = 120.0
ENDED_SECONDS = 90.0
"""Within which a SuperLink that came back finds that the server's side of a run is gone: two of Flower's heartbeats."""


def command(
    action: str,
    folder: Path,
    num_nodes: int,
    shards: Path | None = None,
    hosts: Sequence[str] = (),
    serverapp: str = "beside",
) -> int:
    """What `fedscale-local federation ACTION` does; its exit status, 1 from `status` if something is not running."""
    if action == "keys":
        _refuse_used(folder, "move what is there away")
        _make_private(folder)
        keys.write_federation(folder, hosts, num_nodes)
        print(f"for the SuperLink          {folder}/ca.crt server.pem server.key superexec.secret")
        print(f"for the device of node K   {folder}/nodes/K (0 to {num_nodes - 1})")
        print(f"for who submits runs       {folder}/ca.crt superexec.secret")
        print(f"for nobody, keep it away   {folder}/ca.key")
        return 0
    if action == "up":
        up(folder, num_nodes, lambda text: print(text, file=sys.stderr), shards, serverapp)
        print(
            f"run on it: fedscale-local run engine=superlink superlink.federation={folder} num_clients={num_nodes}"
        )
        return 0
    if action == "down":
        print(f"{down(folder)} processes ended")
        return 0
    if action == "restart":
        print(f"{restart(folder)} processes started")
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
    serverapp: str = "beside",
) -> dict[str, Any]:
    """Make keys, start everything, return when every node is online. A failure leaves no process.

    shards: node K gets the folder K in it as its data-path; None: nodes hold the whole data set. serverapp: does the
    server's side of a run run beside its command, or does the SuperLink start it (remote)?

    Raises:
        RunDirError: the directory holds something already, or a node's shard is not there.
        FedscaleError: something did not start; the message has the end of its log.
    """
    folder = folder.resolve()
    _refuse_used(folder, f"end it: fedscale-local federation down --dir {folder}")
    shards = None if shards is None else shards.resolve()
    for node in range(num_nodes if shards is not None else 0):
        if not (shards / str(node)).is_dir():  # type: ignore[operator]
            remedy = "write them: fedscale-local shard --all --out DIR, with the overrides of the run"
            raise RunDirError(f"--shards={shards}", f"there is no folder {node} for node {node}", remedy)
    _make_private(folder)
    try:
        return _up(folder, num_nodes, tell, shards, serverapp)
    except BaseException:
        end(_processes(folder))  # its logs stay
        raise


def _refuse_used(folder: Path, remedy: str) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise RunDirError(
            f"--dir={folder}", "the directory is not empty", f"choose another --dir, or {remedy}"
        )


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _up(
    folder: Path, num_nodes: int, tell: Callable[[str], None], shards: Path | None, serverapp: str
) -> dict[str, Any]:
    keys.write_federation(folder, [HOST], num_nodes)
    port, home = flower_command.free_port(), folder / "superlink"
    home.mkdir()
    address = f"{HOST}:{port}"
    state: dict[str, Any] = {"address": address, "nodes": num_nodes, "serverapp": serverapp}
    state |= {"shards": shards and str(shards), "fedscale_local": fedscale_local.__version__}
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    start_superlink(folder)
    tell(f"SuperLink at {address}")
    flower_command.write_connection(home, address, folder / "ca.crt", insecure=False)
    for node in range(num_nodes):
        start_node(folder, node, num_nodes, address, register=True)
        tell(f"node {node} of {num_nodes} started")
    _await_nodes(folder, num_nodes)
    return state


def _await_nodes(folder: Path, num_nodes: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (online := _online(folder / "superlink")) < num_nodes:
        if time.monotonic() > deadline:
            said = flower_command.last_lines(folder / "nodes" / "0" / "supernode.log")
            raise FedscaleError(f"only {online} of {num_nodes} nodes came online: {said}")


def restart(folder: Path) -> int:
    """Start again what of a federation is not running, with the same address and keys. How many processes.

    Nodes that are running find their SuperLink again by themselves, within half a minute. Their clients' processes end
    where no run is under way any more.
    """
    folder = _existing(folder)
    found = status(folder)
    gone = [name for name, process in found["processes"].items() if process is None]
    for name in gone:
        if name == "superlink":
            start_superlink(folder)
        else:
            start_node(folder, int(name), found["nodes"], found["address"])
    _await_nodes(folder, found["nodes"])
    _end_leftovers(folder)
    return len(gone)


def _end_leftovers(folder: Path) -> None:
    """End the processes of clients whose run has ended: one may ask for a message that is gone for two hours."""
    deadline = time.monotonic() + ENDED_SECONDS
    while (clients := _clients(folder)) and time.monotonic() < deadline:
        if not _is_under_way(folder / "superlink"):
            end(clients)
            return
        time.sleep(1)


def _clients(folder: Path) -> list[int]:
    """The processes on the nodes in which a client is at work, or was to be."""
    found = [process for home in _homes(folder)[1:] for process in processes_of(home)]
    return [process for process in found if "flwr-clientapp" in words_of(process)]


def _is_under_way(home: Path) -> bool:
    """Has the SuperLink a run that has not ended, as far as it knows?"""
    runs = flower_command.flwr(["list", flower_command.HERE], home, flower_command.environment(home))["runs"]
    return not all(run["status"].startswith("finished") for run in runs)


def start_superlink(folder: Path) -> int:
    """Start the SuperLink, which knows the nodes that were registered before. Its process id.

    Raises ConfigError for keys that others can read, FedscaleError if nobody listens on its port soon.
    """
    home, address = folder / "superlink", _state(folder)["address"]
    for key in ("server.key", "superexec.secret"):
        keys.refuse_readable(folder / key, key)
    end(processes_of(home))  # what one that was killed has left
    env, log, port = flower_command.environment(home), home / "superlink.log", address.rpartition(":")[2]
    command: Command = ["flower-superlink", "--host", HOST, "--port", port, *_server_tls(folder)]
    command += ["--enable-supernode-auth", "--database", home / "state.db"]
    if _state(folder).get("serverapp") != "remote":
        command += ["--isolation", "process", "--superexec-auth-secret-file", folder / "superexec.secret"]
    superlink = flower_command.start(command, home, log, env)
    (home / PID).write_text(str(superlink.pid))
    flower_command.await_port(superlink, int(port), log)
    return superlink.pid


def start_node(folder: Path, node: int, num_nodes: int, address: str, register: bool = False) -> int:
    """Start one node, which serves client `node`; a node is registered once, before its first start. Its process id.

    Raises ConfigError if others can read its key.
    """
    home = folder / "nodes" / str(node)
    end(processes_of(home))  # what a node that was killed has left
    if register:
        superlink = folder / "superlink"
        arguments: Command = ["supernode", "register", home / "key.pub", flower_command.HERE]
        arguments += ["--name", keys.name_of_client(node)]
        flower_command.flwr(arguments, superlink, flower_command.environment(superlink))
    keys.refuse_readable(home / "key", f"key of node {node}")
    command: Command = ["flower-supernode", "--superlink", address, "--root-certificates", home / "ca.crt"]
    command += ["--auth-supernode-private-key", home / "key", *_server_tls(home / "local")]
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
