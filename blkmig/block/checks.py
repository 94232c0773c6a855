# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks the stream cannot carry, and which a QEMU that is the target cannot load."""

from __future__ import annotations

from .. import _core, disk, errors, params


def encode_name(backend: disk.BlockBackend) -> bytes:
    """Return a disk's name as it goes over the wire."""
    return backend.name.encode("utf-8", "surrogateescape")


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


def is_sent_as_zero(backend: disk.BlockBackend, parameters: params.MigrationParameters) -> bool:
    """Return whether a disk of one block holds nothing but zeros, and they are sent as such."""
    with errors.failing("cannot read", device=backend.name, offset=0):
        return parameters.zero_blocks and backend.read_block(_core.BlockBuffer(), 0, backend.size)
