"""The files of deploy/: units, image and fence are checked by the tools that read them, where those are installed.

An image is not built here: that needs a Docker engine and a registry.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from http.client import HTTPSConnection
from pathlib import Path
from typing import NoReturn

import pytest
import whole_runs
from pages import REPO

from fedscale_local import federation, keys
from fedscale_local.cli import main
from fedscale_local.engines import flower_command

DEPLOY, BIN = REPO / "deploy", Path(sys.executable).parent
UNITS = sorted(DEPLOY.glob("*.service"))
OPERATORS = "192.0.2.0/24"
"""Who submits runs, in deploy/nginx.conf."""


def missing(what: str) -> NoReturn:
    """A tool that a test needs is not here: where the project is checked for others, that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {what}")
    pytest.skip(what)


def unit(path: Path) -> dict[str, list[str]]:
    """The [Service] section: every value of a key, in order, lines joined."""
    section = (
        path.read_text(encoding="utf-8").replace("\\\n", " ").partition("[Service]")[2].partition("\n[")[0]
    )
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def image() -> list[list[str]]:
    """Instruction and the rest of it, lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line.split(" ", 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def starts() -> list[list[str]]:
    """Every command that starts something of Flower, as units and image give it."""
    of_units = [shlex.split(unit(path)["ExecStart"][0]) for path in UNITS]
    return of_units + [json.loads(rest) for instruction, rest in image() if instruction == "ENTRYPOINT"]


@cache
def options(command: str) -> frozenset[str]:
    """What the installed command takes, deprecated ones left out."""
    env = {**os.environ, **flower_command.QUIET, "COLUMNS": "200"}
    said = subprocess.run(
        [BIN / command, "--help"], env=env, text=True, capture_output=True, check=True
    ).stdout
    entries = re.split(r"\n  (?=-)", said.partition("\noptions:")[2])
    return frozenset(
        option
        for entry in entries
        if "deprecated" not in entry.casefold()
        for option in re.findall(r"--[\w-]+", entry.partition("  ")[0])
    )


def test_units_and_image_use_options_that_flower_has_and_leave_no_door_open() -> None:
    assert len(starts()) == 4
    for command, *arguments in starts():
        given = {argument for argument in arguments if argument.startswith("--")}
        assert given <= options(Path(command).name), command
        assert "--insecure" not in given
        wanted = {"--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile"}
        if command.endswith("superlink"):
            wanted |= {"--enable-supernode-auth", "--superexec-auth-secret-file"}
            assert arguments[arguments.index("--isolation") + 1] == "process"
        else:
            wanted |= {"--root-certificates", "--auth-supernode-private-key"}
        assert wanted <= given


def test_an_option_that_flower_has_not_is_found() -> None:
    assert not {"--root-certificate", "--auth-supernode-public-key"} & options("flower-supernode")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_are_hardened_and_hand_over_keys_as_credentials(path: Path) -> None:
    found = unit(path)
    assert found["User"] not in (["root"], ["0"])
    assert found["NoNewPrivileges"] == ["true"] and found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""] and found["UMask"] == ["0077"]
    handed = {value.partition(":")[0] for value in found["LoadCredential"]}
    assert set(re.findall(r"%d/(\S+)", found["ExecStart"][0])) == handed
    assert "/etc/" not in found["ExecStart"][0]


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the units are not checked by systemd")
    for path in UNITS:
        text = path.read_text(encoding="utf-8").replace("/opt/fedscale/bin", str(BIN))
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    said = [line for line in done.stderr.splitlines() if "fedscale" in line]
    assert done.returncode == 0 and not said, done.stderr


def test_the_image_holds_the_project_and_nothing_else() -> None:
    lines = image()
    copied = [source for kind, rest in lines if kind == "COPY" for source in rest.split()[:-1]]
    assert copied and all((REPO / source).exists() for source in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    pip = [rest for kind, rest in lines if kind == "RUN" and "pip" in rest]
    assert len(pip) == 1 and "install --no-cache-dir -c constraints.txt ." in pip[0]
    kinds = [kind for kind, _ in lines]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT") and lines[kinds.index("USER")][1] != "0"


def test_units_image_and_page_have_one_environment() -> None:
    settings = (DEPLOY / "flower.env").read_text(encoding="utf-8")
    assert f"```sh\n{settings}```" in (REPO / "docs/how-to-deploy.md").read_text(encoding="utf-8")
    (given,) = (rest.split() for kind, rest in image() if kind == "ENV")
    assert set(settings.split()) == set(given) - {"FLWR_HOME=/state"}
    ours = flower_command.QUIET | flower_command.ONE_THREAD
    assert set(settings.split()) <= {f"{name}={value}" for name, value in ours.items()}


# ---------------------------------------------------------------- keys


def test_every_private_key_is_its_owners_alone_and_no_device_gets_anothers(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    arguments = [f"--dir={folder}", "--host=fl.example.org", "--nodes=2"]
    assert main(["federation", "keys", *arguments]) == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    private = {path for path in files if b"PRIVATE" in path.read_bytes()} | {folder / "superexec.secret"}
    assert {path.name for path in private} == {"ca.key", "server.key", "superexec.secret", "key"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secrets = [path.read_bytes() for path in private]
    assert len(set(secrets)) == len(secrets) == 7
    assert main(["federation", "keys", *arguments]) == 2  # nothing is overwritten
    assert [path.read_bytes() for path in private] == secrets


# ---------------------------------------------------------------- the fence


def asked(port: int, authority: Path, path: str) -> int:
    connection = HTTPSConnection(
        "localhost", port, context=ssl.create_default_context(cafile=str(authority)), timeout=10
    )
    connection.request("POST", path, body=b"")
    return connection.getresponse().status


@contextmanager
def fence(place: Path, certificates: Path, behind: int, operators: str = OPERATORS) -> Iterator[int]:
    """nginx with deploy/nginx.conf in front of a port of this machine; the port that it listens on."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if nginx is None:
        missing("nginx is not installed: its configuration is not checked")
    port = flower_command.free_port()
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for given, here in (
        ("/etc/fedscale", str(certificates)),
        ("9092", f"127.0.0.1:{port}"),
        ("9443", str(behind)),
        (OPERATORS, operators),
    ):
        assert given in text
        text = text.replace(given, here)
    place.mkdir()
    parts = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{part}_temp_path {place}/{part}; " for part in parts)
    config = place / "nginx.conf"
    user = "user root; " if os.geteuid() == 0 else ""  # its workers read what this user's folders hold
    config.write_text(
        f"{user}pid {place}/pid; error_log {place}/errors; daemon off; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{text}}}\n"
    )
    command = [nginx, "-p", str(place), "-c", str(config)]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = flower_command.start(command, place, place / "log", os.environ)
    try:
        flower_command.await_port(process, port, place / "errors")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def test_the_fence_lets_nodes_in_and_nobody_else(tmp_path: Path) -> None:
    """Nobody listens behind it: what it lets through is answered with 502, what it stops with 403."""
    keys.write_certificates(tmp_path, keys.LOOPBACK)
    with fence(tmp_path / "nginx", tmp_path, flower_command.free_port()) as port:
        assert asked(port, tmp_path / "ca.crt", "/v1/fleet/pull-messages") == 502
        for path in ("/v1/control/start-run", "/v1/runtime/pull-task", "/", "/v1/fleet/../control/start-run"):
            assert asked(port, tmp_path / "ca.crt", path) == 403, path
    behind = flower_command.free_port()
    with fence(tmp_path / "operators", tmp_path, behind, operators="127.0.0.0/8") as port:
        assert asked(port, tmp_path / "ca.crt", "/v1/control/start-run") == 502


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_outside_the_fence_train_as_those_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "federation"
    problem = ["data=synthetic", "model=logistic", "strategy=fedavg", "eval_clients=false"]
    settings = {"num_clients": 2, "clients_per_round": None, "num_rounds": 1}
    start_node = federation.start_node
    with ExitStack() as stack:

        def outside(folder: Path, node: int, num_nodes: int, address: str, register: bool = False) -> int:
            if node == 0:
                behind = int(address.partition(":")[2])
                ports.append(stack.enter_context(fence(tmp_path / "nginx", folder, behind)))
            return start_node(folder, node, num_nodes, f"127.0.0.1:{ports[0]}", register)

        ports: list[int] = []
        monkeypatch.setattr(federation, "start_node", outside)
        federation.up(nodes, 2)
        stack.callback(federation.down, nodes)
        on_nodes = {**settings, "superlink.federation": str(nodes)}
        found = whole_runs.run(tmp_path / "outside", *problem, "engine=superlink", settings=on_nodes)
    assert (
        found.bytes
        == whole_runs.run(tmp_path / "here", *problem, "engine.mode=looped", settings=settings).bytes
    )
