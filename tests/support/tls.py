# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates and keys made for one test, in the directory layout of QEMU, nbdkit and libnbd."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from pathlib import Path

import peers


def openssl(*arguments: str | Path) -> None:
    """Run openssl quietly."""
    subprocess.run(["openssl", *arguments], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def make_certificates(folder: Path, *, host: str) -> Path:
    """Make an authority, and a server certificate for `host` and a client's, and return the directory with them."""
    peers.require("openssl")
    folder.mkdir()
    authority = ["-CA", folder / "ca-cert.pem", "-CAkey", folder / "ca-key.pem"]
    make_key(folder, "ca", "/CN=test authority", ["-x509", "-addext", "keyUsage=critical,keyCertSign"])
    extensions = ["-addext", f"subjectAltName=DNS:{host}", "-addext", "extendedKeyUsage=serverAuth"]
    make_key(folder, "server", f"/CN={host}", [*authority, *LEAF, *extensions])
    make_key(folder, "client", "/CN=client", [*authority, *LEAF, "-addext", "extendedKeyUsage=clientAuth"])
    return folder


LEAF = ["-x509", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature"]


def make_key(folder: Path, who: str, subject: str, options: list[str | Path]) -> None:
    """Make a key and a certificate for it."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", folder / f"{who}-key.pem"]
    openssl("req", *key, "-out", folder / f"{who}-cert.pem", "-days", "2", "-subj", subject, *options)


def sign(folder: Path, who: str, subject: str, *, host: str, start: str, end: str) -> Path:
    """Make a key, and a certificate for `host` that the authority of `folder` signs for a time, as 20200131000000Z.

    Return a folder in which it is both ends'.
    """
    made = folder.with_name(f"{folder.name}-{who}")
    made.mkdir()
    (made / "ca.cnf").write_text(CONFIGURATION.format(host=host))
    (made / "index.txt").touch()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", made / "server-key.pem"]
    openssl("req", "-new", *key, "-out", made / "request", "-subj", subject)
    authority = ["-cert", folder / "ca-cert.pem", "-keyfile", folder / "ca-key.pem"]
    times = ["-startdate", start, "-enddate", end]
    files = ["-config", made / "ca.cnf", "-in", made / "request", "-out", made / "server-cert.pem", "-outdir", made]
    with contextlib.chdir(made):
        openssl("ca", "-batch", "-notext", *authority, *times, *files)
    for name in ("cert", "key"):
        shutil.copy(made / f"server-{name}.pem", made / f"client-{name}.pem")
    shutil.copy(folder / "ca-cert.pem", made)
    return made


CONFIGURATION = """\
[ca]
default_ca = it
[it]
database = index.txt
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:{host}
"""


def make_psk(path: Path, user: str) -> Path:
    """Write a pre-shared key for `user`."""
    path.write_text(f"{user}:{secrets.token_hex(32)}\n")
    path.chmod(0o600)
    return path
