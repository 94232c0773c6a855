# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading side on streams that nobody sends: flags in every combination, sectors anywhere, several tails."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lab
import pytest

from blkmig import _core, channel, errors
from blkmig.block import MAX_INFERRED_BYTES, BlockCoverage, BlockLoadHandlers, CoverageRoom

MIB = lab.MIB


class Log:
    """A disk that only writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self._buf = _core.BlockBuffer()

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        f.get_block(self._buf)
        self.calls.append(("data", sector, 1))

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        self.calls += [("zero", sector + number * 2048, 1) for number in range(count)]


def record(flags: int, sector: int = 0, name: bytes = b"d") -> bytes:
    """Return one record."""
    word = struct.pack(">Q", sector << 9 | flags)
    if not flags & 1:
        return word
    return word + bytes([len(name)]) + name + (b"" if flags & 8 else b"x" * MIB)


def load(tmp_path: Path, data: bytes) -> tuple[Log, BlockLoadHandlers, int]:
    """Load one section's payload; return the disk, the handlers, and how many bytes were left unread."""
    log = Log()
    handlers = BlockLoadHandlers(lambda name, position: log)
    with lab.input_file(tmp_path, data) as f:
        handlers.load_state(f, 1)
        left = len(data) - f.position
    return log, handlers, left


EOS = record(2)


@pytest.mark.parametrize(
    ("records", "calls", "left"),
    [
        (record(3, 2048) + EOS, [("data", 2048, 1)], 8),  # a block that ends the section
        (record(11, 2048) + EOS, [("zero", 2048, 1)], 8),
        (record(9, 0) + record(11, 2048) + record(9, 4096) + EOS, [("zero", 0, 1), ("zero", 2048, 1)], 18),
        (record(11, 0) + record(11, 2048) + EOS, [("zero", 0, 1)], 18),
        (record(5, 2048) + EOS, [("data", 2048, 1)], 0),  # a block, not progress
        (record(0x19, 2048) + EOS, [("zero", 2048, 1)], 0),  # flags that nobody knows are ignored
        (record(0x12) + EOS, [], 8),
        (record(6, 50) + EOS, [], 8),  # progress that ends the section
        (record(9, 4096) + record(9, 6144) + EOS, [("zero", 4096, 1), ("zero", 6144, 1)], 0),
        (record(9, 4096) + record(9, 0) + EOS, [("zero", 4096, 1), ("zero", 0, 1)], 0),
        (record(2, 12345) + b"rest", [], 4),
        (record(2, 0x7E << 47) + EOS, [], 8),  # a size of 1.1 PB begins as a footer does
    ],
)
def test_flags_in_combination(tmp_path: Path, records: bytes, calls: list[object], left: int) -> None:
    log, _, unread = load(tmp_path, records)
    assert log.calls == calls
    assert unread == left


@pytest.mark.parametrize("flags", [0, 8, 0x10, 0x100, 0x1F0])
def test_unknown_flags(tmp_path: Path, flags: int) -> None:
    with pytest.raises(errors.StreamError, match=f"unknown flags {flags:#x}"):
        load(tmp_path, record(flags) + EOS)


def test_progress_is_reported_and_never_above_100(tmp_path: Path) -> None:
    seen: list[int] = []
    handlers = BlockLoadHandlers(lambda name, position: Log())
    handlers.on_percent = seen.append
    with lab.input_file(tmp_path, record(4, 1) + record(4, 1) + record(4, 1000) + EOS + record(4, 7) + EOS) as f:
        handlers.load_state(f, 1)
        handlers.load_state(f, 1)
    assert seen == [1, 100, 7]
    assert handlers.percent_before_section == 100


def test_a_footer_instead_of_a_record_is_the_sources_read_error(tmp_path: Path) -> None:
    for data in (b"\x7e\0\0\0\1", b"\x7e\0\0\0\1\0\0\0\0\0\0"):
        with pytest.raises(errors.SourceReadError, match="could not read its disk"):
            load(tmp_path, record(9) + data)


def test_names_are_counted(tmp_path: Path) -> None:
    records = b"".join(record(9, 0, f"{number}".encode()) for number in range(300))
    with pytest.raises(errors.StreamError, match="more than 256 disks"):
        load(tmp_path, records + EOS)


