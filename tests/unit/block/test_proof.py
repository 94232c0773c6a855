# SPDX-License-Identifier: GPL-2.0-or-later
"""What was put last is what is proven, in whatever order a second read and a put come; the words, and the tables."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable

import pytest

from blkmig import errors
from blkmig.block import hashing, proof, prooftable, proofwords
from blkmig.disk import BlockGeometry, DirtyBitmap, storage

MIB = 1 << 20
SIZES = (512, 1000, 5000, MIB - 512, MIB, MIB + 512, 2 * MIB, 3 * MIB + 5000)


class Reader(storage.StorageReader):
    """Reads `image`, and calls `meanwhile` when a read is over and nothing is hashed."""

    def __init__(self, image: bytearray) -> None:
        self.image = image
        self.meanwhile: Callable[[], None] = lambda: None

    def settle(self) -> None:
        pass

    def read(self, offset: int, nbytes: int) -> memoryview:
        data = bytes(self.image[offset : offset + nbytes])
        self.meanwhile()
        return memoryview(data)

    def next_data(self, offset: int) -> int:
        found = next((at for at in range(offset, len(self.image), 512) if any(self.image[at : at + 512])), None)
        return len(self.image) if found is None else found


class Source:
    """A disk with its proof, of which the bulk phase has sent everything."""

    def __init__(self, image: bytes, granularity: int = 4096) -> None:
        self.image = bytearray(image)
        self.reader = Reader(self.image)
        self.shape = BlockGeometry(len(image))
        bitmap = DirtyBitmap(len(image), granularity)
        self.shared = proof.Shared(threading.Lock(), prooftable.HashTable(len(bitmap.bits) + 7))
        self.due: list[tuple[int, int]] = []
        self.proof = proof.DiskProof(self.shared, 0, bitmap, 7, lambda block, count: self.due.append((block, count)))
        self.piece = granularity

    def read_again(self) -> None:
        block = 0
        while block < self.shape.nblocks:
            block += self.proof.read_again(self.reader, block, self.shape.nblocks - block)

    def put(self, offset: int, data: bytes) -> None:
        """Write, and send the pieces that were written, as a dirty round does."""
        self.image[offset : offset + len(data)] = data
        for block in self.shape.blocks_covering(offset, len(data)):
            start, nbytes = self.shape.block_range(block)
            first = max(offset - start, 0) // self.piece * self.piece
            stop = min(offset + len(data) - start, nbytes)
            if first < stop:
                length = min(-(-stop // self.piece) * self.piece, nbytes) - first
                copy = bytes(self.image[start + first : start + first + length]).ljust(length, b"\0")
                self.proof.pack_sent(block, [(start + first, length)], memoryview(copy))

    def check(self) -> None:
        """Hold all that is proven against the disk: the last PROOF of each block is true."""
        true: dict[int, bool] = {}
        for said in [*self.shared.ready, *self.proof.pieces()]:
            for number in range(said.count):
                offset, nbytes = self.proof.range_of(said.block + number)
                data = memoryview(self.image)[offset : offset + nbytes]
                if said.form == "zeros":
                    is_true = not any(data)
                elif said.form == "blocks":
                    is_true = said.hashes[32 * number : 32 * number + 32] == hashing.hash_of(bytes(data))
                else:
                    is_true = said.hashes == hashing.hashes_of(memoryview(bytes(data)), said.piece)
                true[said.block + number] = is_true
        assert true == dict.fromkeys(range(self.shape.nblocks), True)


def image_of(rng: random.Random, size: int) -> bytes:
    return b"".join(rng.choice((bytes, rng.randbytes))(min(MIB // 2, size - at)) for at in range(0, size, MIB // 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("granularity", [4096, 65536, MIB])
def test_whatever_is_put_before_between_and_after_the_reads(size: int, granularity: int) -> None:
    rng = random.Random(size)
    for _ in range(6):
        source = Source(image_of(rng, size), granularity)

        def write(count: int, source: Source = source) -> None:
            for _ in range(rng.randrange(count)):
                data = rng.choice((bytes, rng.randbytes))(min(size, rng.choice((1, 512, 4096, 70_000))))
                source.put(rng.randrange(size - len(data) + 1), data)

        write(4)
        source.reader.meanwhile = lambda write=write: write(3)  # type: ignore[misc]
        source.read_again()
        write(4)
        source.check()


def test_a_block_that_nobody_wrote_is_proven_whole() -> None:
    source = Source(random.Random(1).randbytes(3 * MIB))
    source.read_again()
    source.put(MIB + 5, b"x")
    assert [each.block for each in source.proof.pieces()] == [1]
    source.check()


def test_a_put_while_its_block_is_read_leaves_the_other_pieces_to_the_read() -> None:
    source = Source(random.Random(1).randbytes(MIB))
    source.reader.meanwhile = lambda: source.put(8192, b"new")
    source.read_again()
    assert not source.shared.ready, "it is not proven whole"
    (said,) = source.proof.pieces()
    assert said.hashes == hashing.hashes_of(memoryview(bytes(source.image)), 4096)


@pytest.mark.parametrize("size", [MIB + 512, 3 * MIB + 512])
def test_blocks_that_overlap_are_not_compared_while_the_disk_is_live(size: int) -> None:
    """The records of either of them change what the target holds of both, in whatever order they are put."""
    last = size // MIB
    for order in ((last - 1, last), (last, last - 1)):
        source = Source(random.Random(1).randbytes(size))
        for block in order:
            source.proof.bulk_sent(block, 1)
        assert source.due == [(block, 1) for block in order], "each is read again when it was put"
        source.read_again()
        assert all(said.block + said.count <= last - 1 for said in source.shared.ready)
        assert [said.block for said in source.proof.pieces()] == [last - 1, last]
        source.check()


def test_words_are_read_as_they_were_written() -> None:
    shapes = [BlockGeometry(5000), BlockGeometry(3 * MIB + 512)]
    hashes = bytes(range(32))
    for said in (
        proofwords.Proof(0, "pieces", 0, 1, 2 * hashes, 4096),
        proofwords.Proof(1, "blocks", 1, 3, 3 * hashes),
        proofwords.Proof(1, "zeros", 0, 4),
    ):
        assert proofwords.decode(said.encode(), shapes, 0) == said
    assert proofwords.decode_proven(proofwords.encode_proven(7), 0) == 7


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack(">HBQ", 0, 0, 0),
        struct.pack(">HBQ", 2, 0, 0) + bytes(32),
        struct.pack(">HBQ", 0, 3, 0) + bytes(32),
        struct.pack(">HBQ", 0, 0, 1) + bytes(32),
        struct.pack(">HBQ", 0, 0, 0) + bytes(33),
        struct.pack(">HBQ", 0, 0, 1 << 63) + bytes(32),
        struct.pack(">HBQQ", 0, 1, 0, 0),
        struct.pack(">HBQQ", 0, 1, 0, 2),
        struct.pack(">HBQQ", 0, 1, 0, 1) + b"x",
        struct.pack(">HBQI", 0, 2, 0, 0) + bytes(32),
        struct.pack(">HBQI", 0, 2, 0, 2048) + bytes(96),
        struct.pack(">HBQI", 0, 2, 0, 4097) + bytes(64),
        struct.pack(">HBQI", 0, 2, 0, 4096) + bytes(32),
        struct.pack(">HBQI", 0, 2, 0, 2 * MIB) + bytes(32),
        struct.pack(">HBQ", 0, 2, 0) + b"xx",
    ],
)
def test_hostile_words(body: bytes) -> None:
    with pytest.raises(errors.StreamError, match="PROOF is not as it must be"):
        proofwords.decode(body, [BlockGeometry(5000)], 0)
    with pytest.raises(errors.StreamError, match="PROVEN"):
        proofwords.decode_proven(body or b"short", 0)


@pytest.mark.parametrize("limit", [0, 100, 1 << 20])
def test_tables_hold_what_was_put(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(prooftable, "MAX_BYTES", limit)
    table, backlog = prooftable.HashTable(10), prooftable.Backlog()
    assert table.get(0, 10) == bytes(320)
    table.put(3, b"a" * 64)
    assert table.get(2, 4) == bytes(32) + b"a" * 64 + bytes(32)
    for turn in range(3):
        records = [bytes([number + turn]) * (number % 7 + 1) for number in range(60)]
        for record in records:
            backlog.append(record)
        assert len(backlog) == 60
        assert [backlog.pop() for _ in records] == records
    assert not len(backlog)
    for each in (table, backlog, table, backlog):
        each.close()


def test_no_room_for_the_table_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prooftable, "MAX_BYTES", 0)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(errors.MigrationError, match=r"temporary file in /nowhere.*TMPDIR"):
        prooftable.HashTable(1)
