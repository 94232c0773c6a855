# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way in which one thing of a stream goes wrong: a bit flips, it is cut, a record is lost, comes twice, moves.

With ``--verify`` no wrong disk ends with success, whatever was damaged; without it only a damaged payload does. What is
not payload is damaged bit by bit: all bits of the two streams that are quick to load, one of each byte of the others,
and of payloads there is a sample. The long form takes every bit of all streams in all ways, and samples more with a
seed of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import model
import pytest
import sim

import blkmig
from blkmig import errors

MIB = lab.MIB
MARKER = 0xEE
MEMORY = Path("/dev/shm")
"""Where thousands of targets cost nothing to flush."""

PAYLOAD_SAMPLE = 12


@dataclasses.dataclass
class Case:
    """A stream, what it makes of its targets, and where its payloads are."""

    data: bytes
    disks: dict[str, bytes]
    bases: dict[str, bytes] | None
    pieces: list[tuple[int, int]]
    sections: list[tuple[int, int]]
    payloads: list[range]

    def is_payload(self, position: int) -> bool:
        """Return whether a byte belongs to a block's contents."""
        return any(position in payload for payload in self.payloads)


def walk(data: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[range]]:
    """Return where the smallest pieces, the records of the container, and the payloads stand in a stream."""
    reader, pieces, sections, payloads = model.Reader(data), [0], [0], []

    def cut(places: list[int]) -> None:
        places.append(reader.position)

    reader.take(8)
    cut(pieces)
    cut(sections)
    assert reader.unpack(">B") == 7
    reader.take(reader.unpack(">I"))
    cut(pieces)
    cut(sections)
    while (kind := reader.unpack(">B")) != 0:
        reader.take(4)
        if kind == 1:
            reader.take(reader.unpack(">B") + 8)
        cut(pieces)
        while not (word := reader.unpack(">Q")) & 2:
            if word & 1:
                reader.take(reader.unpack(">B"))
                if not word & 8:
                    payloads.append(range(reader.position, reader.position + MIB))
                    reader.take(MIB)
            cut(pieces)
        cut(pieces)
        reader.take(5)
        cut(pieces)
        cut(sections)
    for places in (pieces, sections):
        cut(places)
    assert reader.unpack(">B") == 6
    reader.take(reader.unpack(">I"))
    assert reader.at_end()
    for places in (pieces, sections):
        cut(places)
    return list(itertools.pairwise(pieces)), list(itertools.pairwise(sections)), payloads


def one_block(folder: Path) -> Case:
    """A raw file of less than a block, of a size that is no whole sector."""
    content = random.Random(1).randbytes(700_003)
    (folder / "one.raw").write_bytes(content)
    with blkmig.FileBackend(folder / "one.raw", name="one", writable=False) as disk:
        data = lab.record(folder, [disk], digests=True)
    return Case(data, {"one": content}, None, *walk(data))


def zeros(folder: Path) -> Case:
    """Two disks without any payload."""
    contents = {"one": bytes(3 * MIB), "two": bytes(MIB + 1000)}
    disks = [blkmig.MemoryBackend(bytearray(content), name=name) for name, content in contents.items()]
    data = lab.record(folder, [*disks], digests=True)
    return Case(data, contents, None, *walk(data))


def two_disks(folder: Path) -> Case:
    """Two disks with zeros, the second one's last block starts early; one of the blocks is sent again."""
    rng = random.Random(2)
    contents = {"a": bytes(MIB) + rng.randbytes(MIB), "b": bytes(MIB) + rng.randbytes(1536)}
    disks = [blkmig.MemoryBackend(bytearray(content), name=name) for name, content in contents.items()]

    def drive(migration: blkmig.OutgoingMigration) -> None:
        migration.iterate()
        disks[0].mark_dirty(0, 1)
        disks[0].mark_dirty(MIB, 1)
        migration.complete()

    data = lab.record(folder, [*disks], drive, digests=True)
    return Case(data, contents, None, *walk(data))


