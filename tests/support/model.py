# SPDX-License-Identifier: GPL-2.0-or-later
"""The slow and obvious model of a stream, against which the package is held: `struct` and slices, nothing shared.

It knows the container that blkmig writes and the ``block`` section, and takes nothing on trust: what it does not expect
is an AssertionError.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

MIB = 1 << 20


@dataclasses.dataclass
class Record:
    """One record of the block section; `payload` is None for a zero block."""

    section: str
    name: str
    sector: int
    payload: bytes | None


@dataclasses.dataclass
class Stream:
    """What a stream says."""

    records: list[Record]
    sections: list[str]
    progress: list[int]
    vmdescription: dict[str, Any] | None

    def disk(self, name: str, size: int, before: bytes = b"") -> bytes:
        """Return the disk that a target of `size` bytes holds after the stream."""
        image = bytearray(before.ljust(size, b"\0"))
        for record in self.records:
            if record.name == name:
                start = record.sector * 512
                assert start < size, f"block at {start} of a disk of {size} bytes"
                data = record.payload or bytes(MIB)
                image[start : start + MIB] = data[: min(MIB, size - start)]
        assert len(image) == size
        return bytes(image)

    def blocks(self, name: str) -> list[int]:
        """Return the sectors of the records of a disk, in their order."""
        return [record.sector for record in self.records if record.name == name]


def parse(data: bytes) -> Stream:
    """Read a stream that blkmig wrote with configuration section and footers."""
    reader = Reader(data)
    assert reader.take(4) == b"QEVM"
    assert reader.unpack(">I") == 3
    stream = Stream([], [], [], None)
    ids: dict[int, str] = {}
    if reader.peek() == 7:
        reader.take(1)
        reader.take(reader.unpack(">I"))
    while (kind := reader.unpack(">B")) != 0:
        if kind == 8:
            reader.unpack(">H")
            reader.take(reader.unpack(">H"))
            continue
        section_id = reader.unpack(">I")
        if kind == 1:
            ids[section_id] = reader.take(reader.unpack(">B")).decode()
            assert reader.unpack(">I") == 0
            assert reader.unpack(">I") == 1
        assert ids[section_id] == "block"
        name = {1: "START", 2: "PART", 3: "END"}[kind]
        stream.sections.append(name)
        parse_payload(reader, name, stream)
        assert reader.unpack(">B") == 0x7E
        assert reader.unpack(">I") == section_id
    if not reader.at_end():
        assert reader.unpack(">B") == 6
        stream.vmdescription = json.loads(reader.take(reader.unpack(">I")))
    assert reader.at_end()
    return stream


def parse_payload(reader: Reader, section: str, stream: Stream) -> None:
    """Read the records of one section of the block handler."""
    while True:
        word = reader.unpack(">Q")
        sector, flags = word >> 9, word & 0x1FF
        if flags & 1:
            name = reader.take(reader.unpack(">B")).decode()
            stream.records.append(Record(section, name, sector, None if flags & 8 else reader.take(MIB)))
        elif flags == 4:
            stream.progress.append(sector)
        else:
            assert flags == 2, hex(flags)
            return


class Reader:
    """Bytes with a position."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, all of them."""
        piece = self.data[self.position : self.position + count]
        assert len(piece) == count, f"stream ends at {self.position} + {len(piece)}, not {count}"
        self.position += count
        return piece

    def unpack(self, fmt: str) -> int:
        """Return the next integer."""
        value: int = struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]
        return value

    def peek(self) -> int:
        """Return the next byte without taking it."""
        return self.data[self.position]

    def at_end(self) -> bool:
        """Return whether nothing is left."""
        return self.position == len(self.data)
