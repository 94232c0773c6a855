# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom TLS trusts, as Python's `ssl` is told it, and what its errors mean for a person.

Both ends verify each other: a sender checks the receiver's certificate and the name in it, a receiver demands a
certificate of the sender. Only the authority that was named counts, none of the system's. TLS 1.3, or 1.2 with AEAD
ciphers where that was asked for; no tickets, no renegotiation, nothing before the handshake is over.
"""

from __future__ import annotations

import dataclasses
import math
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .. import credentials, errors, pipes, texts
from . import token

AEAD = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The ciphers of TLS 1.2; those of TLS 1.3 are all of this kind."""

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

NO_TLS = "what answers there speaks no TLS: if it is a receiver, it listens at tcp:, or say tls: there"

_REASONS = {
    "UNKNOWN_CA": "the other end does not trust the authority that signed this end's certificate",
    "CERTIFICATE_REQUIRED": "the other end demands a certificate, and this end has shown none",
    "CERTIFICATE_EXPIRED": "the other end says that this end's certificate has expired",
    "BAD_CERTIFICATE": "the other end does not accept this end's certificate",
    "CERTIFICATE_UNKNOWN": "the other end does not accept this end's certificate",
    "UNSUPPORTED_CERTIFICATE": "the other end says that this end's certificate is not for this use",
    "ACCESS_DENIED": "the other end does not allow this end",
    "DID_NOT_RETURN_A_CERTIFICATE": "the other end has shown no certificate",
    "PROTOCOL_VERSION": "the two ends have no version of TLS in common: see --tls-min",
    "UNSUPPORTED_PROTOCOL": "the two ends have no version of TLS in common: see --tls-min",
    "HANDSHAKE_FAILURE": "the two ends have no cipher in common, or one of them demands a certificate",
    "NO_SHARED_CIPHER": "the two ends have no cipher in common",
    "WRONG_VERSION_NUMBER": NO_TLS,
    "BAD_RECORD_MAC": "what came was changed on its way",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "what came was changed on its way",
}
"""What the ends of OpenSSL's names for errors mean; what is not here is said in OpenSSL's words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Security:
    """What a receiver demands of who connects."""

    context: ssl.SSLContext
    allowed_peers: tuple[str, ...] = ()
    token: str = dataclasses.field(default="", repr=False)
    """What makes a sender trusted that has no certificate of an authority."""

    secret: bytes = dataclasses.field(default=b"", repr=False)
    """What that was made of."""

    expires_at: float = math.inf
    """When that is over, on the clock of ``time.monotonic``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """What a sender demands of the receiver."""

    context: ssl.SSLContext
    hostname: str
    pin: bytes | None = None
    """The SHA-256 that the receiver's certificate must have, where it is trusted for that alone."""


def sender_trust(parameters: credentials.TlsParameters, host: str) -> Trust:
    """Return what a sender demands of the receiver at `host`.

    Raises :class:`~blkmig.errors.ParameterError` for files, and for a token, that cannot be used.
    """
    hostname = parameters.hostname or host or "localhost"
    if not parameters.token:
        return Trust(_context(ssl.PROTOCOL_TLS_CLIENT, parameters, parameters.files("client")), hostname)
    said = token.Token.parse(parameters.token)
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT, "1.3")
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # `pin` says more than a name
    token.take(context, said)
    return Trust(context, hostname, said.pin)


def offered_security(secret: bytes) -> Security:
    """Return what a receiver demands that has no certificates: its token. Raises ParameterError if it can make none.

    It is made anew, or, from the `secret` of an earlier one, as that was.
    """
    secret = secret or os.urandom(token.SECRET_NBYTES)
    context = _bare_context(ssl.PROTOCOL_TLS_SERVER, "1.3")
    context.verify_mode, context.num_tickets = ssl.CERT_REQUIRED, 0
    made = token.offer(context, secret)
    expires_at = time.monotonic() + token.LIFETIME_SECONDS
    return Security(context, token=made.text(), secret=secret, expires_at=expires_at)


def receiver_security(parameters: credentials.TlsParameters) -> Security:
    """Return what a receiver demands. Raises :class:`~blkmig.errors.ParameterError` as `sender_trust`."""
    if parameters.token:
        raise errors.ParameterError("a receiver makes its token itself: say none, and no certificates")
    context = _context(ssl.PROTOCOL_TLS_SERVER, parameters, parameters.files("server"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return Security(context, parameters.allowed_peers)


def _context(kind: Any, parameters: credentials.TlsParameters, files: credentials.Files) -> ssl.SSLContext:
    context = _bare_context(kind, parameters.minimum)
    with pipes.in_a_file(files.authority, about="TLS") as authority:
        try:
            context.load_verify_locations(authority)
        except OSError as error:  # SSLError is one
            raise errors.ParameterError(f"TLS: {files.authority!r} holds no certificate of an authority") from error
    if files.certificate is not None and files.key is not None:
        with (
            pipes.in_a_file(files.certificate, about="TLS") as certificate,
            pipes.in_a_file(files.key, about="TLS") as key,
        ):
            try:
                context.load_cert_chain(certificate, key, _no_passphrase)
            except OSError as error:
                raise errors.ParameterError(f"TLS: {_why_not_loaded(files, error)}") from error
    return context


def _bare_context(kind: Any, minimum: str) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = VERSIONS[minimum]
    context.set_ciphers(AEAD)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _no_passphrase() -> NoReturn:
    """Stand for the question that OpenSSL would put to the terminal."""
    raise errors.ParameterError("TLS: the key needs a passphrase: say one that needs none, readable for you alone")


def _why_not_loaded(files: credentials.Files, error: OSError) -> str:
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return f"the key in {files.key!r} is not that of the certificate in {files.certificate!r}"
    return f"{files.certificate!r} and {files.key!r} do not hold a certificate and its key"


def meaning(error: ssl.SSLError) -> str:
    """Return what an error of TLS means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        hint = "; --tls-hostname says another name" if "mismatch" in why else ""
        return f"the certificate of the other end is not accepted: {why}{hint}"
    reason = error.reason or ""
    for name, words in _REASONS.items():
        if reason.endswith(name):
            return words
    return f"TLS failed: {reason.lower().replace('_', ' ') or error}"


def names_of(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names that a verified certificate gives its owner: the alternative ones, else the common name."""
    alternative: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    if alternative:
        return [value for _, value in alternative]
    subject: Sequence[Sequence[tuple[str, str]]] = certificate.get("subject", ())
    return [value for part in subject for key, value in part if key == "commonName"]


def why_not_allowed(certificate: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """Return why the owner of a verified certificate is none of `allowed`; "" if it is, or all are."""
    names = names_of(certificate)
    if not allowed or {name.lower() for name in names} & {name.lower() for name in allowed}:
        return ""
    shown = ", ".join(map(texts.printable, names)) or "nobody"
    return f"its certificate is that of {shown}, who is not allowed (--allow-peer)"
