# SPDX-License-Identifier: GPL-2.0-or-later
"""How a running QEMU and its disks are named.

``qemu:PATH[,device=ID][,node=NAME][,nbd=ADDRESS][,export=ID][,read=nbd]``
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Sequence
from typing import Any

from .. import errors, paths
from ..nbd import uri as nbd_uri

SCHEME = "qemu:"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QemuAddress:
    """A QMP socket, and which disks of its QEMU are meant."""

    path: str
    """The QMP socket."""

    devices: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    """Which disks, by the device's id or by the node's name; all writable ones if both are empty."""

    nbd: str | None = None
    """The URI of QEMU's NBD server: one that is running already, or where blkmig is to start one."""

    exports: tuple[str, ...] = ()
    """The exports through which others write; if this is empty, blkmig looks for them."""

    read: str = "auto"
    """``auto`` reads a raw image's file if that is possible, with ``nbd`` QEMU reads always."""

    and_others: bool = False
    """Whether all other writable disks are meant, besides those that are named."""

    @property
    def means_all(self) -> bool:
        """Whether all writable disks are meant."""
        return self.and_others or not (self.devices or self.nodes)


def is_qemu_address(text: str) -> bool:
    """Tell whether `text` names a running QEMU."""
    return text.startswith(SCHEME)


def parse(text: str) -> QemuAddress:
    """Parse ``qemu:PATH,...``; a comma in a value is written twice, as for QEMU.

    `device`, `node` and `export` may be given more than once. `nbd` takes an NBD URI or ``unix:PATH``. With
    ``read=nbd`` QEMU reads its images always, even if blkmig could read their files. Raises
    :class:`~blkmig.errors.ParameterError`.
    """
    if not is_qemu_address(text):
        raise errors.ParameterError(f"{text!r} does not start with {SCHEME!r}")
    path, *options = paths.split(text.removeprefix(SCHEME))
    if not path:
        raise errors.ParameterError(f"{text!r} names no QMP socket: write qemu:PATH")
    values: dict[str, list[str]] = {"device": [], "node": [], "nbd": [], "export": [], "read": []}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in values or not equals or not value:
            raise errors.ParameterError(
                f"{option!r} in {text!r} is not known: say device=ID, node=NAME, nbd=URI, export=ID or read=nbd, and "
                f"{paths.COMMA_TWICE}"
            )
        values[key].append(value)
    if len(values["nbd"]) > 1:
        raise errors.ParameterError(f"{text!r}: a QEMU has one NBD server, so nbd= can stand there once")
    if set(values["read"]) - {"auto", "nbd"}:
        raise errors.ParameterError(f"{text!r}: read= is auto or nbd")
    return QemuAddress(
        path=path,
        devices=tuple(values["device"]),
        nodes=tuple(values["node"]),
        nbd=_nbd_uri(values["nbd"][0]) if values["nbd"] else None,
        exports=tuple(values["export"]),
        read="nbd" if "nbd" in values["read"] else "auto",
    )


def _nbd_uri(text: str) -> str:
    if text.startswith("unix:"):
        return nbd_uri.unix_uri(text.removeprefix("unix:"))
    if not nbd_uri.is_nbd_uri(text):
        raise errors.ParameterError(f"nbd={text!r} is neither an NBD URI nor unix:PATH")
    nbd_uri.split(text)
    return text


def merge(addresses: Sequence[QemuAddress]) -> QemuAddress:
    """Merge several addresses of one monitor: all of their disks are meant, and QEMU reads them if one address says so.

    Raises :class:`~blkmig.errors.ParameterError` if they name different NBD servers.
    """
    servers = list(dict.fromkeys(each.nbd for each in addresses if each.nbd is not None))
    if len(servers) > 1:
        raise errors.ParameterError(f"{addresses[0].path!r}: a QEMU has one NBD server, not {' and '.join(servers)}")
    return QemuAddress(
        path=addresses[0].path,
        devices=tuple(name for each in addresses for name in each.devices),
        nodes=tuple(name for each in addresses for name in each.nodes),
        nbd=servers[0] if servers else None,
        exports=tuple(dict.fromkeys(name for each in addresses for name in each.exports)),
        read="nbd" if any(each.read == "nbd" for each in addresses) else "auto",
        and_others=any(each.means_all for each in addresses),
    )


def socket_address(uri: str) -> dict[str, Any] | None:
    """Return the NBD server's `uri` as QMP's SocketAddress; None for a server that blkmig cannot start, as with TLS."""
    parts = nbd_uri.split(uri)
    if parts.scheme == "nbd+unix":
        socket_path = urllib.parse.parse_qs(parts.query).get("socket", [""])[0]
        return {"type": "unix", "data": {"path": socket_path}} if socket_path else None
    if parts.scheme == "nbd" and parts.hostname:
        return {"type": "inet", "data": {"host": parts.hostname, "port": str(parts.port or 10809)}}
    return None
