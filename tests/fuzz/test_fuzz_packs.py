# SPDX-License-Identifier: GPL-2.0-or-later
"""A small section with packs, cut everywhere and with each of its bits flipped: nothing is written but what it says."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import channel, errors, stats
from blkmig.block import BlkLoadDevice, BlockLoadHandlers, table

SIZE = 4000
MARKER = 0xEE
EOS = struct.pack(">Q", 2)


def pack(name: bytes, extents: list[tuple[int, int]], payload: bytes) -> bytes:
    """Return a pack's record."""
    listed = b"".join(struct.pack(">QI", *extent) for extent in extents)
    return struct.pack(">QB", len(extents) << 9 | 0x10, len(name)) + name + listed + payload


def section() -> bytes:
    """Return the payload of a section: its table, and two packs."""
    rng = random.Random(11)
    records = [
        table.encode([table.TableDisk(b"d", SIZE, 4096)]),
        pack(b"d", [(0, 512), (1024, 512), (3584, 512)], rng.randbytes(1536)),
        pack(b"d", [(512, 512)], rng.randbytes(512)),
    ]
    return b"".join(records) + EOS


def announced(data: bytes) -> set[int]:
    """Return the bytes that the packs of `data` may write, read as far as they are whole; an oracle of few rules."""
    found: set[int] = set()
    nbytes = struct.unpack_from(">I", data, 8)[0] if len(data) >= 12 else 0
    position = 12 + nbytes + 4
    while position + 9 <= len(data):
        word, length = struct.unpack_from(">QB", data, position)
        if word & 0x1FF != 0x10:
            break
        at, total = position + 9 + length, 0
        for number in range(min(word >> 9, 256)):
            if at + 12 * number + 12 > len(data):
                return found
            offset, size = struct.unpack_from(">QI", data, at + 12 * number)
            found |= set(range(offset, min(offset + size, SIZE))) if offset < SIZE else set()
            total += size
        position = at + 12 * (word >> 9) + total
    return found


class Target:
    """Loads sections, each into a disk of markers, and looks which bytes have changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, data: bytes) -> tuple[bytes, BaseException | None]:
        image = bytearray([MARKER]) * SIZE
        backend = blkmig.MemoryBackend(image, name="d")
        device = BlkLoadDevice(backend, stats.DiskStatistics("d"), size=SIZE)
        handlers = BlockLoadHandlers(lambda name, position: device)
        path = self._folder / "stream"
        path.write_bytes(data)
        with channel.listen(f"file:{path}") as listener:
            f = listener.accept(timeout=None)
        try:
            handlers.load_start("blkmig", 0)
            handlers.load_state(f, 1)
        except errors.MigrationError as error:
            return bytes(image), error
        finally:
            f.abort()
        return bytes(image), None


def check(image: bytes, data: bytes, note: str) -> None:
    changed = {at for at, byte in enumerate(image) if byte != MARKER}
    assert changed <= announced(data), f"{note}: written, and not announced: {sorted(changed - announced(data))[:5]}"


def test_the_section_itself(tmp_path: Path) -> None:
    data = section()
    image, error = Target(tmp_path).load(data)
    assert error is None
    check(image, data, "undamaged")
    assert {at // 512 for at, byte in enumerate(image) if byte != MARKER} == {0, 1, 2, 7}


def test_every_cut(tmp_path: Path) -> None:
    data, target = section(), Target(tmp_path)
    for cut in range(len(data)):
        image, error = target.load(data[:cut])
        assert isinstance(error, errors.StreamError), f"cut at {cut}"
        check(image, data[:cut], f"cut at {cut}")


@pytest.mark.parametrize("part", range(4))
def test_every_bit(part: int, tmp_path: Path, is_long: bool) -> None:
    data, target = section(), Target(tmp_path)
    for position in range(part, len(data), 4):
        for bit in range(8) if is_long or position < 200 else [position % 8]:
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            image, _ = target.load(bytes(damaged))
            check(image, bytes(damaged), f"bit {bit} of byte {position}")


def test_a_pack_outside_its_disk_is_refused_before_its_payload(tmp_path: Path) -> None:
    target, head = Target(tmp_path), section()[: -len(EOS)]
    for extents in ([(4096, 512)], [(0, 512), (4096, 512)], [(1 << 62, 512)], [(3584, 1024)]):
        image, error = target.load(head + pack(b"d", extents, b""))
        assert isinstance(error, errors.OutOfRange)
        assert error.device == "d"
        check(image, section(), "outside")


def test_a_pack_of_an_unknown_disk(tmp_path: Path) -> None:
    _, error = Target(tmp_path).load(section()[: -len(EOS)] + pack(b"e", [(0, 512)], bytes(512)))
    assert isinstance(error, errors.StreamError)
    assert "table" in str(error)


def test_no_pack_in_a_section_of_a_qemu(tmp_path: Path) -> None:
    handlers = BlockLoadHandlers(lambda name, position: pytest.fail("nobody is asked"))
    data = pack(b"d", [(0, 512)], bytes(512))
    handlers.load_start("block", 0)
    with lab.input_file(tmp_path, data) as f, pytest.raises(errors.StreamError, match="unknown flags 0x10"):
        handlers.load_state(f, 1)
