# SPDX-License-Identifier: GPL-2.0-or-later
"""What two blkmigs say to each other to have one stream go over several connections.

::

    the source    BUNDLE: a command, behind START or as the first record of a later link    id, count
    the target    BUNDLE READY, 0x800c     u16: the count; it waits for the others now
    the source    on each other connection, before all else: "blkB", id, version, index, count
    the target    BUNDLED, 0x800d          u16: over how many connections the stream goes from now on, the count or 1

Whoever has the 16 bytes of the id may take part, so they are random, and nobody prints them. From BUNDLED on, if it
says the count, the stream comes in chunks over all of them: see `channel.stripes`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from .. import errors

MIG_CMD_BUNDLE: Final = 0x8001
"""The number of the command; QEMU's are small."""

MIG_RP_MSG_BUNDLE_READY: Final = 0x800C
MIG_RP_MSG_BUNDLED: Final = 0x800D

LENGTHS: Final = {MIG_RP_MSG_BUNDLE_READY: (2, 2), MIG_RP_MSG_BUNDLED: (2, 2)}
"""Bytes of each message, at least and at most."""

ID_NBYTES: Final = 16
BUNDLE_MAGIC: Final = b"blkB"
VERSION: Final = 1
MAX_COUNT: Final = 16

_BODY: Final = struct.Struct(f">{ID_NBYTES}sH")
BODY_NBYTES: Final = _BODY.size

_PREFACE: Final = struct.Struct(f">{len(BUNDLE_MAGIC)}s{ID_NBYTES}sIII")
PREFACE_NBYTES: Final = _PREFACE.size


class Bundle(NamedTuple):
    """Which connections belong together, and how many they are, the first one included."""

    id: bytes
    connections: int

    def __repr__(self) -> str:
        """Leave the id out, by which a connection is taken for one of ours."""
        return f"Bundle(connections={self.connections})"

    def encode(self) -> bytes:
        """Return the data of the command."""
        return _BODY.pack(self.id, self.connections)

    @property
    def magic(self) -> bytes:
        """Return what each other connection begins with."""
        return BUNDLE_MAGIC + self.id

    def preface(self, index: int) -> bytes:
        """Return what connection `index` says first; the first one, 0, says nothing."""
        return _PREFACE.pack(BUNDLE_MAGIC, self.id, VERSION, index, self.connections)

    def index_of(self, preface: bytes) -> int | None:
        """Return which connection has said this, that begins with `magic`; None if none of the bundle does."""
        *_, version, index, count = _PREFACE.unpack(preface)
        is_ours = (version, count) == (VERSION, self.connections) and 0 < index < self.connections
        return index if is_ours else None


class Bundled(NamedTuple):
    """The target's word: over how many connections."""

    connections: int
    is_ready: bool
    """It waits for the connections; otherwise they are there."""

    def encode(self) -> bytes:
        """Return the message's data."""
        return struct.pack(">H", self.connections)


def parse_bundle(data: bytes, position: int) -> Bundle:
    """Return what a BUNDLE says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    found = Bundle(*_BODY.unpack(data))
    if not 2 <= found.connections <= MAX_COUNT:
        why = f"BUNDLE of {found.connections} connections: 2 to {MAX_COUNT} can be"
        raise errors.StreamError(why, position=position)
    return found


def parse_bundled(kind: int, data: bytes) -> Bundled:
    """Return what the target says to a BUNDLE."""
    return Bundled(int.from_bytes(data, "big"), is_ready=kind == MIG_RP_MSG_BUNDLE_READY)