# -- which blocks came ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_coverage_against_a_set(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((512, 1000, MIB - 512, MIB, 5 * MIB, 7 * MIB + 512, 7 * MIB + 1000, 40 * MIB + 77 * 512))
    total = -(-size // 512)
    nblocks = -(-total // 2048)
    tail = max(0, total - 2048)
    coverage, came = BlockCoverage("d", rng.choice((size, size, 64 * MIB, MAX_INFERRED_BYTES))), set()
    for _ in range(rng.randrange(2 * nblocks)):
        block = rng.randrange(nblocks)
        count = rng.randrange(1, min(5, nblocks - block) + 1)
        sector = block * 2048
        if block == nblocks - 1 and total >= 2048:
            sector, count = tail, 1
        elif block + count == nblocks and tail % 2048:
            count = max(1, count - 1)
        if block + count == nblocks and count > 1:
            count -= 1
        assert coverage.check(sector, count, 0) == block, f"seed {seed}"
        blocks = set(range(block, block + count))
        assert coverage.add(block, count) == len(blocks & came), f"seed {seed}"
        came |= blocks
        assert coverage.end_sector >= sector + count * 2048
    assert coverage.fits(size)
    absent = [block for first, count in coverage.missing(size) for block in range(first, first + count)]
    assert absent == sorted(set(range(nblocks)) - came)
    if nblocks - 1 in came and total >= 2048:
        assert coverage.inferred_size() == total * 512
        assert not coverage.fits(size - MIB)
    if nblocks - 1 in came and tail % 2048:
        assert not coverage.fits(size + 512)
        assert not coverage.fits(size - 512)


@pytest.mark.parametrize("limit", [512, MIB, 3 * MIB, 3 * MIB + 1000, MAX_INFERRED_BYTES])
def test_blocks_outside_are_refused(limit: int) -> None:
    last = (limit - 1) // MIB * 2048
    coverage = BlockCoverage("d", limit)
    for sector, count in ((last + 2048, 1), (last, 2), (0, last // 2048 + 2), (1 << 54, 1), ((1 << 55) - 1, 1)):
        with pytest.raises(errors.OutOfRange) as caught:
            coverage.check(sector, count, 77)
        assert caught.value.position == 77
    assert coverage.check(last, 1, 0) == last // 2048


def test_one_tail_and_no_more() -> None:
    coverage = BlockCoverage("d", 10 * MIB)
    assert coverage.check(3 * 2048 + 5, 1, 0) == 4
    for sector in (3 * 2048 + 6, 5, 9 * 2048 - 1):
        with pytest.raises(errors.OutOfRange, match="not the start of a block"):
            coverage.check(sector, 1, 0)
    with pytest.raises(errors.OutOfRange):
        coverage.check(3 * 2048 + 5, 2, 0)
    with pytest.raises(errors.OutOfRange, match="has 10485760 bytes, and a block came that starts at offset 9437696"):
        coverage.check(9 * 2048 + 1, 1, 0)  # the last block of a larger disk
    assert BlockCoverage("d", 10 * MIB).check(8 * 2048 + 2048, 1, 0) == 9
    with pytest.raises(errors.OutOfRange):
        BlockCoverage("d", 10 * MIB).check(9 * 2048 + 1, 1, 0)  # it would reach past the end


def test_a_bitmap_grows_with_what_comes() -> None:
    """C4: a disk of which little came costs no memory for its size; a far block keeps what was known."""
    shared = CoverageRoom()
    coverage = BlockCoverage("d", MAX_INFERRED_BYTES, room=shared)
    first, room = len(coverage.bits), shared.nblocks
    coverage.add(coverage.check(0, 1, 0), 1)
    far = 3 * first + 5
    coverage.add(coverage.check(far * 2048, 1, 0), 1)
    assert first < len(coverage.bits) < 4 * first
    assert coverage.missing((far + 1) * MIB) == [(1, far - 1)]
    assert shared.nblocks == room - (len(coverage.bits) - first)
    other = BlockCoverage("e", MAX_INFERRED_BYTES, room=shared)
    with pytest.raises(errors.OutOfRange, match="so far out"):
        other.check((MAX_INFERRED_BYTES - MIB) // 512, 1, 0)


def test_what_came_again_is_added_up_whatever_the_runs() -> None:
    """A6: the sums do not depend on how records were gathered into runs; zeros differ from data."""
    rng = random.Random(5)
    one, other = BlockCoverage("d", 64 * MIB), BlockCoverage("d", 64 * MIB)
    for _ in range(200):
        start = rng.randrange(60)
        count, is_zero = rng.randint(1, 64 - start), rng.random() < 0.5
        one.add(start, count, is_zero=is_zero)
        for block in range(start, start + count):
            other.add(block, 1, is_zero=is_zero)
    assert (one.resent_blocks, one.resent_sum) == (other.resent_blocks, other.resent_sum)
    assert one.checksum() == other.checksum()
    zeros, data = BlockCoverage("d", MIB), BlockCoverage("d", MIB)
    for coverage, is_zero in ((zeros, True), (data, False)):
        coverage.add(0, 1)
        coverage.add(0, 1, is_zero=is_zero)
    assert zeros.resent_sum == data.resent_sum + 1
