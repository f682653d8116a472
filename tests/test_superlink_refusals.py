"""What a run on a SuperLink refuses before work: nobody there, or a stranger, or secrets that others can read."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedscale_local import federation, keys
from fedscale_local.cli import main
from fedscale_local.engines.flower_command import free_port

PROBLEM = ["data=synthetic", "partition=natural", "model=logistic", "strategy=fedavg", "num_clients=2"]
PROBLEM += ["clients_per_round=null", "engine=superlink"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a federation that is not up."""
    folder = tmp_path_factory.mktemp("federation")
    keys.write_certificates(folder, ["127.0.0.1"])
    keys.write_shared_secret(folder / "superexec.secret")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The address of something that speaks TLS with the federation's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def refused(status: int, capsys: pytest.CaptureFixture[str], run_dir: Path, *overrides: str) -> str:
    """The one message of a run that ends with this status and leaves no directory."""
    assert main(["run", *PROBLEM, f"run_dir={run_dir}", *overrides]) == status
    assert not run_dir.exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("fedscale-local: ") == 1
    return said


def test_certificates_of_another_authority(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.write_certificates(tmp_path, ["127.0.0.1"])
    certificates = f"superlink.root_certificates={tmp_path / 'ca.crt'}"
    said = refused(2, capsys, tmp_path / "run", f"superlink.address={server}", certificates)
    assert f"{certificates}: it does not vouch for {server} (" in said


def test_a_host_that_the_certificate_does_not_name(
    server: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = server.replace("127.0.0.1", "localhost")
    certificates = f"superlink.root_certificates={folder / 'ca.crt'}"
    said = refused(2, capsys, tmp_path / "run", f"superlink.address={address}", certificates)
    assert f"it does not vouch for {address} (Hostname mismatch" in said


def test_a_file_that_is_no_certificate(
    server: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates = f"superlink.root_certificates={folder / 'superexec.secret'}"
    said = refused(2, capsys, tmp_path / "run", f"superlink.address={server}", certificates)
    assert f"{certificates}: no TLS with {server} came about (" in said


def test_nobody_is_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    (folder / "federation.json").write_text(json.dumps({"address": address, "nodes": 2, "shards": None}))
    for where in (f"superlink.address={address}", f"superlink.federation={folder}"):
        said = refused(1, capsys, tmp_path / "run", where)
        assert f"superlink.address={address}: nobody answers there (Connection refused)" in said


def test_a_secret_that_others_can_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, copied = folder / "superexec.secret", tmp_path / "federation"
    shutil.copytree(folder, copied)
    (copied / "federation.json").write_text(json.dumps({"address": "127.0.0.1:1"}))
    for file, where in (
        (secret, ["superlink.address=127.0.0.1:1", f"superlink.superexec_secret={secret}"]),
        (copied / secret.name, [f"superlink.federation={copied}"]),
    ):
        file.chmod(0o640)
        said = refused(2, capsys, tmp_path / "run", *where)
        assert f"{file}: others on this machine can read it; chmod 600 {file}." in said
        file.chmod(0o600)


@pytest.mark.parametrize("key", ["server.key", "superexec.secret", "nodes/0/key"])
def test_a_federation_does_not_start_with_a_key_that_others_can_read(
    key: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = tmp_path / "federation"
    shutil.copytree(folder, down)
    address = f"127.0.0.1:{free_port()}"
    (down / "federation.json").write_text(json.dumps({"address": address, "nodes": 1, "shards": None}))
    (down / "nodes" / "0").mkdir(parents=True)
    keys.write_node_key(down / "nodes" / "0" / "key")
    (down / key).chmod(0o604)
    start = federation.start_superlink if "nodes" not in key else starting_node_0
    with pytest.raises(
        federation.FedscaleError, match=f"others on this machine can read it; chmod 600 .*{key}"
    ):
        start(down)
    assert not list(down.glob("**/pid")), "nothing was started"


def starting_node_0(folder: Path) -> int:
    return federation.start_node(folder, 0, 1, "127.0.0.1:1")
