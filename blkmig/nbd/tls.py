# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TLS connection to an NBD server would trust, checked before the connection is made.

If the folder of certificates is missing, or has no authority's certificate, libnbd silently trusts the authorities of
the system. Before CVE-2024-7383 was fixed, it accepted any certificate in that case. So the files that were named must
be there, and a libnbd without that fix is only used with an authority.
"""

from __future__ import annotations

import ctypes
import os
import re
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from .. import credentials, errors, paths
from . import uri as nbd_uri

AUTHORITY = credentials.AUTHORITY

MENDED = {(1, 18): 5, (1, 20): 2}
"""For a branch of libnbd, the first release with the fix. All later branches have it, older ones do not."""

GIVE = f"say ?tls-certificates=DIR, a folder with the {AUTHORITY} of the authority that signs the server's certificate"


def check(uri: str, *, certificates: str | None = None, psk_file: str | None = None, version: tuple[int, ...]) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` unless the server at `uri` would be verified by a libnbd `version`.

    `certificates` and `psk_file` replace what the URI says.
    """
    for what, path in (("tls_certificates", certificates), ("tls_psk_file", psk_file)):
        if path is not None:
            paths.check(what, path)
    parts = nbd_uri.split(uri)
    if not parts.scheme.lower().startswith("nbds"):
        return
    said = dict(urllib.parse.parse_qsl(parts.query))
    folder, keys = certificates or said.get("tls-certificates"), psk_file or said.get("tls-psk-file")
    if keys is not None:
        credentials.require_readable(Path(keys), about=repr(uri))
        credentials.warn_of_readers(Path(keys), about=repr(uri))
    if folder is not None:
        _check_folder(Path(folder), uri, needs_authority=not is_mended(version))
    elif keys is None and not is_mended(version) and not _has_usual_authority():
        text = ".".join(map(str, version))
        raise errors.ParameterError(f"{uri!r}: libnbd {text} would take any server's certificate: {GIVE}")


def _check_folder(folder: Path, uri: str, *, needs_authority: bool) -> None:
    there = credentials.found_in(folder, "client", about=repr(uri), advice=GIVE)
    if "client-key.pem" in there:
        credentials.warn_of_readers(folder / "client-key.pem", about=repr(uri))
    if AUTHORITY not in there and (needs_authority or not there):
        raise errors.ParameterError(f"{uri!r}: there is no {AUTHORITY} in {str(folder)!r}: {GIVE}")


def _has_usual_authority() -> bool:
    return any((folder / AUTHORITY).is_file() for folder in usual_folders())


def usual_folders() -> Iterable[Path]:
    """Return where libnbd looks for certificates by itself."""
    home = os.environ.get("HOME")
    if os.geteuid() == 0 or home is None:
        return (Path("/etc/pki/libnbd"),)
    return (Path(home, ".pki/libnbd"), Path(home, ".config/pki/libnbd"))


def is_mended(version: tuple[int, ...]) -> bool:
    """Return whether this libnbd verifies a server without an authority being named."""
    major, minor, release = version[:3]
    mended = MENDED.get((major, minor))
    return (major, minor) > max(MENDED) if mended is None else release >= mended


def version_of(library: ctypes.CDLL) -> tuple[int, ...]:
    """Return libnbd's version; (0, 0, 0) where it tells none."""
    handle = library.nbd_create()
    text: bytes = library.nbd_get_version(handle) or b""
    library.nbd_close(handle)
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text.decode())
    return tuple(map(int, found.groups())) if found else (0, 0, 0)
