# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks of the bulk phase that have holes: what goes of them, and what the disk is asked."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sim

from blkmig import params
from blkmig.block import BlockSaveHandlers, save

MIB = sim.MIB
CLUSTER = sim.CLUSTER


def disk_of(size: int, *data: tuple[int, int]) -> sim.LayeredDisk:
    """Return a disk that holds data in these extents only."""
    content = bytearray(size)
    for offset, nbytes in data:
        content[offset : offset + nbytes] = b"d" * nbytes
    return sim.LayeredDisk(bytes(content))


def send(disk: sim.LayeredDisk, *, section: str = "blkmig", **parameters: Any) -> tuple[sim.Wire, Any, list[int]]:
    """Send all of a disk at rest; return what was on the wire, the state in its end, and where the disk was asked."""
    wire, handlers = (
        sim.Wire({b"d": bytearray(b"\xff" * disk.size)}),
        BlockSaveHandlers([disk], params.MigrationParameters(**parameters)),
    )
    handlers.is_described = True
    handlers.format = "blkmig" if section == "blkmig" else "block"
    asked: list[int] = []
    answer = disk.next_data

    def next_data(offset: int) -> tuple[int, int] | None:
        asked.append(offset)
        return answer(offset)

    disk.next_data = next_data  # type: ignore[method-assign]
    f: Any = wire
    f.put_buffer = lambda data: None
    handlers.save_setup(f)
    handlers.save_live_complete_precopy(f)
    assert wire.images[b"d"] == disk.image
    blk_mig = handlers.blk_mig
    handlers.save_cleanup()
    del disk.next_data  # type: ignore[method-assign]
    return wire, blk_mig, asked


def test_only_the_data_of_a_block_goes() -> None:
    disk = disk_of(4 * MIB, (MIB + CLUSTER, CLUSTER), (MIB + 5 * CLUSTER, 2 * CLUSTER))
    wire, blk_mig, _ = send(disk)
    assert wire.packs == [(b"d", [(MIB + CLUSTER, CLUSTER), (MIB + 5 * CLUSTER, 2 * CLUSTER)])]
    assert all(is_zero for *_, is_zero in wire.records)
    assert blk_mig.pack_bytes == 3 * CLUSTER
    assert (blk_mig.packs, blk_mig.transferred) == (1, 4)
    assert blk_mig.sent_bytes == 4 * MIB + 3 * CLUSTER, "zero blocks count with 1 MiB"


@pytest.mark.parametrize(("clusters", "is_whole"), [(11, False), (12, True)])
def test_three_quarters_go_whole(clusters: int, is_whole: bool) -> None:
    wire, _, _ = send(disk_of(3 * MIB, (MIB, clusters * CLUSTER)))
    assert [is_zero for *_, is_zero in wire.records] == [True, not is_whole, True]
    assert len(wire.packs) == (not is_whole)


def test_many_places_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that reads one extent after the other says how many are enough."""
    disk = disk_of(2 * MIB, *((place * CLUSTER, CLUSTER) for place in range(0, 16, 2)))
    wire, blk_mig, _ = send(disk)
    assert len(wire.packs[0][1]) == 8
    monkeypatch.setattr(type(blk_mig.reads), "pack_extents", 7)
    wire, _, _ = send(disk)
    assert not wire.packs


@pytest.mark.parametrize(
    ("section", "parameters"),
    [
        ("block", {}),
        ("blkmig", {"digests": True}),
        ("blkmig", {"zero_blocks": False}),
        ("blkmig", {"granularity": MIB}),
    ],
)
def test_where_blocks_go_whole(section: str, parameters: dict[str, Any]) -> None:
    """The section `block` has no packs, and a digest is of a block; others have asked for whole blocks."""
    wire, _, _ = send(disk_of(3 * MIB, (MIB, CLUSTER)), section=section, **parameters)
    assert not wire.packs
    assert (b"d", 2048, False) in wire.records


@pytest.mark.parametrize("size", [512, 40_000, MIB - 5, MIB + 512, 2 * MIB + 1000, 3 * MIB + 77 * 512])
def test_the_last_block(size: int) -> None:
    """It overlaps its neighbour, and ends with the last sector."""
    wire, _, _ = send(disk_of(size, (size - 1, 1)))
    end = -(-size // 512) * 512
    for _, extents in wire.packs:
        assert sum(extents[-1]) == end
        assert all((offset | nbytes) % 512 == 0 for offset, nbytes in extents)


def test_answers_that_end_within_data_make_one_extent() -> None:
    disk = disk_of(2 * MIB, (CLUSTER, 4 * CLUSTER))
    disk.longest_answer = CLUSTER
    wire, _, _ = send(disk)
    assert wire.packs == [(b"d", [(CLUSTER, 4 * CLUSTER)])]


def test_data_that_is_zero_is_not_sent() -> None:
    """As where nobody knows of holes: a file may hold zeros that were written, or room that was only allocated."""

    class Allocated(sim.LayeredDisk):
        def next_data(self, offset: int) -> tuple[int, int] | None:
            return (max(offset, MIB), MIB + CLUSTER) if offset < MIB + CLUSTER else None

    wire, blk_mig, _ = send(Allocated(bytes(3 * MIB)))
    assert not wire.packs
    assert len(wire.records) == 3
    assert blk_mig.packs == blk_mig.pack_bytes == 0


def test_a_disk_without_holes_is_asked_once() -> None:
    _, _, asked = send(disk_of(16 * MIB, (0, 16 * MIB)))
    assert asked == [0]


def test_marks_that_are_set_while_it_is_asked_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is written in a random hole while the bulk phase looks at it, and arrives as it was written."""
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)
    for seed in range(20):
        rng = random.Random(seed)
        disk = disk_of(6 * MIB, *((block * MIB + CLUSTER, CLUSTER) for block in range(6)))

        def write(disk: sim.LayeredDisk = disk, rng: random.Random = rng) -> None:
            if rng.random() < 0.3:
                disk.write(b"w" * 4096, rng.randrange(6 * MIB // 4096) * 4096)

        disk.step = write
        wire, handlers = sim.Wire({b"d": bytearray(disk.size)}), BlockSaveHandlers([disk], params.MigrationParameters())
        handlers.is_described, handlers.format = True, "blkmig"
        f: Any = wire
        f.put_buffer = lambda data: None
        handlers.save_setup(f)
        for _ in range(12):
            handlers.save_live_iterate(f)
        disk.hold_writers()
        handlers.save_live_complete_precopy(f)
        assert wire.images[b"d"] == disk.image, f"seed {seed}"
        assert wire.packs
