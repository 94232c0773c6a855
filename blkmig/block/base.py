# SPDX-License-Identifier: GPL-2.0-or-later
"""The phase before bulk, with a shared base and digests: what only the base holds is hashed and said.

So a receiver that verifies sees before the first block whether its target holds the same base. Without this phase, the
bulk phase hashes these blocks as it comes to them, and a wrong base is found at the very end.

Writers run meanwhile, and what they write is not the base's. A read returns what the layers together hold. So the order
is **read, ask again, look at the marks**::

    writer    allocate in the top layer ──► show the new bytes ─────────────► mark
    reader                                        read ► ask again ► sync, look at the marks

Bytes that a read can see were allocated before it. So if the disk says after the read that the top layer does not hold
the block, no byte of the read was a writer's, unless a discard has taken the block out of the top layer in between; and
that write has left its mark. What is allocated or marked is not said, and the phases to come send or hash it. The base
itself is not written by anybody.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

from .. import _core
from ..disk import geometry
from . import basewords, bulk, device, digests, state


class BasePhase:
    """Goes once over the disks of a migration, a section at a time. Before `begin` it is over."""

    def __init__(self) -> None:
        self._blk_mig: state.BlkMigState | None = None
        self._marks = 0
        self._disks: collections.deque[device.BlkMigDevState] = collections.deque()
        self._block = 0
        """Where the first of these disks goes on."""

        self._words: list[bytes] = []
        self._has_said = self._is_given_up = False

    def begin(self, blk_mig: state.BlkMigState, marks: int) -> list[bytes]:
        """Have the disks of `blk_mig` before it, and return the EOS words that name them; `marks` are the first EOS's.
        """
        self._blk_mig, self._marks = blk_mig, marks
        for bmds in blk_mig.bmds_list:
            if bmds.geometry.nblocks <= basewords.MAX_BLOCKS:
                with geometry.keeping_account(bmds.geometry.size):
                    bmds.hashed = _core.Bitmap(bmds.geometry.nblocks)
                self._disks.append(bmds)
        return [word for bmds in blk_mig.bmds_list for word in basewords.say(marks, bmds.name, [])]

    def begin_anew(self) -> bool:
        """Have all of it be hashed and said again, because the link was lost; False if the phase was given up."""
        if self._blk_mig is None or self._is_given_up:
            return False
        self._disks.clear()
        self._block, self._has_said = 0, False
        self._words = self.begin(self._blk_mig, self._marks)
        return True

    @property
    def is_over(self) -> bool:
        """Return whether all disks were visited, or the phase was given up."""
        return not self._disks

    def give_up(self) -> None:
        """Leave the rest to the bulk phase."""
        self._is_given_up = True
        self._disks.clear()

    def take_words(self) -> list[bytes]:
        """Return the EOS words that the last section has to say, once."""
        words, self._words = self._words, []
        self._has_said = self._has_said or bool(words)
        return words

    def has_ended(self) -> bool:
        """Return, once, whether all is said, and there was something: time to wait for a target that compares it."""
        has_said = self._has_said and self.is_over
        self._has_said = self._has_said and not has_said
        return has_said

    def hash_some(self, is_time_over: Callable[[], bool]) -> None:
        """Hash blocks of the next disk until the time is over, a step at least, and have ready what to say of them.

        Blocks.
        """
        bmds, pieces = self._disks[0], []
        while self._block < bmds.geometry.nblocks:
            first = self._block
            if done := self._step(bmds):
                pieces.append((first, done))
            if is_time_over():
                break
        else:
            self._disks.popleft()
            self._block = 0
        runs = [
            basewords.BaseRun(first, count, digest_of(bmds, first, count))
            for first, count in held_by_base_alone(bmds, pieces)
        ]
        self._words += basewords.say(self._marks, bmds.name, runs) if runs else []

    def _step(self, bmds: device.BlkMigDevState) -> int:
        """Hash blocks from the cursor on for a moment and move it; return how many, 0 if the top layer holds it."""
        count, extent = bulk.next_base_blocks(bmds, self._block)
        assert self._blk_mig is not None
        done = bulk.hash_base(self._blk_mig, bmds, self._block, count) if count else 0
        self._block += done
        if done == count and extent is not None:
            self._block = max(self._block + 1, extent[1] // _core.BLOCK_SIZE)
        return done


def held_by_base_alone(bmds: device.BlkMigDevState, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs of these blocks, which were read, that nobody has written meanwhile; note that they are hashed.

    Blocks as the disk's verbs do.
    """
    hashed = bmds.hashed
    assert hashed is not None
    bmds.backend.forget_extents()
    for first, count in pieces:
        hashed.set_range(first, count)
        for blocks in allocated_blocks(bmds, first, count):
            hashed.clear_range(blocks.start, len(blocks))
    bmds.backend.sync_dirty()
    runs: list[tuple[int, int]] = []
    for first, count in pieces:
        stop, block = first + count, bmds.dirty_bitmap.next_dirty(first)
        while 0 <= block < stop:
            hashed.clear(block)
            block = bmds.dirty_bitmap.next_dirty(block + 1)
        runs += areas(hashed, first, stop)
    return runs


def allocated_blocks(bmds: device.BlkMigDevState, first: int, count: int) -> Iterator[range]:
    """Yield the blocks that the top layer holds a byte of, of `count` blocks from `first` on."""
    offset, _ = bmds.geometry.block_range(first)
    start, nbytes = bmds.geometry.block_range(first + count - 1)
    end = start + nbytes
    while offset < end and (extent := bulk.next_allocated(bmds, offset, end - offset)) is not None:
        yield bmds.geometry.blocks_covering(extent[0], extent[1] - extent[0])
        offset = extent[1]


def areas(bits: _core.Bitmap, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the areas (first, count) of set bits in [start, stop)."""
    while start < stop and (area := bits.next_dirty_area(start, stop)) is not None:
        yield area
        start = sum(area)


def digest_of(bmds: device.BlkMigDevState, first: int, count: int) -> bytes:
    """Return the digest of a run of blocks that were hashed."""
    assert bmds.disk_digests is not None
    size = digests.DIGEST_SIZE
    return basewords.digest_of_run([memoryview(bmds.disk_digests)[first * size : (first + count) * size]])
