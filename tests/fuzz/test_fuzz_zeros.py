# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs with zeros left out, cut everywhere, with each bit flipped, and mutated: what is written is what a plain reader
finds in the packs that came whole, of the first so many of them, and nothing else.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lab
import model
import pytest

import blkmig
from blkmig import errors, stats
from blkmig.block import BlkLoadDevice, BlockLoadHandlers, checksums, extra, table, zeropieces

SIZE = 10 * 4096 + 512
MARKER = 0xEE
MUTATIONS = 1500
EOS = struct.pack(">Q", 2)
Extents = list[tuple[int, int]]


def pack(extents: Extents, payload: bytes, *, is_checked: bool = False) -> bytes:
    """Return the records of a pack, without what of it is zeros."""
    body = zeropieces.find(memoryview(payload), extents)
    rest = b"".join(payload[start:stop] for start, stop in zeropieces.present(body, extents)) if body else payload
    head = (zeropieces.record(body) if body else b"") + (checksums.record(rest, extents[0][0]) if is_checked else b"")
    listed = b"".join(struct.pack(">QI", *extent) for extent in extents)
    return head + struct.pack(">QB", len(extents) << 9 | 0x10, 1) + b"d" + listed + rest


def section(*, is_checked: bool = False) -> bytes:
    """Return the payload of a section: its table, and packs of which all, a part and nothing is zeros."""
    rng = random.Random(31)
    data = rng.randbytes
    records = [
        table.encode([table.TableDisk(b"d", SIZE, 4096)]),
        pack([(512, 8192)], data(3584) + bytes(4096) + data(512), is_checked=is_checked),
        pack([(0, 512), (8192, 4096)], bytes(4608), is_checked=is_checked),
        pack([(4096, 512), (5120, 512)], bytes(512) + data(512), is_checked=is_checked),
        pack([(12288, 1024)], data(1024), is_checked=is_checked),
    ]
    return b"".join(records) + EOS


def load(folder: Path, data: bytes) -> tuple[bytes, errors.MigrationError | None]:
    image = bytearray([MARKER]) * SIZE
    device = BlkLoadDevice(blkmig.MemoryBackend(image, name="d"), stats.DiskStatistics("d"), size=SIZE)
    handlers = BlockLoadHandlers(lambda name, position: device)
    handlers.on_extra = device.buffers.on_extra()
    handlers.load_start("blkmig", 0)
    with lab.input_file(folder, data) as f:
        try:
            handlers.load_state(f, 1)
        except errors.MigrationError as error:
            return bytes(image), error
    return bytes(image), None


def images(data: bytes) -> list[bytes]:
    """Return what the disk may hold: nothing of the packs, the first one, the first two ..."""
    reader, stream = model.Reader(data), model.Stream()
    try:
        model.read_table(reader, stream)
        model.read_blocks(reader, "START", stream)
    except (model.CutShort, AssertionError, UnicodeDecodeError, IndexError):
        pass
    found = [bytes([MARKER]) * SIZE]
    for record in stream.records:
        image = bytearray(found[-1])
        for offset, content in record.extents or []:
            image[offset : offset + len(content)] = content[: max(0, SIZE - offset)]
        found.append(bytes(image[:SIZE]))
    return found


def test_as_it_is(tmp_path: Path) -> None:
    for is_checked in (False, True):
        data = section(is_checked=is_checked)
        assert load(tmp_path, data) == (images(data)[-1], None)
        assert len(images(data)) == 5


def test_every_cut(tmp_path: Path) -> None:
    data = section()
    for cut in range(len(data)):
        image, error = load(tmp_path, data[:cut])
        assert error is not None, f"cut at {cut}"
        assert image == images(data[:cut])[-1], f"cut at {cut}"


@pytest.mark.parametrize("bit", range(8))
def test_every_bit(tmp_path: Path, bit: int) -> None:
    data = section()
    payloads = {place for place in range(len(data)) if len(set(data[max(0, place - 40) : place + 40])) > 60}
    for place in sorted(set(range(len(data))) - payloads):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        image, _ = load(tmp_path, bytes(flipped))
        assert image in images(bytes(flipped)), f"bit {bit} of byte {place}"


def test_mutations(tmp_path: Path) -> None:
    rng = random.Random(41)
    for number in range(MUTATIONS):
        data = bytearray(section(is_checked=number % 2 == 1))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.choice((1, 8, 512, 4096))]
            else:
                data[place:place] = extra(8, rng.randbytes(rng.randrange(4)))
        image, _ = load(tmp_path, bytes(data))
        assert image in images(bytes(data)), f"mutation {number}"