def incremental(folder: Path) -> Case:
    """The top layer of one disk, behind what only its base holds, which is said first (A13); a block that only the base
    holds is written while the migration runs, and one that was sent is, too."""
    rng = random.Random(3)
    base = rng.randbytes(3 * MIB + 512)
    disk = sim.LayeredDisk(base, base=base, name="d")
    disk.write(bytes(MIB), MIB)

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while migration.pending():
            migration.iterate()
        disk.write(b"late", 2 * MIB - 100)
        disk.write(b"late", 10)
        migration.complete()

    data = lab.record(folder, [disk], drive, digests=True, shared_base=True)
    case = Case(data, {"d": bytes(disk.image)}, {"d": base}, *walk(data))
    assert any(says_a_base(data[slice(*place)]) for place in case.sections)
    return case


STREAMS: list[Callable[[Path], Case]] = [one_block, zeros, two_disks, incremental]
QUICK = 2 * MIB


class Attack:
    """Receives damaged forms of one stream, and fails if a wrong disk ends with success."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.stream = folder / "stream"
        self.into = folder / "into"
        self.successes = 0

    def run(self, data: bytes, note: str, *, verify: bool, new: bool, may_be_wrong: bool = False) -> None:
        """Receive `data`; any error of the tree is right, and so is the right disk."""
        self.stream.write_bytes(data)
        found: dict[str, bytes] = {}
        note = f"{note}, {verify=}, {new=}"
        try:
            found = self.receive_new(verify) if new and self.case.bases is None else self.receive_existing(verify)
        except errors.WrongBase as error:
            error.add_note(f"damage is taken for another base: {note}")
            raise
        except errors.MigrationError:
            return
        except Exception as error:
            error.add_note(note)
            raise
        self.successes += 1
        assert may_be_wrong or found == self.case.disks, f"a wrong disk, and success: {note}"

    def receive_new(self, verify: bool) -> dict[str, bytes]:
        if self.into.exists():
            for path in self.into.iterdir():
                path.unlink()
        blkmig.receive(f"file:{self.stream}", into=self.into, verify=verify)
        return {path.stem: path.read_bytes() for path in self.into.iterdir()}

    def receive_existing(self, verify: bool) -> dict[str, bytes]:
        case = self.case
        before = case.bases or {name: bytes([MARKER]) * len(content) for name, content in case.disks.items()}
        memory = {name: bytearray(content) for name, content in before.items()}
        targets = {name: blkmig.MemoryBackend(content, name=f"t-{name}") for name, content in memory.items()}
        blkmig.receive(f"file:{self.stream}", targets, verify=verify, incremental=case.bases is not None)
        return {name: bytes(content) for name, content in memory.items()}


@pytest.fixture(params=STREAMS, ids=lambda stream: str(stream.__name__))
def attack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Attack]:
    case = request.param(tmp_path)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        attack = Attack(case, Path(folder))
        for verify, new in itertools.product((False, True), repeat=2):
            attack.run(case.data, "undamaged", verify=verify, new=new)
        assert attack.successes == 4, "the stream itself is received"
        yield attack


def ways(is_long: bool, number: int) -> Iterator[tuple[bool, bool]]:
    """Return how to receive: (verify, new); one way after the other, or all of them."""
    every = list(itertools.product((False, True), repeat=2))
    return iter(every if is_long else [every[number % 4]])


def test_every_bit_that_is_no_payload(attack: Attack, is_long: bool) -> None:
    """A6: header, names, sectors, flags, footers, the description: no flip of a single bit ends in a wrong disk."""
    case, damaged = attack.case, bytearray(attack.case.data)
    description, _ = case.pieces[-1]
    is_quick = is_long or len(case.data) < QUICK
    for position in range(len(case.data)):
        if case.is_payload(position):
            continue
        for bit in range(8) if is_quick else [position * 5 % 8]:
            damaged[position] ^= 1 << bit
            before = attack.successes
            for verify, new in ways(is_long, position + bit):
                attack.run(bytes(damaged), f"bit {bit} of byte {position}", verify=verify, new=new)
            is_found = attack.successes == before
            assert is_found or position < description, f"bit {bit} of byte {position} of the description"
            damaged[position] ^= 1 << bit


def test_a_sample_of_the_payload(attack: Attack, is_long: bool) -> None:
    """With --verify a flipped bit of a block's contents is found, too, unless it is slack behind the disk's end."""
    seed = random.randrange(1 << 32) if is_long else 6
    print(f"seed {seed}")
    rng, damaged = random.Random(seed), bytearray(attack.case.data)
    for _ in range(PAYLOAD_SAMPLE * (50 if is_long else 1)):
        if not attack.case.payloads:
            return
        position, bit = rng.choice(rng.choice(attack.case.payloads)), rng.randrange(8)
        damaged[position] ^= 1 << bit
        for verify, new in itertools.product((False, True), repeat=2):
            note = f"bit {bit} of byte {position}, seed {seed}"
            attack.run(bytes(damaged), note, verify=verify, new=new, may_be_wrong=not verify)
        damaged[position] ^= 1 << bit


def test_every_cut(attack: Attack, is_long: bool) -> None:
    """A6: a stream that ends anywhere but at its end is never a success, whatever it is received onto."""
    case, before = attack.case, attack.successes
    cuts = [cut for cut in range(len(case.data)) if not case.is_payload(cut)]
    cuts = cuts if is_long else cuts[:: 1 if len(case.data) < QUICK else 3]
    cuts += [payload[middle] for payload in case.payloads for middle in (1, MIB // 2, MIB - 1)]
    for number, cut in enumerate(cuts):
        for verify, new in ways(is_long, number):
            attack.run(case.data[:cut], f"cut at {cut}", verify=verify, new=new)
    assert attack.successes == before


def test_a_stream_cut_before_its_description_is_truncated(attack: Attack) -> None:
    """A6: exit 5, as for any other link that broke off."""
    attack.stream.write_bytes(attack.case.data[: attack.case.pieces[-1][0]])
    with pytest.raises(errors.TruncatedStream, match="description") as caught:
        attack.receive_existing(verify=False)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("size", ["pieces", "sections"])
def test_records_lost_doubled_and_swapped(attack: Attack, size: str) -> None:
    """Each record of the container, and each piece of one, is dropped, comes twice, changes places with any other."""
    records = [attack.case.data[slice(*place)] for place in getattr(attack.case, size)]
    number = 0
    for index, record in enumerate(records):
        for note, changed in (("dropped", []), ("doubled", [record, record])):
            data = b"".join(records[:index] + changed + records[index + 1 :])
            for verify, new in itertools.product((False, True), repeat=2):
                attack.run(data, f"record {index} {note}", verify=verify, new=new)
        for other in range(index + 1, len(records)):
            swapped = list(records)
            swapped[index], swapped[other] = records[other], record
            number += 1
            for verify, new in ways(False, number):
                attack.run(b"".join(swapped), f"records {index} and {other} swapped", verify=verify, new=new)


def says_a_size(section: bytes) -> bool:
    """Whether a section of a stream is one that says a disk's size: it is empty but for the word EOS and its marks."""
    return len(section) == 18 and section[0] == 2 and int.from_bytes(section[5:13], "big") >> 9 != 0


