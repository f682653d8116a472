"""The cryptographic parts, each a call of a library: X25519, HKDF-SHA256, AES-GCM, ChaCha20 and Shamir's scheme.

Secrets are seeds of 16 bytes, which is what Shamir's scheme over GF(2^128) shares at once; keys are derived from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED, KEY = 16, 32
"""Bytes of a secret (and of a share of it), and of every key."""
NONCE, TAG = 12, 16
"""Bytes that AES-GCM adds."""


def fresh_seed() -> bytes:
    """A secret from the operating system's generator."""
    return os.urandom(SEED)


def derived(secret: bytes, purpose: str) -> bytes:
    """The key of 32 bytes that belongs to a secret and a purpose."""
    return HKDF(SHA256(), KEY, salt=None, info=f"fedscale-local {purpose}".encode()).derive(secret)


def public_key(seed: bytes) -> bytes:
    """The X25519 public key, 32 bytes, whose private key is derived from the seed."""
    return _private_key(seed).public_key().public_bytes_raw()


def agreed(seed: bytes, other: bytes, purpose: str) -> bytes:
    """The key that the seed's owner and the owner of the public key `other` have in common for a purpose.

    Raises ValueError for bytes that are no public key.
    """
    return derived(_private_key(seed).exchange(X25519PublicKey.from_public_bytes(other)), purpose)


def _private_key(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derived(seed, "private key"))


def encrypted(key: bytes, text: bytes, about: str) -> bytes:
    """Nonce and ciphertext of AES-GCM; `about` is authenticated beside them."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, text, about.encode())


def decrypted(key: bytes, data: bytes, about: str) -> bytes:
    """The inverse of `encrypted`; ValueError where it was made with another key or is about something else."""
    try:
        return AESGCM(key).decrypt(data[:NONCE], data[NONCE:], about.encode())
    except InvalidTag:
        raise ValueError("an encrypted share is not authentic") from None


def mask(key: bytes, size: int, dtype: np.dtype) -> np.ndarray:
    """Uniform whole numbers (size,) of an unsigned type: the ChaCha20 stream of a key that is used for nothing else."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(size * dtype.itemsize)), dtype=dtype.newbyteorder("<")).astype(
        dtype
    )


def shares(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares of a seed, 16 bytes each; any `threshold` of them give it back and fewer tell nothing."""
    return [share for _, share in Shamir.split(threshold, count, secret, False)]


def combined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The seed whose shares these are, by their places from 0; ValueError where they are fewer than the threshold."""
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} are needed")
    return bytes(
        Shamir.combine([(place + 1, share) for place, share in sorted(shares.items())[:threshold]], False)
    )
