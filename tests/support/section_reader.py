# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of the section ``blkmig``, written from docs/wire/blkmig.md alone: nothing is shared with the package.

It takes nothing on trust: what the page does not allow is an AssertionError. `model`, which knows all pages, reads what
stands around the section, and takes its tables and packs apart.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import zlib
from typing import Any

import blake3
import model

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20
PAGE = 4096
EOS, PROGRESS, DATA, ZERO, PACK, FLUSH, BARRIER, EXTRA = 0x02, 0x04, 0x01, 0x09, 0x10, 0x40, 0x80, 0x100
PROOF, PROVEN = 5, 6
BLOCKS, ZEROS, PIECES = 0, 1, 2
NAMES = {DATA: "DATA", ZERO: "ZERO", PROGRESS: "PROGRESS", PACK: "PACK"}
NAMES |= {FLUSH: "FLUSH", BARRIER: "BARRIER", EXTRA: "EXTRA"}


@dataclasses.dataclass
class Disk:
    """One disk: what the table says, and what came."""

    name: str
    size: int
    granule: int
    top_only: bool
    image: bytearray
    came: set[int] = dataclasses.field(default_factory=set)
    """Blocks that came whole, or in parts that were vouched for."""

    asked: set[int] = dataclasses.field(default_factory=set)
    vouched: set[int] = dataclasses.field(default_factory=set)
    settled: set[int] = dataclasses.field(default_factory=set)
    """Of an old copy, pieces of 4 KiB: those of blocks of which a digest came, those that it vouches for, and those
    that were settled or written since."""

    records: int = 0
    """DATA and ZERO records."""

    again: int = 0
    again_sum: int = 0
    """The two numbers of the key `resent`, so far."""

    packs: int = 0
    pack_bytes: int = 0
    chain: int = 0

    @property
    def end(self) -> int:
        """Return where the last sector ends."""
        return -(-self.size // 512) * 512

    proven: dict[int, bool] = dataclasses.field(default_factory=dict)
    """Whether the last PROOF of a block is true of the image at the end."""

    def block(self, number: int) -> bytes:
        """Return what a block holds inside the exact size."""
        start = min(number * MIB, max(0, self.end - MIB))
        return bytes(self.image[start : start + MIB])

    def write(self, offset: int, data: bytes) -> None:
        """Write what lies inside the disk."""
        inside = data[: max(0, self.size - offset)]
        self.image[offset : offset + len(inside)] = inside
        end = offset + len(inside)
        touched = set(range(offset // PAGE, -(-end // PAGE)))
        self.vouched -= touched
        whole = {page for page in touched if offset <= page * PAGE and min(page * PAGE + PAGE, self.size) <= end}
        self.settle(whole & self.asked)

    def vouch(self, block: int) -> None:
        """Take a digest of all of a block, or that it is zeros."""
        pages = set(range(block * 256, min(block * 256 + 256, -(-self.size // PAGE))))
        self.vouched |= pages
        self.asked |= pages

    def settle(self, pages: set[int]) -> None:
        """Take note that these pieces have come."""
        self.settled |= pages
        for block in {page // 256 for page in pages}:
            if set(range(block * 256, min(block * 256 + 256, -(-self.size // PAGE)))) <= self.settled:
                self.came.add(block)


class SectionReader:
    """Reads a stream; `disks` are those of its table, `trace` names the records in their order.

    Over `old` copies of disks, `answers` are the messages DIGEST that were said meanwhile.
    """

    def __init__(self, data: bytes, *, old: dict[str, bytes] | None = None, answers: list[bytes] | None = None) -> None:
        self.old = old or {}
        self.answers = answers or []
        self.asks = 0
        self.reader = model.Reader(data)
        self.disks: dict[str, Disk] = {}
        self.trace: list[str] = []
        self.extras: list[tuple[int, bytes]] = []
        self.flushes = self.packs = self.barriers = 0
        self.zeros, self.left_out = b"", 0
        """The last ZEROS, until its pack comes; how many pieces were left out."""

        self.frames = self.saved = self.frame = 0
        """Payloads that came as frames, and the bytes they saved; how long the frame is that comes next."""

        self.percent = 0
        self.description: dict[str, Any] = {}

    def read(self) -> SectionReader:
        """Read the stream to its end."""
        reader, around = self.reader, model.Stream()
        assert reader.take(8) == b"QEVM\0\0\0\3"
        if reader.peek() == 7:
            model.read_configuration(reader, around)
        kinds = ""
        while (kind := reader.peek()) != 0:
            if kind == 8:
                model.read_command(reader, around)
                continue
            kinds += self.read_part(reader.unpack(">B"))
        assert kinds[0] == "S"
        assert kinds[-1] == "E"
        assert set(kinds[1:-1]) <= {"P"}
        reader.take(1)
        model.read_description(reader, around)
        assert around.is_sealed, "a sealed description always ends the stream"
        assert around.vmdescription is not None
        self.description = around.vmdescription["blkmig"]
        if "proof" in self.description:
            self.read_last_proofs()
        assert reader.at_end()
        return self

    def read_last_proofs(self) -> None:
        """Read what stands behind the description, and take all proofs together: of each block, the last one."""
        assert all(kind != PROVEN for kind, _ in self.extras)
        proofs = [body for kind, body in self.extras if kind == PROOF]
        live, kind = len(proofs), PROOF
        while kind == PROOF:
            word = self.reader.unpack(">Q")
            assert word & 0x1FF == EXTRA
            kind = word >> 9
            proofs.append(model.read_extra(self.reader))
        assert kind == PROVEN
        assert struct.unpack(">Q", proofs.pop()) == (len(proofs),)
        for number, body in enumerate(proofs):
            index, form, block = struct.unpack_from(">HBQ", body)
            assert (form == PIECES) == (number >= live)
            self.take_proof([*self.disks.values()][index], form, block, body[11:])

    def take_proof(self, disk: Disk, form: int, block: int, rest: bytes) -> None:
        """Note whether what a PROOF says is true of the disk as it has come."""
        if form == PIECES:
            (length,) = struct.unpack_from(">I", rest)
            data = disk.block(block)
            pieces = [data[at : at + length] for at in range(0, len(data), length)]
            disk.proven[block] = rest[4:] == b"".join(blake3.blake3(piece).digest() for piece in pieces)
            return
        count = struct.unpack(">Q", rest)[0] if form == ZEROS else len(rest) // 32
        for number in range(count):
            data = disk.block(block + number)
            said = blake3.blake3(bytes(len(data))).digest() if form == ZEROS else rest[32 * number : 32 * number + 32]
            disk.proven[block + number] = said == blake3.blake3(data).digest()

    def read_part(self, kind: int) -> str:
        """Read a START, PART or END, its records and its footer."""
        reader = self.reader
        section_id = reader.unpack(">I")
        if kind == 1:
            assert reader.counted() == "blkmig"
            assert reader.two("instance", "version") == (0, 1)
            self.read_table()
        while (word := reader.unpack(">Q")) & 0x1FF != EOS:
            self.read_record(word & 0x1FF, word >> 9)
        assert word >> 9 <= (1 if kind == 1 else 0), "bit 0 of the first EOS is all that is used"
        assert reader.unpack(">B") == 0x7E
        assert reader.unpack(">I") == section_id
        return {1: "S", 2: "P", 3: "E"}[kind]

    def read_table(self) -> None:
        """Read the first record of START."""
        start = model.Stream()
        model.read_table(self.reader, start)
        for name, size, granule, flags in start.table:
            assert name not in self.disks
            assert flags in (0, 1, 2)
            image = bytearray(self.old.get(name, b"")[:size].ljust(size, b"\0"))
            self.disks[name] = Disk(name, size, granule, bool(flags & 1), image)

    def read_record(self, flags: int, number: int) -> None:
        """Read the rest of a record."""
        self.trace.append(NAMES[flags])
        if flags == PROGRESS:
            assert number <= 100
            self.percent = number
        elif flags == FLUSH:
            self.flushes += 1
            assert number == self.flushes
        elif flags == BARRIER:
            self.barriers += 1
            assert number == self.barriers
        elif flags == EXTRA:
            self.extras.append((number, model.read_extra(self.reader)))
            if number == 1:
                model.parse_session(self.extras[-1][1])
            if number == 9:
                self.flushes += 1
                assert self.ends()[-1][0] == self.flushes, "END and FLUSH are counted together"
            self.take_extra(*self.extras[-1])
        elif flags == PACK:
            assert not (self.frame and self.zeros)
            places = self.reader.position + 1 + self.reader.peek()
            listed = self.reader.data[places : places + 12 * number]
            self.unpack_frame(places + 12 * number, sum(length for _, length in struct.iter_unpack(">QI", listed)))
            self.put_zeros_back(places + 12 * number, list(struct.iter_unpack(">QI", listed)))
            self.read_pack(number)
        else:
            disk = self.disks[self.reader.counted()]
            if flags == DATA:
                self.unpack_frame(self.reader.position, MIB)
            data = bytes(MIB) if flags == ZERO else self.reader.take(MIB)
            self.take_block(disk, number, data, is_zero=flags == ZERO)

    def ends(self) -> list[tuple[int, Any]]:
        """Return the numbers of ENDs, with their descriptions, and of COMMITs, with their kinds, in their order."""
        found: list[tuple[int, Any]] = []
        for kind, body in [extra for extra in self.extras if extra[0] in (2, 9)]:
            number = struct.unpack(">I", body[:4])[0]
            if kind == 9:
                text, mark, checksum = body[4:].rpartition(b',"checksum":"')
                assert (mark, checksum) == (b',"checksum":"', b'%08x"}' % zlib.crc32(text))
                found.append((number, json.loads(text + b"}")["blkmig"]))
            elif kind == 2:
                assert len(body) == 5
                assert body[4] in (0, 1, 2)
                assert number == found[-1][0], "of the last END"
                found.append((number, body[4]))
        return found

    def take_extra(self, kind: int, body: bytes) -> None:
        """Take a ZSTD, a ZEROS, an ASK, with its answer, or a SAME."""
        if kind == 8:
            assert not self.zeros
            assert any(body)
            self.zeros = body
        if kind == 10:
            assert self.frame == 0
            (self.frame,) = struct.unpack(">I", body)
        elif kind == 3:
            self.take_ask(model.Reader(body))
        elif kind == 4:
            disk = list(self.disks.values())[struct.unpack_from(">H", body)[0]]
            end = 0
            for offset, count in struct.iter_unpack(">QQ", body[2:]):
                assert end <= offset < offset + count <= disk.size
                assert offset % PAGE == 0
                assert (offset + count) % PAGE == 0 or offset + count == disk.size
                pages, end = set(range(offset // PAGE, -(-(offset + count) // PAGE))), offset + count
                assert pages <= disk.vouched, "nothing vouches for what is said to be the same"
                disk.vouched -= pages
                disk.settle(pages)

    def put_zeros_back(self, place: int, extents: list[tuple[int, int]]) -> None:
        """Where the payload of a pack begins at `place`, put what of it is zeros, by the last ZEROS."""
        body, self.zeros = self.zeros, b""
        if not body:
            return
        bits = "".join(f"{byte:08b}" for byte in body)
        for offset, nbytes in extents:
            while nbytes:
                piece = min(nbytes, PAGE - offset % PAGE)
                bit, bits = bits[0], bits[1:]
                if bit == "1":
                    self.reader.data = self.reader.data[:place] + bytes(piece) + self.reader.data[place:]
                    self.left_out += 1
                place, offset, nbytes = place + piece, offset + piece, nbytes - piece
        assert len(bits) < 8
        assert "1" not in bits

    def unpack_frame(self, place: int, nbytes: int) -> None:
        """Where a frame stands at `place`, put the payload of `nbytes` there that it holds."""
        if not self.frame:
            return
        data, frame = self.reader.data, self.reader.data[place : place + self.frame]
        assert len(frame) == self.frame <= nbytes - nbytes // 16
        assert frame[:4] == b"\x28\xb5\x2f\xfd"
        assert frame[4] & 0x20 or frame[5] <= 10 << 3, "the window"
        assert frame[4] & 0x03 == 0, "a dictionary"
        assert zstd.get_frame_size(frame) == len(frame)
        assert zstd.get_frame_info(frame).decompressed_size == nbytes
        self.reader.data = data[:place] + zstd.decompress(frame) + data[place + len(frame) :]
        self.frames, self.saved, self.frame = self.frames + 1, self.saved + nbytes - len(frame), 0

    def take_ask(self, ask: model.Reader) -> None:
        """Take an ASK, and hold the answer against the old copy: nothing of what is asked for was written before."""
        number, index, shift = ask.unpack(">I"), ask.unpack(">H"), ask.unpack(">B")
        self.asks += 1
        assert number == self.asks
        assert shift in (20, 16, 12)
        disk = list(self.disks.values())[index]
        asked: list[int] = []
        while not ask.at_end():
            offset, count = ask.unpack(">Q"), ask.unpack(">I")
            assert offset % (1 << shift) == 0
            assert not asked or asked[-1] < offset
            asked += range(offset, offset + (count << shift), 1 << shift)
        assert 1 <= len(asked) <= 512
        assert asked[-1] < disk.size
        pieces = [bytes(disk.image[offset : offset + (1 << shift)]) for offset in asked]
        answer = model.Reader(self.answers[number - 1])
        assert answer.unpack(">H") == 0x8006
        assert answer.unpack(">H") == len(answer.data) - 4
        assert answer.unpack(">I") == number
        assert answer.unpack(">I") == zlib.crc32(answer.data[12:])
        while not answer.at_end():
            word = answer.unpack(">H")
            for _ in range(word & 0x3FFF):
                piece = pieces.pop(0)
                assert word >> 14 == (0 if any(piece) else 1)
                if any(piece):
                    assert answer.take(32) == blake3.blake3(piece).digest()
        assert not pieces
        for offset in asked if shift == 20 else ():
            disk.vouch(offset // MIB)

    def take_block(self, disk: Disk, sector: int, data: bytes, *, is_zero: bool) -> None:
        """Take a block: it starts at a whole MiB, but the last one may end where the disk ends."""
        is_last = sector * 512 == max(0, disk.end - MIB)
        assert is_last or sector % 2048 == 0
        assert sector * 512 < disk.end
        block = -(-sector // 2048)
        if block in disk.came:
            disk.again += 1
            disk.again_sum += 2 * block + 2 + is_zero
        disk.records += 1
        disk.came.add(block)
        disk.write(sector * 512, data)

    def read_pack(self, count: int) -> None:
        """Read a pack: its disk, its list, and the payloads in that order."""
        pack = model.read_pack(self.reader, "", count)
        disk = self.disks[pack.name]
        assert all(offset % 512 == len(data) % 512 == 0 and data for offset, data in pack.extents)
        last, data = pack.extents[-1]
        assert last + len(data) <= disk.end
        listed = b"".join(struct.pack(">QI", offset, len(data)) for offset, data in pack.extents)
        for offset, data in pack.extents:
            disk.write(offset, data)
        disk.packs += 1
        disk.pack_bytes += sum(len(data) for _, data in pack.extents)
        numbers = struct.pack(">QQQQ", self.packs, disk.records, disk.again, disk.again_sum)
        self.packs += 1
        disk.chain = zlib.crc32(numbers + listed, disk.chain)

    def check_description(self) -> None:
        """Hold the description against what came."""
        entries = {entry["name"]: entry for entry in self.description["disks"]}
        assert entries.keys() == self.disks.keys()
        for disk in self.disks.values():
            entry = entries[disk.name]
            assert entry["size"] == disk.size
            assert entry.get("packs", [0, 0]) == [disk.packs, disk.chain]
            if not disk.top_only:
                assert disk.came == set(range(-(-disk.size // MIB))), "packs cover nothing"
            assert entry["resent"] == [disk.again, disk.again_sum]
