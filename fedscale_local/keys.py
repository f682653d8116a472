"""Keys and certificates of a federation: its own authority, the server's certificate, a key for each node.

All keys are elliptic curve keys on P-384, the kind that SuperLinks accept for nodes. Private ones are written with
mode 0600 from the start.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedscale_local.errors import ConfigError

VALID = timedelta(days=365)
LOOPBACK = ("127.0.0.1", "localhost")


def write_federation(folder: Path, hosts: Sequence[str], num_nodes: int) -> None:
    """Everything that a SuperLink under these names or numbers, and its nodes, need.

    folder/         ca.crt, ca.key, server.pem, server.key, superexec.secret: the SuperLink's, and who submits runs
    folder/nodes/K/ ca.crt, key, key.pub, local/: node K's. `local` is for its own port, which listens on loopback and
                    has an authority of its own, so that no node holds a certificate that others would believe.
    """
    write_certificates(folder, [*dict.fromkeys((*hosts, *LOOPBACK))])
    write_shared_secret(folder / "superexec.secret")
    for node in range(num_nodes):
        home = folder / "nodes" / str(node)
        (home / "local").mkdir(parents=True, mode=0o700)
        shutil.copy(folder / "ca.crt", home)
        write_node_key(home / "key")
        write_certificates(home / "local", LOOPBACK)
        (home / "local" / "ca.key").unlink()  # it has signed all that it will


def write_secret(path: Path, content: bytes) -> None:
    """A file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def refuse_readable(path: Path, where: str) -> None:
    """Raise ConfigError for a secret that others on this machine may read or change."""
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{where}={path}", "others on this machine can read it", f"chmod 600 {path}")


def name_of_client(client: int) -> str:
    """What a node's key is registered as, so that the node can serve this client alone."""
    return f"client-{client}"


def client_of_name(name: str) -> int | None:
    """The client whose node's key was registered under this name; None for any other name."""
    found = re.fullmatch(r"client-(0|[1-9][0-9]*)", name, re.ASCII)
    return int(found[1]) if found else None


def write_shared_secret(path: Path) -> None:
    """32 random bytes."""
    write_secret(path, secrets.token_bytes(32))


def write_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """ca.crt and ca.key, and server.pem and server.key that ca.crt vouches for under the names or numbers of hosts."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    name = _name("fedscale-local federation")
    ca = _builder(name, name, authority.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_usage(sign_certificates=True), critical=True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
    leaf = _builder(_name(hosts[0]), name, server.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(_usage(sign_certificates=False), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    leaf = leaf.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
    )
    for file, certificate in (("ca.crt", ca), ("server.pem", leaf)):
        (folder / file).write_bytes(certificate.sign(authority, SHA384()).public_bytes(Encoding.PEM))
    for file, key in (("ca.key", authority), ("server.key", server)):
        write_secret(folder / file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def write_node_key(path: Path) -> Path:
    """A node's private key at `path`; returns the file of the public one beside it, which a SuperLink registers."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = path.with_name(path.name + ".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return public


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - timedelta(minutes=5), now + VALID
    )


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
