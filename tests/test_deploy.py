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
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from http.client import HTTPSConnection
from pathlib import Path
from typing import NoReturn

import pytest
import whole_runs
from pages import REPO
from real_processes import until

from fedscale_local import federation, keys
from fedscale_local.cli import main
from fedscale_local.engines import flower_command
from fedscale_local.processes import end

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


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_the_units_little_exposed(path: Path) -> None:
    """Of 100, where a unit that says nothing has 96; below 20 is systemd's own word "OK"."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the units are not judged by systemd")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


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


# ---------------------------------------------------------------- units as a user without rights

NOBODY = 10001
RIGHTLESS = (
    "setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
)


def hiding(path: Path) -> Path | None:
    """The outermost folder on the way to this one that others may not enter."""
    closed = [
        folder for folder in (*reversed(path.parents), path) if not folder.stat().st_mode & stat.S_IXOTH
    ]
    return closed[0] if closed else None


def sandbox(state: Path, inside: Path) -> str:
    """A script that runs its arguments as the unit's [Service] asks: no rights, and one folder to write to.

    The file system is read-only but for `state`, in a mount namespace of its own. Where the interpreter is in a folder
    that others may not enter, as root's home, an empty one takes its place, with the interpreter alone in it.
    """
    lines = ["set -eu", "umask 0077", f"mount --bind {shlex.quote(str(state))} {shlex.quote(str(state))}"]
    base, closed = Path(sys.base_prefix).resolve(), hiding(Path(sys.base_prefix).resolve())
    if closed is not None:
        aside, folder, place = map(shlex.quote, (str(inside), str(closed), str(base)))
        lines += [f"mount --bind {place} {aside}", f"mount -t tmpfs -o mode=755 tmpfs {folder}"]
        lines += [f"(umask 022; mkdir -p {place})", f"mount --bind {aside} {place}"]
        lines += [f"mount -o remount,ro {folder}"]
    lines += ["mount -o remount,ro,bind /", f"cd {shlex.quote(str(state))}"]
    return "\n".join([*lines, f'exec {RIGHTLESS.format(user=NOBODY)} "$@"'])


def started(
    path: Path, place: Path, credentials: dict[str, Path], given: dict[str, str]
) -> subprocess.Popen[bytes]:
    """What a unit starts, as systemd would start it: its environment and no other, its credentials, its user's rights.

    given: text of ExecStart -> what it is here.
    """
    service, own = unit(path), place / path.stem
    state, keys_here = own / "state", own / "credentials"
    for folder in (own, own / "interpreter", keys_here, state):
        folder.mkdir()
        folder.chmod(0o755)
    handed = [value.split(":") for value in service["LoadCredential"]]
    for name, source in handed:
        shutil.copy(credentials[source.removeprefix("/etc/fedscale/")], keys_here / name)
    for file in (state, *keys_here.iterdir()):
        os.chown(file, NOBODY, NOBODY)
        file.chmod(0o700 if file == state else 0o400)
    settings = (DEPLOY / "flower.env").read_text(encoding="utf-8").split() + service["Environment"]
    env = {"HOME": "/nonexistent", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
    env |= dict(setting.split("=", 1) for setting in settings)
    given = {
        "/opt/fedscale/bin": str(BIN),
        f"/var/lib/{path.stem}": str(state),
        "%d": str(keys_here),
        **given,
    }
    words = shlex.split(service["ExecStart"][0])
    for before, here in given.items():
        words = [word.replace(before, here) for word in words]
        env = {key: value.replace(before, here) for key, value in env.items()}
    env |= {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
    command = ["unshare", "--mount", "sh", "-c", sandbox(state, own / "interpreter"), "sh", *words]
    return flower_command.start(command, own, own / "log", env)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_units_commands_serve_a_run_for_a_user_without_rights(tmp_path: Path) -> None:
    """One folder each is all that they can write to; what they leave there is for nobody else to read."""
    if os.geteuid() != 0:
        pytest.skip("only root can start something as another user")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        missing("no mount namespaces can be made here")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place, ports = Path(folder), [str(flower_command.free_port()) for _ in range(2)]
        place.chmod(0o755)
        made = tmp_path / "keys"
        made.mkdir()
        keys.write_federation(made, keys.LOOPBACK, 1)
        superlink, node = UNITS
        processes_of = [started(superlink, place, {p.name: p for p in made.iterdir()}, {"9443": ports[0]})]
        stack.callback(lambda: end([child for process in processes_of for child in family(process.pid)]))
        flower_command.await_port(processes_of[0], int(ports[0]), place / superlink.stem / "log")
        operator = tmp_path / "operator"
        operator.mkdir()
        flower_command.write_connection(operator, f"localhost:{ports[0]}", made / "ca.crt", insecure=False)
        register = ["supernode", "register", made / "nodes/0/key.pub", "here", "--name", "client-0"]
        flower_command.flwr(register, operator, flower_command.environment(operator))
        files = {
            p.relative_to(made / "nodes/0").as_posix(): p
            for p in (made / "nodes/0").rglob("*")
            if p.is_file()
        }
        told = {"9444": ports[1], "${SUPERLINK}": f"localhost:{ports[0]}"}
        told["${NODE_CONFIG}"] = "partition-id=0 num-partitions=1"
        processes_of.append(started(node, place, files, told))
        try:
            until(lambda: federation._online(operator) == 1, seconds=90)
        except AssertionError:
            pytest.fail(f"the node does not come online: {(place / node.stem / 'log').read_text()}")
        small = ["data=synthetic", "model=logistic", "strategy=fedavg", "eval_clients=false"]
        settings = {"num_clients": 1, "clients_per_round": None, "num_rounds": 1}
        there = {
            "superlink.address": f"localhost:{ports[0]}",
            "superlink.root_certificates": str(made / "ca.crt"),
        }
        there["superlink.superexec_secret"] = str(made / "superexec.secret")
        found = whole_runs.run(tmp_path / "run", *small, "engine=superlink", settings=settings | there)
        for process in processes_of:
            for member in family(process.pid):
                assert set(re.findall(r"^[UG]id:(.*)$", status(member), re.M)) == {f"\t{NOBODY}" * 4}
                assert set(re.findall(r"^Cap\w+:\t(\w+)$", status(member), re.M)) == {"0" * 16}
        left = [path for stem in UNITS for path in (place / stem.stem / "state").rglob("*")]
        assert left and not [path for path in left if path.stat().st_mode & 0o077]
    here = whole_runs.run(tmp_path / "here", *small, "engine.mode=looped", settings=settings)
    assert found.bytes == here.bytes


def status(process: int) -> str:
    return Path(f"/proc/{process}/status").read_text()


def family(process: int) -> list[int]:
    """A process and what it has started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    own = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [process, *(member for child in own for member in family(child))]
