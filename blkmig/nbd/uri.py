# SPDX-License-Identifier: GPL-2.0-or-later
"""What the URI of an NBD export says: the server, the export, and whether the connection is encrypted.

As the NBD project writes them: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
"""

from __future__ import annotations

import os
import urllib.parse

from .. import errors, paths

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")


def is_nbd_uri(text: str) -> bool:
    """Tell whether `text` starts like an NBD URI."""
    return text.partition(":")[0].lower() in SCHEMES


def split(uri: str) -> urllib.parse.SplitResult:
    """Return the parts of `uri`; raise :class:`~blkmig.errors.ParameterError` if its host or its port is none.

    A port without a host is refused, too: libnbd drops it, and connects to another server, on the usual port.
    """
    if not isinstance(uri, str):
        raise errors.WrongType(f"an NBD URI must be a text, not {uri!r}")
    why = paths.why_no_name(uri)
    if why:
        raise errors.ParameterError(f"{uri!r} is not an NBD URI: it {why}")
    try:
        parts = urllib.parse.urlsplit(uri)
        _ = parts.port  # which is looked at now
    except ValueError as error:
        raise errors.ParameterError(f"{uri!r} is not an NBD URI: {error}") from error
    if parts.netloc and not parts.hostname and not parts.scheme.endswith("+unix"):
        raise errors.ParameterError(f"{uri!r} does not say which host: this machine is localhost")
    return parts


def unix_uri(socket_path: str, export: str = "") -> str:
    """Return the URI of an export behind a Unix socket."""
    return f"nbd+unix:///{urllib.parse.quote(export, safe='')}?socket={urllib.parse.quote(os.fsencode(socket_path))}"


def export_of(uri: str) -> str:
    """Return the name of the export that `uri` means, "" for the server's default."""
    return urllib.parse.unquote(split(uri).path.removeprefix("/"))


def place_of(uri: str) -> tuple[str, str, int | None, str]:
    """Return what two URIs of one export have in common: the server's socket or host, the port, and the export."""
    parts = split(uri)
    export = export_of(uri)
    if "+unix" in parts.scheme:
        sockets = dict(urllib.parse.parse_qsl(parts.query)).get("socket", "")
        return "unix", os.path.realpath(sockets), None, export
    return parts.scheme.partition("+")[2], parts.hostname or "localhost", parts.port or 10809, export


def host_of(uri: str) -> str | None:
    """Return the host that `uri` names; None if that is this machine by a Unix socket, or one of its VMs by vsock."""
    parts = split(uri)
    return None if "+" in parts.scheme else parts.hostname


def with_export(uri: str, export: str) -> str:
    """Return `uri` with another export name."""
    parts = split(uri)
    query = f"?{parts.query}" if parts.query else ""  # geturl() would drop the slashes of an empty host
    return f"{parts.scheme}://{parts.netloc}/{urllib.parse.quote(export, safe='')}{query}"


def check_uri(uri: str, wants_tls: object) -> str:
    """Return `uri`, or raise :class:`~blkmig.errors.ParameterError` if it is none or would drop TLS silently."""
    scheme = uri.partition(":")[0].lower()
    if scheme not in SCHEMES:
        raise errors.ParameterError(f"{uri!r} is not an NBD URI: it must start with one of {', '.join(SCHEMES)}")
    query = split(uri).query
    if not scheme.startswith("nbds") and (wants_tls or "tls-" in query):
        raise errors.ParameterError(f"{uri!r} would not be encrypted: say nbds instead of nbd")
    return uri
