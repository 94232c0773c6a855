# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks the stream cannot carry, and which a QEMU that is the target cannot load."""

from __future__ import annotations

from collections.abc import Iterable

from .. import _core, disk, errors, params
from . import wire

NAMELESS_TWICE = (
    "a block of the disk without a name comes a second time: the stream holds two such disks, the second most likely "
    "the image file below the first, or a guest was writing, and the two cannot be told apart; "
    "give the source's disk a name, as in -drive id=NAME"
)


def encode_name(backend: disk.BlockBackend) -> bytes:
    """Return a disk's name as it goes over the wire."""
    return backend.name.encode("utf-8", "surrogateescape")


def check_disks(disks: Iterable[disk.BlockBackend], parameters: params.MigrationParameters) -> None:
    """Refuse disks that one stream cannot carry; those that are read-only are not sent."""
    names: set[bytes] = set()
    disks = list(disks)
    count = sum(1 for backend in disks if backend.size and not backend.is_read_only)
    if count > wire.MAX_DISKS and not parameters.qemu:
        raise errors.ParameterError(
            f"a stream carries at most {wire.MAX_DISKS} disks, as its receiver takes no more, not {count}: send them "
            "in several migrations"
        )
    for backend in disks:
        if not backend.is_read_only:
            check_device(backend, names, parameters)
            names.add(encode_name(backend))


def check_device(backend: disk.BlockBackend, names: set[bytes], parameters: params.MigrationParameters) -> None:
    """Refuse a disk that the stream cannot carry beside those called `names`."""
    name = encode_name(backend)
    if len(name) > 255:
        raise errors.ParameterError(
            f"the name of disk {backend.name!r} is {len(name)} bytes long; the stream allows 255"
        )
    if name in names:
        raise errors.ParameterError(f"two disks are called {backend.name!r}: give them names, as in NAME=DISK")
    if parameters.qemu and 0 < backend.size < _core.BLOCK_SIZE and not is_sent_as_zero(backend, parameters):
        raise errors.ParameterError(
            f"disk {backend.name!r} has {backend.size} bytes, and a QEMU from 2.10 on cannot load data for a disk "
            "under 1 MiB: make it 1 MiB at both ends"
        )


def why_left_out(backend: disk.BlockBackend, *, is_described: bool) -> str:
    """Say why no stream holds the disk; "" if one does. A disk without bytes is in the description, if there is one."""
    if backend.is_read_only:
        return "it is read-only"
    if backend.size or is_described:
        return ""
    return "it has no bytes, and what a QEMU of that age reads cannot say so: give the target a disk of 0 bytes"


def check_any_is_sent(disks: Iterable[disk.BlockBackend], *, is_described: bool) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if the stream would hold none of the `disks`."""
    left_out = [(backend.name, why_left_out(backend, is_described=is_described)) for backend in disks]
    if all(why for _, why in left_out):
        reasons = "; ".join(f"disk {name!r}: {why}" for name, why in left_out)
        raise errors.ParameterError(f"there is nothing to send: {reasons}")


def is_sent_as_zero(backend: disk.BlockBackend, parameters: params.MigrationParameters) -> bool:
    """Return whether a disk of one block holds nothing but zeros, and they are sent as such."""
    with errors.failing("cannot read", device=backend.name, offset=0):
        return parameters.zero_blocks and backend.read_block(_core.BlockBuffer(), 0, backend.size)
