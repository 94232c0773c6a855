# SPDX-License-Identifier: GPL-2.0-or-later
"""The bulk phase on every small disk: which blocks go over the wire, in which form, against the obvious answer."""

from __future__ import annotations

import errno
import itertools

import pytest
import sim

from blkmig import errors, params
from blkmig.block import BlockSaveHandlers, bulk

MIB = sim.MIB
HALF = MIB // 2
SIZES = [512, HALF, MIB - 512, MIB, MIB + HALF, 2 * MIB, 2 * MIB + HALF, 2 * MIB + 1000]


def blocks_of(size: int) -> list[tuple[int, int]]:
    """Return the ranges (start, end) of the blocks, as WIRE's rule says: the last one ends where the disk ends."""
    total = -(-size // 512) * 512
    starts = list(range(0, total, MIB))
    if total >= MIB:
        starts[-1] = total - MIB
    return [(start, min(start + MIB, total)) for start in starts]


def pieces_of(size: int) -> list[tuple[int, int]]:
    """Return the halves of MiBs of which each disk is made."""
    return [(start, min(start + HALF, size)) for start in range(0, size, HALF)]


def touches(block: tuple[int, int], pieces: list[tuple[int, int]]) -> bool:
    """Return whether a block shares a byte with one of the pieces."""
    return any(start < block[1] and block[0] < end for start, end in pieces)


def send_all(disk: sim.LayeredDisk, target: bytearray, **parameters: object) -> tuple[sim.Wire, BlockSaveHandlers]:
    """Let the handlers send a disk at rest, from setup to completion, into `target`."""
    wire = sim.Wire({b"d": target})
    handlers = BlockSaveHandlers([disk], params.MigrationParameters(**parameters))  # type: ignore[arg-type]
    handlers.save_setup(wire)  # type: ignore[arg-type]
    while handlers.save_live_pending():
        assert handlers.save_live_iterate(wire) == (handlers.save_live_pending() == 0)  # type: ignore[arg-type]
    handlers.save_live_complete_precopy(wire)  # type: ignore[arg-type]
    assert handlers.blk_mig.bytes_remaining() == 0
    assert handlers.blk_mig.bytes_transferred() == handlers.blk_mig.bytes_total()
    assert handlers.blk_mig.transferred == len(wire.records)
    handlers.save_cleanup()
    assert not disk.trackers
    return wire, handlers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("zero_blocks", [True, False])
def test_every_pattern_of_holes(size: int, zero_blocks: bool) -> None:
    pieces = pieces_of(size)
    for pattern in itertools.product((False, True), repeat=len(pieces)):
        content = bytearray(size)
        data = [piece for piece, is_data in zip(pieces, pattern, strict=True) if is_data]
        for start, end in data:
            content[start:end] = b"d" * (end - start)
        disk, target = sim.LayeredDisk(bytes(content)), bytearray(b"\xff" * size)
        wire, _ = send_all(disk, target, zero_blocks=zero_blocks)
        assert target == content, pattern
        blocks = blocks_of(size)
        assert [sector * 512 for _, sector, _ in wire.records] == [start for start, _ in blocks], pattern
        has_data = [touches(block, data) for block in blocks]
        assert [not is_zero for *_, is_zero in wire.records] == [one or not zero_blocks for one in has_data], pattern
        if zero_blocks:
            read = [start for (start, _), one in zip(blocks, has_data, strict=True) if one]
            assert disk.reads == read, "holes are never read"
        assert wire.progress() == [*sorted(set(wire.progress()[:-1])), 100]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("search", [2 * MIB, 32 * MIB])
@pytest.mark.parametrize("answers", ["whole", "partial", "errors"])
def test_every_pattern_of_layers(monkeypatch: pytest.MonkeyPatch, size: int, search: int, answers: str) -> None:
    """Each half MiB is the base's, or zeros in the top layer, or data in it."""
    monkeypatch.setattr(bulk, "SEARCH_BYTES", search)
    pieces = pieces_of(size)
    kinds = "bzd" if len(pieces) < 5 else "bd"
    for pattern in itertools.product(kinds, repeat=len(pieces)):
        check_layers(size, dict(zip(pieces, pattern, strict=True)), answers)


def check_layers(size: int, kinds: dict[tuple[int, int], str], answers: str) -> None:
    """Send one layered disk to a copy of its base."""
    base = b"b" * size
    content = bytearray(base)
    disk = sim.LayeredDisk(base, base=base)
    assert disk.allocated is not None
    top = [piece for piece, kind in kinds.items() if kind != "b"]
    for start, end in top:
        content[start:end] = (b"d" if kinds[start, end] == "d" else b"\0") * (end - start)
        for cluster in range(start // sim.CLUSTER, -(-end // sim.CLUSTER)):
            disk.allocated[cluster] = 1
    disk.image[:] = content
    if answers == "partial":
        disk.longest_answer = sim.CLUSTER
    elif answers == "errors":
        disk.next_allocated = failing  # type: ignore[method-assign]
    target = bytearray(base)
    wire, _ = send_all(disk, target, shared_base=True)
    assert target == content, kinds
    wanted = [start for start, end in blocks_of(size) if answers == "errors" or touches((start, end), top)]
    assert [sector * 512 for _, sector, _ in wire.records] == wanted, kinds


def failing(offset: int, nbytes: int) -> None:
    cause = OSError(errno.EIO, "Input/output error")
    raise errors.DeviceError("cannot tell", device="d", cause=cause, offset=offset)


def test_holes_of_a_disk_without_next_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot tell says that all is data: it is read, and its zero blocks are found by scanning."""
    disk = sim.LayeredDisk(bytes(3 * MIB))
    monkeypatch.setattr(disk, "next_data", lambda offset: (offset, disk.size))
    wire, _ = send_all(disk, bytearray(b"\xff" * 3 * MIB))
    assert len(disk.reads) == 3
    assert all(is_zero for *_, is_zero in wire.records)


def test_one_question_for_a_hole_and_none_within_data(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = sim.LayeredDisk(b"d" * 8 * MIB + bytes(8 * MIB) + b"d" * 8 * MIB)
    questions = []
    ask = disk.next_data
    monkeypatch.setattr(disk, "next_data", lambda offset: questions.append(offset // MIB) or ask(offset))
    wire, _ = send_all(disk, bytearray(24 * MIB))
    assert questions == [0, 8]
    assert wire.runs == [8]


def test_another_question_for_a_hole_that_was_written_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer may be older than the write whose mark was cleared."""
    disk, target = sim.LayeredDisk(b"d" * 8 * MIB + bytes(16 * MIB)), bytearray(24 * MIB)
    questions = []
    ask = disk.next_data

    def next_data(offset: int) -> tuple[int, int] | None:
        questions.append(offset // MIB)
        extent = ask(offset)
        if questions == [0, 8]:
            disk.write(b"new", 10 * MIB)
        return extent

    monkeypatch.setattr(disk, "next_data", next_data)
    wire, _ = send_all(disk, target)
    assert target == disk.image
    assert questions == [0, 8, 8, 11]
    assert wire.runs[0] == 2


@pytest.mark.parametrize("size", SIZES)
def test_bits_of_skipped_blocks_are_kept(size: int) -> None:
    """What is written into the base's part while bulk has passed it by, or has it still before it, is sent."""
    for when in ("before", "after"):
        for block, (start, _) in enumerate(blocks_of(size)):
            base = b"b" * size
            disk, target = sim.LayeredDisk(base, base=base), bytearray(base)
            wire = sim.Wire({b"d": target})
            handlers = BlockSaveHandlers([disk], params.MigrationParameters(shared_base=True))
            handlers.save_setup(wire)  # type: ignore[arg-type]
            if when == "before":
                disk.write(b"new", start)
            handlers.save_live_iterate(wire)  # type: ignore[arg-type]
            if when == "after":
                assert wire.records == []
                disk.write(b"new", start)
                assert handlers.save_live_pending() >= MIB
            handlers.save_live_complete_precopy(wire)  # type: ignore[arg-type]
            assert target == disk.image, (when, block)
            handlers.save_cleanup()