def says_a_base(section: bytes) -> bool:
    """Whether a section of a stream is one that says a part of what only the base of a disk holds."""
    return says_a_size(section) and bool(int.from_bytes(section[5:13], "big") >> 10 & 1)


@pytest.mark.parametrize("said_before", [True, False])
def test_a_size_that_is_wrong_and_well_sealed(attack: Attack, said_before: bool) -> None:
    """A6: what no checksum finds, the digest does: it covers the number of disks, their names and exact sizes.

    Where the sizes were said before the first block, the description is seen not to agree.
    """
    from blkmig.savevm import vmdescription

    case = attack.case
    start, _ = case.pieces[-1]
    sections = [case.data[at:stop] for at, stop in case.sections if stop <= start]
    assert any(map(says_a_size, sections))
    before = b"".join(section for section in sections if said_before or not says_a_size(section))
    name, content = next(iter(case.disks.items()))
    size = f'"name":"{name}","size":{len(content)}'.encode()
    text = case.data[start + 5 :]
    text = text[: text.index(b',"checksum"')] + b"}"
    first = errors.StreamError if said_before else errors.ContentMismatch
    for wrong in (len(content) - 1, len(content) + 1):
        changed = vmdescription.seal(text.replace(size, f'"name":"{name}","size":{wrong}'.encode(), 1))
        attack.stream.write_bytes(before + struct.pack(">BI", 6, len(changed)) + changed)
        with pytest.raises((first, errors.DeviceError, errors.IncompleteMigration)):
            attack.receive_new(verify=True) if case.bases is None else attack.receive_existing(verify=True)
