# SPDX-License-Identifier: GPL-2.0-or-later
"""The slow and obvious model of a stream, against which the package is held: `struct` and slices, nothing shared.

It is written from the pages of docs/wire alone. It reads what blkmig writes and what a QEMU up to 9.0 does, and takes
nothing on trust: what it does not expect is an AssertionError, and a stream that stops early is a :class:`CutShort`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import struct
import zlib
from typing import Any

import model_skip

MIB = 1 << 20
SECTIONS = {1: "START", 2: "PART", 3: "END", 4: "FULL"}


class CutShort(Exception):
    """The stream stops before its end."""


@dataclasses.dataclass
class Record:
    """One record of the disks' section; `payload` is None for a zero block, and a pack has `extents` instead."""

    section: str
    name: str
    sector: int
    payload: bytes | None
    extents: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)

    @property
    def block(self) -> int:
        """Return the number of the block: the last one of a disk may start early, and keeps its number."""
        return -(-self.sector // 2048)


@dataclasses.dataclass
class Section:
    """A live section: what its headers say, and what came of it."""

    idstr: str
    instance_id: int
    version_id: int
    section_id: int
    parts: int = 0
    nbytes: int = 0
    ended: bool = False


@dataclasses.dataclass
class Stream:
    """What a stream says."""

    records: list[Record] = dataclasses.field(default_factory=list)
    sections: list[str] = dataclasses.field(default_factory=list)
    """The kinds of the records of the section of the disks, in order."""

    table: list[tuple[str, int, int, int]] = dataclasses.field(default_factory=list)
    """Of a section `blkmig`, each disk's name, size, granule and flags."""

    flushes: list[int] = dataclasses.field(default_factory=list)
    barriers: list[int] = dataclasses.field(default_factory=list)
    extras: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    """Kind and body of each EXTRA."""

    progress: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    """The upper bits of each EOS word of the block section."""

    vmdescription: dict[str, Any] | None = None
    is_sealed: bool = False
    machine: str | None = None
    capabilities: list[str] = dataclasses.field(default_factory=list)
    has_footers: bool | None = None
    commands: list[int] = dataclasses.field(default_factory=list)
    live: list[Section] = dataclasses.field(default_factory=list)
    device_state: int = 0
    """Bytes of the FULL sections."""

    reached_eof: bool = False

    @property
    def marks(self) -> int:
        """Return the marks of the first EOS word."""
        return self.ends[0] if self.ends else 0

    def said_sizes(self) -> dict[int, int]:
        """Return the sizes that EOS words say before the first block, by the CRC-32 of the disk's name."""
        said = [number for number in self.ends[1:] if number >> 2 & 3]
        pairs = zip(said[::2], said[1::2], strict=True)
        assert all((first >> 2 & 3, second >> 2 & 3) == (1, 2) for first, second in pairs)
        return {
            first >> 4 & 0xFFFFFFFF: first >> 36 << 51 | second >> 4
            for first, second in zip(said[::2], said[1::2], strict=True)
        }

    def disk(self, name: str, size: int, before: bytes = b"") -> bytes:
        """Return the disk that a target of `size` bytes holds after the stream."""
        image = bytearray(before.ljust(size, b"\0"))
        for record in self.records:
            if record.name == name:
                for start, data in record.extents or [(record.sector * 512, record.payload or bytes(MIB))]:
                    assert start < size, f"block at {start} of a disk of {size} bytes"
                    image[start : start + len(data)] = data[: min(len(data), size - start)]
        assert len(image) == size
        return bytes(image)

    def blocks(self, name: str) -> list[int]:
        """Return the sectors of the records of a disk, in their order."""
        return [record.sector for record in self.records if record.name == name]


def parse(data: bytes) -> Stream:
    """Read a stream that blkmig wrote with configuration section and footers, and nothing but its disks."""
    stream, position = read(data)
    assert position == len(data)
    assert [section.idstr for section in stream.live] in ([], ["block"], ["blkmig"])
    assert stream.has_footers is not False
    return stream


def read(data: bytes) -> tuple[Stream, int]:
    """Read any stream to its end; return what it says and how long it is."""
    reader, stream = Reader(data), Stream()
    read_into(reader, stream)
    return stream, reader.position


def read_into(reader: Reader, stream: Stream) -> None:
    """Read a stream; what came before an error stays in `stream`."""
    assert reader.take(4, "magic") == b"QEVM"
    assert reader.unpack(">I", "version") == 3
    if reader.peek() == 7:
        read_configuration(reader, stream)
    while (kind := reader.peek()) != 0:
        if kind == 8:
            read_command(reader, stream)
        elif kind == 4 and not reader.data.startswith((b"\5block", b"\6blkmig"), reader.position + 5):
            read_device_state(reader, stream)
            return
        else:
            read_section(reader, stream)
    reader.take(1, "EOF")
    stream.reached_eof = True
    if not reader.at_end():
        read_description(reader, stream)


def read_configuration(reader: Reader, stream: Stream) -> None:
    """Read the configuration section and its subsections."""
    reader.take(1, "CONFIGURATION")
    stream.machine = reader.take(reader.unpack(">I", "length of the machine's name"), "machine").decode()
    while reader.peek() == 5:
        reader.take(1)
        name = reader.counted()
        assert reader.unpack(">I") == 1
        if name == "configuration/capabilities":
            stream.capabilities = [reader.counted() for _ in range(reader.unpack(">I"))]
        else:
            reader.take({"configuration/target-page-bits": 4, "configuration/uuid": 16}[name])


def read_command(reader: Reader, stream: Stream) -> None:
    """Read a command; of those that come before the disks, all have their data behind their length."""
    reader.take(1, "COMMAND")
    stream.commands.append(reader.unpack(">H", "which"))
    reader.take(reader.unpack(">H", "length of its data"), "data")


def read_section(reader: Reader, stream: Stream) -> None:
    """Read header, payload and footer of a live section."""
    start, kind = reader.position, SECTIONS[reader.unpack(">B", lambda kind: SECTIONS[kind[0]])]
    section_id = reader.unpack(">I", "section id")
    if kind in ("START", "FULL"):
        section = Section(reader.counted("name of the section"), *reader.two("instance", "version"), section_id)
        stream.live.append(section)
    section = next(section for section in stream.live if section.section_id == section_id)
    if section.idstr in ("block", "blkmig"):
        assert (section.instance_id, section.version_id) == (0, 1)
        stream.sections.append(kind)
        if section.idstr == "blkmig" and kind == "START":
            read_table(reader, stream)
        read_blocks(reader, kind, stream)
    elif section.idstr == "ram":
        model_skip.skip_ram(reader, "x-ignore-shared" in stream.capabilities)
    else:
        assert section.idstr == "dirty-bitmap"
        model_skip.skip_dirty_bitmap(reader)
    if stream.has_footers is None:
        stream.has_footers = reader.peek() == 0x7E
    if stream.has_footers:
        assert reader.unpack(">B", "FOOTER") == 0x7E
        assert reader.unpack(">I", "section id") == section_id
    section.parts += kind == "PART"
    section.ended |= kind in ("END", "FULL")
    section.nbytes += reader.position - start


def read_table(reader: Reader, stream: Stream) -> None:
    """Read the table with which a section `blkmig` begins."""
    word, nbytes = reader.unpack(">Q", "TABLE"), reader.unpack(">I", "length")
    assert word & 0x1FF == 0x20
    body = reader.take(nbytes, "the disks")
    assert reader.unpack(">I", "CRC-32") == zlib.crc32(body)
    disks, stream.table = Reader(body), []
    for _ in range(word >> 9):
        stream.table.append((disks.counted(), *struct.unpack(">QIB", disks.take(13))))
    assert disks.at_end()
    assert 1 <= len(stream.table) <= 256
    assert all(granule in [1 << shift for shift in range(12, 21)] for _, _, granule, _ in stream.table)


def put_zeros_back(reader: Reader, places: list[tuple[int, int]], zeros: bytes) -> None:
    """Put the pieces of a payload that are zeros, by a ZEROS, where they would stand in what is read next."""
    cells = [(extent, offset // 512) for extent in places for offset in range(extent[0], sum(extent), 512)]
    pieces = [len(list(group)) * 512 for _, group in itertools.groupby(cells, lambda cell: (cell[0], cell[1] // 8))]
    bits = [zeros[number // 8] >> (7 - number % 8) & 1 for number in range(8 * len(zeros))]
    assert len(zeros) == -(-len(pieces) // 8)
    assert [any(bits), any(bits[len(pieces) :])] == [True, False]
    for number in itertools.compress(range(len(pieces)), bits):
        place = reader.position + sum(pieces[:number])
        reader.data = reader.data[:place] + bytes(pieces[number]) + reader.data[place:]


def read_pack(reader: Reader, section: str, count: int, zeros: bytes = b"") -> Record:
    """Read the rest of a PACK of so many extents, before which a ZEROS may have come."""
    name = reader.counted("disk")
    places = [(reader.unpack(">Q", "offset"), reader.unpack(">I", "length")) for _ in range(count)]
    assert 1 <= count <= 256
    assert sum(length for _, length in places) <= MIB
    assert all(one + length <= other for (one, length), (other, _) in itertools.pairwise(places))
    if zeros:
        put_zeros_back(reader, places, zeros)
    extents = [(offset, reader.take(length, "contents")) for offset, length in places]
    return Record(section, name, places[0][0] // 512, None, extents)


def read_extra(reader: Reader) -> bytes:
    """Read the body of an EXTRA."""
    nbytes = reader.unpack(">I", "length")
    assert nbytes <= MIB
    return reader.take(nbytes, "body")


def parse_session(body: bytes) -> tuple[bytes, int, int, int]:
    """Return key, incarnation, attempt and seconds of a SESSION."""
    assert len(body) == 28
    incarnation, attempt, seconds = struct.unpack(">III", body[16:])
    assert attempt >= 1
    assert seconds <= 86400
    return body[:16], incarnation, attempt, seconds


def read_blocks(reader: Reader, section: str, stream: Stream) -> None:
    """Read the records of one section of the block handler."""
    zeros = b""
    while True:
        assert reader.peek() != 0x7E, "the source could not read its disk"
        word = reader.unpack(">Q", describe_word)
        sector, flags = word >> 9, word & 0x1FF
        if flags & 1:
            name = reader.counted("disk")
            payload = None if flags & 8 else reader.take(MIB, "the contents of the block")
            stream.records.append(Record(section, name, sector, payload))
        elif flags == 0x10 and stream.table:
            stream.records.append(read_pack(reader, section, sector, zeros))
            zeros = b""
        elif flags == 0x40 and stream.table:
            stream.flushes.append(sector)
        elif flags == 0x80 and stream.table:
            stream.barriers.append(sector)
        elif flags == 0x100 and stream.table:
            stream.extras.append((sector, read_extra(reader)))
            zeros = stream.extras[-1][1] if sector == 8 else zeros
        elif flags & 4:
            stream.progress.append(sector)
        else:
            assert flags & 2, hex(flags)
        if flags & 2:
            stream.ends.append(sector)
            return


def describe_word(value: bytes) -> str:
    """Return what a word of the disks' section says."""
    word = int.from_bytes(value)
    sector, flags = word >> 9, word & 0x1FF
    if flags & 1:
        return f"{'ZERO_BLOCK' if flags & 8 else 'DEVICE_BLOCK'} at sector {sector}"
    if flags & 4:
        return f"PROGRESS {sector} %"
    own = {0x10: "PACK of %d extents", 0x20: "TABLE of %d disks", 0x40: "FLUSH %d", 0x80: "BARRIER %d"}
    own[0x100] = "EXTRA of kind %d"
    if flags in own:
        return own[flags] % sector
    if sector >> 2 & 3 and not sector & 3:
        return "EOS, size of the disk with this CRC-32" if sector >> 2 & 3 == 1 else f"EOS, {sector >> 4} bytes"
    return f"EOS, marks {sector:#x}" if sector else "EOS"


def read_device_state(reader: Reader, stream: Stream) -> None:
    """Find the end behind sections that do not tell their length: the last 00 06 whose description ends the stream."""
    start, data = reader.position, reader.data
    eof = data.rfind(b"\0\6", start)
    while eof >= 0 and eof + 6 + int.from_bytes(data[eof + 2 : eof + 6]) != len(data):
        eof = data.rfind(b"\0\6", start, eof + 1)
    if eof < 0:
        assert data[-1] == 0
        eof = len(data) - 1
    stream.device_state, stream.reached_eof, reader.position = eof - start, True, eof + 1
    if not reader.at_end():
        read_description(reader, stream)


def read_description(reader: Reader, stream: Stream) -> None:
    """Read the description, and check its seal if it has one."""
    assert reader.unpack(">B", "VMDESCRIPTION") == 6
    text = reader.take(reader.unpack(">I", "length"), "description")
    stream.vmdescription = json.loads(text)
    body, mark, checksum = text.rpartition(b',"checksum":"')
    if mark:
        assert checksum == b'%08x"}' % zlib.crc32(body)
        stream.is_sealed = True
        del stream.vmdescription["checksum"]


def digest(contents: bytes) -> str:
    """Return the digest of a whole disk."""
    last = max(-(-len(contents) // 512) * 512 - MIB, 0)
    starts = [*range(0, last, MIB), last] if contents else []
    padded = contents.ljust(max(MIB, -(-len(contents) // 512) * 512), b"\0")
    digests = [hashlib.blake2b(padded[start : start + MIB], digest_size=16).digest() for start in starts]
    return hashlib.blake2b(b"".join(digests), digest_size=32).hexdigest()


def tree_digest(leaves: list[bytes]) -> str:
    """Return the digest of a whole disk as a tree, from those of its blocks."""
    level = 0
    while len(leaves) > 1 or not level:
        level += 1
        groups = [b"".join(leaves[start : start + 256]) for start in range(0, max(len(leaves), 1), 256)]
        leaves = [
            hashlib.blake2b(group, digest_size=32, person=b"blkmig level %d" % level).digest() for group in groups
        ]
    return leaves[0].hex()


def digest_of_all(disks: dict[str, bytes]) -> str:
    """Return the digest of all disks of a stream, names and sizes included."""
    lines = sorted(f"{len(disk)} {digest(disk)} {name.encode().hex()}" for name, disk in disks.items())
    return hashlib.blake2b("\n".join([str(len(disks)), *lines]).encode(), digest_size=32).hexdigest()


class Reader:
    """Bytes with a position; `trace` has what was taken, and what it is."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.trace: list[tuple[int, bytes, str]] = []

    def take(self, count: int, what: Any = "") -> bytes:
        """Return the next `count` bytes, all of them."""
        piece = self.data[self.position : self.position + count]
        if len(piece) < count:
            raise CutShort(f"stream ends at {self.position} + {len(piece)}, not {count}")
        if piece:
            self.trace.append((self.position, piece, what(piece) if callable(what) else what))
        self.position += count
        return piece

    def unpack(self, fmt: str, what: Any = "") -> int:
        """Return the next integer."""
        value: int = struct.unpack(fmt, self.take(struct.calcsize(fmt), what))[0]
        return value

    def two(self, first: str, second: str) -> tuple[int, int]:
        """Return the next two integers of 32 bits."""
        return self.unpack(">I", first), self.unpack(">I", second)

    def counted(self, what: str = "") -> str:
        """Return the text behind a byte that says how long it is."""
        return self.take(self.unpack(">B", "length"), what).decode()

    def peek(self) -> int:
        """Return the next byte without taking it."""
        if self.at_end():
            raise CutShort(f"stream ends at {self.position}")
        return self.data[self.position]

    def at_end(self) -> bool:
        """Return whether nothing is left."""
        return self.position == len(self.data)
