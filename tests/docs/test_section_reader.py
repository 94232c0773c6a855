# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader that knows docs/wire/blkmig.md and nothing of the package finds in each stream the disks that were sent."""

from __future__ import annotations

import os
import random
import re
import struct
import zlib
from pathlib import Path

import lab
import pytest
import section_reader
import tee

import blkmig
from blkmig import _core, _output, zstd
from blkmig.block import compressed, coverage, extras, hashing, proofwords, wire, zeropieces

MIB = lab.MIB
PAGE = Path(__file__).parents[2] / "docs" / "wire" / "blkmig.md"


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("seed", range(8))
def test_streams_of_the_sender(tmp_path: Path, seed: int, reading: str) -> None:
    rng = random.Random(seed)
    disks = [
        blkmig.MemoryBackend(bytearray(lab.random_disk(rng, rng.choice(lab.SIZES))), name=f"d{number}")
        for number in range(rng.choice((1, 2, 3)))
    ]
    disks.append(blkmig.MemoryBackend(bytearray(), name="empty"))

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for _ in range(3):
            migration.iterate()
            for _ in range(rng.randrange(40)):
                disk = rng.choice(disks[:-1])
                data = rng.randbytes(min(disk.size, rng.choice((1, 512, 4096, 5000, 300_000, MIB))))
                disk.pwrite(data, rng.randrange(disk.size - len(data) + 1))
        migration.complete()

    data = lab.record(tmp_path, [*disks], drive, format="blkmig", reading=reading)
    stream = section_reader.SectionReader(data).read()
    stream.check_description()
    assert [*stream.disks] == [disk.name for disk in disks]
    for disk in disks:
        assert stream.disks[disk.name].image == disk.pread(0, disk.size), f"seed {seed}"
    assert stream.percent == 100


def test_the_example_of_a_pack() -> None:
    """The bytes on the page are those that are put, and the number beside it is what the description would have."""
    text = PAGE.read_text().partition("<!-- example: pack -->")[2].partition("```text\n")[2]
    rows = text.partition("```")[0].splitlines()
    wanted = b"".join(bytes.fromhex(row[:25]) for row in rows if not row.endswith("payload"))
    blk, extents = _core.BlockBuffer(), [(4096, 4096), (2_621_440, 512)]
    blk.data[:4608] = b"\x41" * 4096 + b"\x42" * 512
    blk.gathered()
    assert put(extents, blk) == wanted + b"\x41" * 4096 + b"\x42" * 512
    tally = coverage.PackTally()
    tally.add(extents, number=0, blocks=3, resent=0, resent_sum=0)
    assert tally.chain == zlib.crc32(struct.pack(">QQQQ", 0, 3, 0, 0) + wanted[12:])
    found = re.search(r"`\"packs\": \[1, (\d+)\]`", PAGE.read_text())
    assert found is not None
    assert int(found[1]) == tally.chain


@pytest.mark.parametrize("seed", range(6))
def test_proofs_of_the_sender(tmp_path: Path, seed: int) -> None:
    """What the page says of PROOF and PROVEN holds for each block of the disks as they have come."""
    rng = random.Random(seed)
    size = rng.choice((1000, MIB + 512, 3 * MIB, 5 * MIB + 1536))
    disk = blkmig.MemoryBackend(bytearray(lab.random_disk(rng, size)), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"}, verify=True)
    recorded = tee.Tee(tmp_path, f"{tmp_path}/s")
    with blkmig.outgoing([disk], recorded.uri, blkmig.MigrationParameters(digests=True)) as migration:
        for _ in range(4):
            migration.iterate()
            for _ in range(rng.randrange(20)):
                data = rng.randbytes(min(size, rng.choice((512, 4096, 50_000))))
                disk.pwrite(data, rng.randrange(size - len(data) + 1))
        migration.run()
    assert receiver.result().disks["d"].verified
    recorded.join()
    stream = section_reader.SectionReader(bytes(recorded.data)).read()
    stream.check_description()
    assert stream.disks["d"].proven == dict.fromkeys(range(-(-size // MIB)), True)


def test_the_example_of_a_proof() -> None:
    text = PAGE.read_text().partition("<!-- example: proof -->")[2].partition("```text\n")[2]
    wanted = b"".join(bytes.fromhex(row[:25]) for row in text.partition("```")[0].splitlines())
    body = proofwords.Proof(0, "blocks", 0, 1, hashing.hash_of(b"A" * 512)).encode()
    assert extras.extra(extras.ExtraKind.PROOF, body) == wanted


def put(extents: list[tuple[int, int]], blk: _core.BlockBuffer) -> bytes:
    """Return what is put of a pack of the disk vda."""
    readable, writable = os.pipe()
    out = _output.OutputBuffer(writable)
    out.put_pack(wire.FLAG_PACK, b"vda", extents, blk)
    out.flush()
    os.close(writable)
    with os.fdopen(readable, "rb") as file:
        return file.read()


def test_the_example_of_zeros_in_a_pack() -> None:
    """The bytes on the page are such a pack, for the reader of the page and for the package."""
    text = PAGE.read_text().partition("<!-- example: zeros -->")[2].partition("```text\n")[2].partition("```")[0]
    data = b"".join(bytes.fromhex(row[:24]) for row in text.splitlines() if "..." not in row) + b"B" * 4096
    extents = [(4096, 8192)]
    body = zeropieces.find(memoryview(bytes(4096) + b"B" * 4096), extents)
    assert data.startswith(zeropieces.record(body) + struct.pack(">QB", 1 << 9 | 0x10, 1) + b"a")
    assert zeropieces.present(body, extents) == [(4096, 8192)]
    reader = section_reader.SectionReader(data)
    reader.disks["a"] = section_reader.Disk("a", MIB, 4096, False, bytearray(b"x" * MIB))
    for _ in range(2):
        word = reader.reader.unpack(">Q")
        reader.read_record(word & 0x1FF, word >> 9)
    assert reader.reader.at_end()
    assert reader.disks["a"].image[4096 : 3 * 4096 + 1] == bytes(4096) + b"B" * 4096 + b"x"


def test_the_example_of_a_compressed_payload() -> None:
    """The bytes on the page are such a block, for the reader of the page and for the package."""
    text = PAGE.read_text().partition("<!-- example: zstd -->")[2].partition("```text\n")[2].partition("```")[0]
    data = b"".join(bytes.fromhex(row[:25]) for row in text.splitlines())
    frame = data[26:]
    assert data.startswith(compressed.record(frame) + struct.pack(">Q", 1) + b"\x01a")
    assert zstd.decompress(frame, MIB) == b"x" * MIB
    reader = section_reader.SectionReader(data)
    reader.disks["a"] = section_reader.Disk("a", MIB, 4096, False, bytearray(MIB))
    for _ in range(2):
        word = reader.reader.unpack(">Q")
        reader.read_record(word & 0x1FF, word >> 9)
    assert reader.reader.at_end()
    assert reader.disks["a"].image == b"x" * MIB
