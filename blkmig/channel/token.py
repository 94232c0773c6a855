# SPDX-License-Identifier: GPL-2.0-or-later
"""A token: what has two ends trust each other for one migration, where nobody has certificates.

::

    receiver   makes a key and a certificate, and a seed ──► token = 1, SHA-256 of the certificate, seed, check
    sender     takes the receiver's certificate if it has that hash, and shows one whose key comes from the seed
    receiver   makes the same one from the seed, and trusts that alone

So it is plain mutual TLS. A token is of one receiver: it is worth nothing when that has ended, or after a day, unless a
session has begun by then, which may take longer. Whoever has it may be the sender; the disk can be read by nobody but
the receiver that made it.

A token is never in an address, an argument, the environment, a log or an error. What it was made of is in the session
file while a source may come to ask what was decided, so that a receiver that is started again can answer it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import datetime
import hashlib
import os
import ssl
from collections.abc import Iterator
from typing import Any

from .. import errors

VERSION = 1
PIN_NBYTES = SEED_NBYTES = 32
CHECK_NBYTES = 4
SECRET_NBYTES = 32 + SEED_NBYTES
LIFETIME_SECONDS = 86400.0
"""How long a receiver takes its token, before a session has begun."""

NEEDS = "a token needs the package cryptography: pip install 'blkmig[tls]', or say certificates (--tls-certificates)"

BAD = "this is no token, or not all of one: copy the whole line that the receiver has shown"

BEGINS = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
ENDS = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
"""The sender's certificate is the same bytes wherever it is made."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """What a token says: the hash of the receiver's certificate, and the seed of the sender's key."""

    pin: bytes
    seed: bytes = dataclasses.field(repr=False)

    def text(self) -> str:
        """Return it as people copy it."""
        said = bytes([VERSION]) + self.pin + self.seed
        return base64.urlsafe_b64encode(said + _check(said)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Return what `text` says. Raises :class:`~blkmig.errors.ParameterError`, which does not quote it."""
        text = "".join(text.split())
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise errors.ParameterError(BAD) from None
        said, check = data[:-CHECK_NBYTES], data[-CHECK_NBYTES:]
        if len(said) != 1 + PIN_NBYTES + SEED_NBYTES or check != _check(said):
            raise errors.ParameterError(BAD)
        if said[0] != VERSION:
            raise errors.ParameterError(f"this token is of version {said[0]}, and here is version {VERSION}")
        return cls(said[1 : 1 + PIN_NBYTES], said[1 + PIN_NBYTES :])


def offer(context: ssl.SSLContext, secret: bytes) -> Token:
    """Give a receiver's `context` a key and a certificate of its own, trust in one sender, and return its token.

    All of it follows from `secret`, of `SECRET_NBYTES` random bytes: the receiver's key, and the seed of the sender's.
    """
    made = _library()
    key = made.ed25519.Ed25519PrivateKey.from_private_bytes(secret[:-SEED_NBYTES])
    certificate = _certificate(made, key, "blkmig receiver")
    _load(context, made, key, certificate)
    token = Token(hashlib.sha256(certificate).digest(), secret[-SEED_NBYTES:])
    context.load_verify_locations(cadata=_sender(made, token)[1])
    return token


def take(context: ssl.SSLContext, token: Token) -> None:
    """Give a sender's `context` the key and the certificate of `token`. The receiver's is checked by `token.pin`."""
    made = _library()
    _load(context, made, *_sender(made, token))


def _sender(made: Any, token: Token) -> tuple[Any, bytes]:
    secret = hashlib.sha256(b"blkmig sender's key" + token.seed).digest()
    key = made.ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    return key, _certificate(made, key, "blkmig sender")


def _certificate(made: Any, key: Any, name: str) -> bytes:
    """Return a certificate that `key` signs itself, the same bytes each time: Ed25519 has no randomness."""
    subject = made.x509.Name([made.x509.NameAttribute(made.x509.oid.NameOID.COMMON_NAME, name)])
    builder = made.x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(BEGINS).not_valid_after(ENDS)
    builder = builder.add_extension(made.x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return bytes(builder.sign(key, None).public_bytes(made.serialization.Encoding.DER))


def _load(context: ssl.SSLContext, made: Any, key: Any, certificate: bytes) -> None:
    """Have `context` show `certificate`. Python takes that from files only, so it gets one that has no name."""
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode() + key.private_bytes(
        made.serialization.Encoding.PEM, made.serialization.PrivateFormat.PKCS8, made.serialization.NoEncryption()
    )
    with _nameless(pem) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _nameless(data: bytes) -> Iterator[str]:
    fd = os.memfd_create("blkmig", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _check(said: bytes) -> bytes:
    return hashlib.sha256(said).digest()[:CHECK_NBYTES]


class _Library:
    """The parts of the package cryptography that are used."""

    def __init__(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        self.x509: Any = x509
        self.serialization: Any = serialization
        self.ed25519: Any = ed25519


def _library() -> Any:
    try:
        return _Library()
    except ImportError as error:
        raise errors.ParameterError(NEEDS) from error
