# SPDX-License-Identifier: GPL-2.0-or-later
"""A13: the phase before bulk says nothing of a base that is not so, whatever writers do meanwhile, and hashes once.

As in the property tests of races, all of it happens in one thread, and a seed is a whole interleaving.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import sim

from blkmig import disk, params
from blkmig.block import BlockSaveHandlers, base, basewords, digests, save, sizes, wire

MIB = sim.MIB
SIZES = (512, 1000, MIB - 512, MIB, MIB + 512, 5 * MIB // 2, 4 * MIB, 5 * MIB + 1536)
Said = list[tuple[str, basewords.BaseRun]]


def handlers_of(disks: list[sim.LayeredDisk], wire: Any) -> BlockSaveHandlers:
    handlers = BlockSaveHandlers(disks, params.MigrationParameters(shared_base=True, digests=True))
    handlers.disks.is_described = True
    handlers.save_setup(wire)
    return handlers


def hear(words: list[bytes], heard: basewords.SaidBase, said: sizes.SaidSizes) -> Said:
    found: Said = []
    for word in words:
        statement = heard.take(int.from_bytes(word, "big") >> 9 + wire.BASE_SHIFT, said, position=7)
        found += [] if statement is None else [(statement[0], run) for run in statement[1]]
    return found


def phase(handlers: BlockSaveHandlers, f: Any, is_lost: Callable[[], bool] = bool) -> Said:
    """Go through the phase and return what it says, on the last link; `is_lost` says when one is."""
    said, found, heard = sizes.SaidSizes(), basewords.SaidBase(), []
    for word in handlers.setup_parts():
        if int.from_bytes(word, "big") >> 9 & wire.IS_DESCRIBED:
            heard += hear([word], found, said)
        else:
            said.take(int.from_bytes(word, "big") >> 9, most=len(handlers.blk_mig.bmds_list), position=7)
    assert not heard
    while not handlers.base.is_over:
        handlers.save_live_iterate(f)
        assert not f.records
        if is_lost():
            assert handlers.base.begin_anew()
            found, heard = basewords.SaidBase(), []
        heard += hear(handlers.iterate_parts(), found, said)
        assert found.is_whole
    return heard


def blocks_of(content: bytes) -> list[bytes]:
    shape = disk.BlockGeometry(len(content))
    places = [shape.block_range(block)[0] for block in range(shape.nblocks)]
    return [content[place : place + MIB].ljust(MIB, b"\0") for place in places]


def digest_of_block(block: bytes) -> bytes:
    return digests.digest_of(memoryview(block))


def digest_of(content: bytes, run: basewords.BaseRun) -> bytes:
    return basewords.digest_of_run(map(digest_of_block, blocks_of(content)[run.first : run.first + run.nblocks]))


def play(seed: int, *, is_lost: bool = False) -> bool:
    """Return whether all that is said is so, while writers strike around each read and each question; with `is_lost`
    the link is lost now and then."""
    rng = random.Random(seed)
    content = rng.randbytes(1) * rng.choice(SIZES)
    layered = sim.LayeredDisk(content, base=content)
    layered.longest_answer = rng.choice((sim.CLUSTER, MIB, 1 << 30))
    for _ in range(rng.randrange(3)):
        layered.random_write(rng)
    f: Any = sim.Wire({b"d": bytearray(content)})
    handlers = handlers_of([layered], f)
    layered.step = lambda: layered.random_write(rng) if rng.random() < 0.1 else None
    said = phase(handlers, f, lambda: is_lost and rng.random() < 0.4)
    for _ in range(rng.randrange(3)):
        handlers.save_live_iterate(f)
    layered.hold_writers()
    handlers.save_live_complete_precopy(f)
    assert f.images[b"d"] == layered.image
    about, blocks = handlers.description()["disks"][0], b"".join(map(digest_of_block, blocks_of(bytes(layered.image))))
    handlers.save_cleanup()
    is_true = all(run.digest == digest_of(content, run) for _, run in said)
    assert not is_true or about["disk_digest"] == digests.combine_digests(blocks)
    return is_true


@pytest.mark.parametrize("is_short", [False, True])
def test_nothing_is_said_that_is_not_so(monkeypatch: pytest.MonkeyPatch, is_short: bool) -> None:
    """A13: under a live writer there is no false alarm, and the digest at the end is that of the disk."""
    if is_short:
        monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)
    assert all(play(seed) for seed in range(200))


def test_it_is_said_anew_on_another_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)
    assert all(play(seed, is_lost=True) for seed in range(200))


def test_what_was_given_up_is_not_said_anew() -> None:
    """Blocks may have gone by then."""
    f: Any = sim.Wire({b"d": bytearray(MIB)})
    handlers = handlers_of([sim.LayeredDisk(bytes(MIB), base=bytes(MIB))], f)
    assert not base.BasePhase().begin_anew()
    handlers.setup_parts()
    handlers.base.give_up()
    assert not handlers.base.begin_anew()
    assert handlers.base.is_over
    handlers.save_cleanup()


def test_a_wrong_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A13: who asks before the read only says what a writer has written."""

    def ask_before(bmds: Any, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        for first, count in pieces:
            bmds.hashed.set_range(first, count)
        return pieces

    monkeypatch.setattr(base, "held_by_base_alone", ask_before)
    assert not all(play(seed) for seed in range(200))


def test_a_block_that_was_written_and_discarded_is_left_out() -> None:
    """A13: an image of an old version shows the base again where it is discarded: then the mark tells of the write."""
    content = b"b" * 3 * MIB
    layered = sim.LayeredDisk(content, base=content)
    f: Any = sim.Wire({b"d": bytearray(content)})
    handlers = handlers_of([layered], f)
    steps, allocated = itertools.count(), layered.allocated
    assert allocated is not None

    def step() -> None:
        if layered.reads == [0, MIB] and next(steps) < 2:
            was_there = allocated[16]
            layered.write(b"b" if was_there else b"t", MIB)
            allocated[16] = not was_there

    layered.step = step
    runs = [run for _, run in phase(handlers, f)]
    assert next(steps) >= 2
    assert [(run.first, run.nblocks) for run in runs] == [(0, 1), (2, 1)]
    assert all(run.digest == digest_of(content, run) for run in runs)
    layered.hold_writers()
    handlers.save_live_complete_precopy(f)
    assert f.images[b"d"] == layered.image == content
    handlers.save_cleanup()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top", ["none", "all", "first", "last", "odd"])
def test_exactly_what_the_base_alone_holds_is_said_and_hashed_once(size: int, top: str) -> None:
    """A13: and bulk reads none of it again."""
    content = random.Random(size).randbytes(size)
    layered = sim.LayeredDisk(content, base=content)
    shape = disk.BlockGeometry(size)
    wanted = {"none": [], "all": range(shape.nblocks), "first": [0], "last": [shape.nblocks - 1]}
    written = wanted.get(top, range(1, shape.nblocks, 2))
    for block in written:
        layered.write(b"top", shape.block_range(block)[0])
    taken = {
        block
        for block in range(shape.nblocks)
        for cluster, is_allocated in enumerate(layered.allocated or b"")
        if is_allocated and block in shape.blocks_covering(cluster * sim.CLUSTER, sim.CLUSTER)
    }
    f: Any = sim.Wire({b"d": bytearray(content)})
    handlers = handlers_of([layered], f)
    said = phase(handlers, f)
    assert handlers.base.has_ended() == bool(said)
    assert not handlers.base.has_ended()
    blocks = [block for _, run in said for block in range(run.first, run.first + run.nblocks)]
    assert blocks == [block for block in range(shape.nblocks) if block not in taken]
    handlers.save_live_complete_precopy(f)
    assert len(layered.reads) == len(set(layered.reads)) == shape.nblocks
    assert f.images[b"d"] == layered.image
    handlers.save_cleanup()


def test_answers_from_before_the_read_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A13: a disk that remembers what its server said is asked anew after the read, and its marks are fetched then."""
    content = b"b" * 2 * MIB
    layered, order = sim.LayeredDisk(content, base=content), []
    for verb in ("next_allocated", "read_block", "forget_extents", "sync_dirty"):
        original = getattr(layered, verb)
        monkeypatch.setattr(
            layered, verb, lambda *args, verb=verb, original=original: (order.append(verb), original(*args))[1]
        )
    f: Any = sim.Wire({})
    handlers = handlers_of([layered], f)
    phase(handlers, f)
    handlers.save_cleanup()
    assert order == ["next_allocated", "read_block", "read_block", "forget_extents", "next_allocated", "sync_dirty"]


@pytest.mark.parametrize("left_out", ["shared_base", "digests", "described", "qemu"])
def test_who_cannot_be_told_is_not(left_out: str) -> None:
    """A13: without digests there is nothing to say, and a QEMU is told nothing."""
    about = params.MigrationParameters(
        shared_base=left_out != "shared_base", digests=left_out != "digests", qemu=left_out == "qemu"
    )
    handlers = BlockSaveHandlers([sim.LayeredDisk(b"b" * MIB, base=b"b" * MIB)], about)
    handlers.disks.is_described = left_out != "described"
    f: Any = sim.Wire({b"d": bytearray(MIB)})
    handlers.save_setup(f)
    words = [int.from_bytes(word, "big") >> 9 for word in handlers.setup_parts()]
    assert not any(marks & wire.IS_DESCRIBED for marks in words)
    assert handlers.base.is_over
    handlers.save_live_complete_precopy(f)
    assert handlers.iterate_parts() == []
    assert not handlers.base.has_ended()
    handlers.save_cleanup()
