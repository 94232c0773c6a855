# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream with packs, of which one thing goes wrong: a bit flips, it is cut, a record is lost, comes twice, moves.

Packs and digests go by each other, so what is checked is what a receiver finds without them. All that is not payload is
damaged bit by bit, and no damage of that ends in a wrong disk and success. What is damaged of payloads is found by
nobody: that is what ``--verify`` is for.
"""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import lab
import model
import pytest

import blkmig
from blkmig import errors

MIB = lab.MIB
SIZES = {"a": 40_000, "b": 2 * MIB + 1000}
MARKER = 0xEE


def record(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return a stream of two disks, of zeros at first, and what they hold at its end.

    Of each round there are packs, two of them of equal length, and in one of them a block that goes whole.
    """
    rng = random.Random(7)
    disks = {name: blkmig.MemoryBackend(bytearray(size), name=name) for name, size in SIZES.items()}
    rounds = [
        [("a", 0, 4096), ("a", 12_288, 4096), ("b", 4096, 512), ("b", MIB + 8192, 4096)],
        [("a", 4096, 4096), ("a", 16_384, 4096), ("b", 2 * MIB + 990, 10)],
        [("b", 0, MIB)],
        [("a", 0, 1), ("b", 700_000, 1)],
    ]

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for writes in rounds:
            migration.iterate()
            for name, offset, nbytes in writes:
                disks[name].pwrite(bytes(nbytes) if nbytes == MIB else rng.randbytes(nbytes), offset)
        migration.complete()

    data = lab.record(folder, [*disks.values()], drive, format="blkmig")
    return data, {name: disk.pread(0, disk.size) for name, disk in disks.items()}


def walk(data: bytes) -> tuple[list[tuple[int, int]], set[int]]:
    """Return where the records stand, with what is between them, and which bytes are payload."""
    reader, payload = model.Reader(data), set()
    reader.take(8)
    assert reader.unpack(">B") == 7
    reader.take(reader.unpack(">I"))
    cuts = [0, reader.position]
    while (kind := reader.unpack(">B")) != 0:
        reader.take(4)
        if kind == 1:
            reader.take(reader.unpack(">B") + 8)
        cuts.append(reader.position)
        while not (word := reader.unpack(">Q")) & 2:
            if word & 0x20:
                reader.take(reader.unpack(">I") + 4)
            elif word & 0x10:
                reader.take(reader.unpack(">B"))
                listed = reader.take(12 * (word >> 9))
                nbytes = sum(length for _, length in struct.iter_unpack(">QI", listed))
                payload |= {*range(reader.position, reader.position + nbytes)}
                reader.take(nbytes)
            elif word & 1:
                assert word & 8, "all whole blocks are zeros"
                reader.take(reader.unpack(">B"))
            cuts.append(reader.position)
        reader.take(5)
        cuts.append(reader.position)
    cuts.append(reader.position - 1)
    return [(start, stop) for start, stop in itertools.pairwise(sorted({*cuts, len(data)}))], payload


class Attack:
    """Receives damaged forms of a stream, and fails if a wrong disk ends with success."""

    def __init__(self, folder: Path) -> None:
        self.data, self.disks = record(folder)
        self.records, self.payload = walk(self.data)
        self._path = folder / "damaged"

    def succeeds(self, data: bytes, note: str, *, may_be_wrong: bool = False) -> bool:
        """Return whether `data` is received; the disk must be right then."""
        self._path.write_bytes(data)
        memory = {name: bytearray([MARKER]) * size for name, size in SIZES.items()}
        targets = {name: blkmig.MemoryBackend(image, name=f"t-{name}") for name, image in memory.items()}
        try:
            blkmig.receive(f"file:{self._path}", targets)
        except errors.MigrationError:
            return False
        except Exception as error:
            error.add_note(note)
            raise
        assert may_be_wrong or memory == self.disks, f"a wrong disk, and success: {note}"
        return True


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    found = Attack(tmp_path)
    assert found.succeeds(found.data, "undamaged")
    assert len(found.payload) > 8 * 512
    return found


def test_every_bit_that_is_no_payload(attack: Attack, is_long: bool) -> None:
    damaged = bytearray(attack.data)
    for position in range(len(damaged)):
        if position not in attack.payload:
            for bit in range(8) if is_long else [position % 8, (position * 5 + 3) % 8]:
                damaged[position] ^= 1 << bit
                attack.succeeds(bytes(damaged), f"bit {bit} of byte {position}")
                damaged[position] ^= 1 << bit


def test_every_cut(attack: Attack, is_long: bool) -> None:
    cuts = [at for at in range(len(attack.data)) if at not in attack.payload or at % (1 if is_long else 257) == 0]
    for cut in cuts:
        assert not attack.succeeds(attack.data[:cut], f"cut at {cut}")


def test_payload_is_not_looked_at(attack: Attack) -> None:
    """The limit that the page of the format names."""
    damaged, rng = bytearray(attack.data), random.Random(8)
    for position in rng.sample(sorted(attack.payload), 20):
        damaged[position] ^= 1
        assert attack.succeeds(bytes(damaged), f"byte {position}", may_be_wrong=True)
        damaged[position] ^= 1


def test_records_lost_doubled_and_exchanged(attack: Attack) -> None:
    """Each record is dropped, comes twice, changes places with any other."""
    records = [attack.data[start:stop] for start, stop in attack.records]
    assert b"".join(records) == attack.data
    for index, each in enumerate(records):
        for note, changed in (("dropped", []), ("doubled", [each, each])):
            data = b"".join(records[:index] + changed + records[index + 1 :])
            attack.succeeds(data, f"record {index} {note}")
        for other in range(index + 1, len(records)):
            exchanged = list(records)
            exchanged[index], exchanged[other] = records[other], each
            attack.succeeds(b"".join(exchanged), f"records {index} and {other} exchanged")


def test_lists_exchanged(attack: Attack) -> None:
    """The list of one pack before the payloads of another one of the same length."""
    packs = [
        (start, stop, next(at for at in range(start, stop) if at in attack.payload))
        for start, stop in attack.records
        if any(at in attack.payload for at in (stop - 1,))
    ]
    tried = 0
    for (start, stop, middle), (other, end, between) in itertools.combinations(packs, 2):
        if stop - middle != end - between:
            continue
        data = attack.data
        changed = data[:start] + data[other:between] + data[middle:other] + data[start:middle] + data[between:]
        is_same = data[other:between] == data[start:middle]
        assert attack.succeeds(changed, f"lists at {start} and {other}") is is_same
        tried += not is_same
    assert tried
