# SPDX-License-Identifier: GPL-2.0-or-later
"""The options about who may be at the other end, and how they become parameters."""

from __future__ import annotations

import argparse
import dataclasses

from .. import credentials, params
from ..channel import uri
from . import arguments, tokens

TO_BE_READ = "?"
"""Stands for a token until that is read."""

EXPOSED = (
    "anybody who reaches {uri} can write these targets, until a source has connected: listen at an address that only "
    "the source's network reaches, say --allow NET, listen at tls:, or say --insecure; meanwhile nobody is answered "
    "about old copies, and nothing is resumed"
)


def add_options(parser: argparse.ArgumentParser, end: credentials.End) -> None:
    """Add the options that both ends have, and those of this `end`."""
    folder = f"for tls:, a folder with ca-cert.pem, {end}-cert.pem and {end}-key.pem, as QEMU has it"
    for option, metavar, text in (
        ("--tls-certificates", "DIR", folder),
        ("--tls-ca", "FILE", "the authority that signs the other end's certificate, if not DIR/ca-cert.pem"),
        ("--tls-cert", "FILE", f"the certificate of this end, if not DIR/{end}-cert.pem"),
        ("--tls-key", "FILE", f"the key of this end's certificate, if not DIR/{end}-key.pem"),
    ):
        parser.add_argument(option, type=arguments.word, metavar=metavar, help=text)
    oldest = "the oldest version of TLS; 1.2 is for a QEMU with an old GnuTLS (default: 1.3)"
    parser.add_argument("--tls-min", choices=("1.2", "1.3"), default="1.3", help=oldest)
    if end == "client":
        name = "the name in the receiver's certificate (default: the HOST of URI)"
        parser.add_argument("--tls-hostname", type=arguments.word, metavar="NAME", help=name)
        asks = "ask for the token that the receiver has shown, in place of certificates"
        parser.add_argument("--token", action="store_true", help=asks)
        reads = "read the token from FILE, which nobody else may read; -: from stdin"
        parser.add_argument("--token-file", type=arguments.word, metavar="FILE", help=reads)
        return
    allowed = (
        "take a stream only from who has a certificate with this name; may be said several times (default: from "
        "whoever has one of the authority)"
    )
    parser.add_argument("--allow-peer", action="append", type=arguments.word, metavar="NAME", help=allowed)
    writes = (
        "at tls: without certificates, write the token into FILE, which is made, and removed at the end (default: show "
        "it, if stderr is a terminal)"
    )
    parser.add_argument("--token-file", type=arguments.word, metavar="FILE", help=writes)
    networks = "take connections only from NET, as 10.0.0.0/8, or one address; may be said several times"
    parser.add_argument("--allow", action="append", default=[], type=arguments.word, metavar="NET", help=networks)
    trusts = (
        "do not warn that whoever reaches a plain address can write the targets, answer whoever comes about old "
        "copies, and let disks be resumed by them"
    )
    parser.add_argument("--insecure", action="store_true", help=trusts)


def with_tls(parameters: params.MigrationParameters, args: argparse.Namespace) -> params.MigrationParameters:
    """Return `parameters` with what the options say of TLS: the last one, for it may ask for a token."""
    return dataclasses.replace(parameters, tls=parameters_of(args))


def parameters_of(args: argparse.Namespace) -> credentials.TlsParameters | None:
    """Return what the options say of TLS, None if they say nothing."""
    hostname, allowed = getattr(args, "tls_hostname", None), getattr(args, "allow_peer", None)
    said = (args.tls_certificates, args.tls_ca, args.tls_cert, args.tls_key, hostname, allowed)
    is_asked = hasattr(args, "token") and tokens.is_asked(args)
    if not is_asked and all(value is None for value in said) and args.tls_min == "1.3":
        return None
    found = credentials.TlsParameters(
        certificates=args.tls_certificates,
        authority=args.tls_ca,
        certificate=args.tls_cert,
        key=args.tls_key,
        hostname=hostname or "",
        token=TO_BE_READ * is_asked,
        minimum=args.tls_min,
        allowed_peers=tuple(allowed or ()),
    )
    if is_asked:  # nobody is asked for one that is of no use
        uri.check_tls(uri.parse_uri(args.uri), found)
        found = dataclasses.replace(found, token=tokens.read(args))
    return found
