# SPDX-License-Identifier: GPL-2.0-or-later
"""The bulk phase of a disk of which the target holds an old copy: only what differs is sent.

::

    source                                             target
    ASK: 64 blocks of data ───────────────────────────►  reads them, hashes
                             ◄─────────────────────────  DIGEST
    clear the marks, read, hash, compare
       ├─ the same                SAME ───────────────►  has come
       ├─ all of it differs       the block ──────────►
       └─ a part may differ: ASK for finer pieces, then
          clear the marks, read, hash, compare
               ├─ ...                                    as above
               └─ a part differs  PACK, SAME ─────────►

**What is compared is what is sent**: each copy is judged by itself, in memory of our own, with its marks taken before
it was read. A copy that only told that more has to be asked is dropped, and the block is read again.

Two ASKs are on their way, so that the target reads while this end compares. Holes of the source are not asked for: they
go as zeros, and cost the target nothing where it has holes. The last block of most disks starts early, over its
neighbour; it waits until all others are settled, so that a digest never is of what was overwritten since.

**After a lost link** nothing that was asked, answered or said on it counts, unless a barrier behind it is acknowledged.
Blocks that were settled since are compared again (`again`, which `log` fills), and so are those that were asked for.
The target forgets for what it has vouched, and both count ASKs from 1. So a SAME is always about a digest of the
link on which it goes, and of what all earlier links have made of the target.

Everything belongs to the migration thread.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from .. import _core, channel, errors
from ..savevm import digestwords
from . import askwords, bulk, device, digests, extras, hashing, parts, pieces, send, state

ASK_BLOCKS = 64
"""So many blocks one ASK is about: the target reads 64 MiB while an answer travels, whatever the link's latency is."""

FINER_BLOCKS = 16
"""So many blocks wait for an ASK of finer pieces; fewer do when nothing else is left to be asked."""

WAIT_SECONDS = 0.02
"""A wait for an answer ends after this long, so that a section ends and a cancel is heard."""


@dataclasses.dataclass(slots=True)
class _Request:
    """An ASK that is not yet answered."""

    number: int
    blocks: list[pieces.ComparedBlock]


class Comparison:
    """What is asked, answered and settled; of one disk after the other, numbered as in the table from 0 on."""

    def __init__(self, take_answer: state.TakeAnswer, blk_mig: state.BlkMigState) -> None:
        self._take_answer = take_answer
        self._zero_blocks = blk_mig.zero_blocks
        blk_mig.reads.decide = self.decide
        self._number = 0
        self._asked: collections.deque[_Request] = collections.deque()
        self._answered: collections.deque[pieces.ComparedBlock] = collections.deque()
        self._finer: collections.deque[pieces.ComparedBlock] = collections.deque()
        self._reading = 0
        self._same: list[askwords.Range] = []
        self._bmds: device.BlkMigDevState | None = None  # whose all of that is

    def save_device_bulk(
        self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState
    ) -> bool:
        """Do one step of a disk's bulk phase, as `bulk.save_device_bulk` does. May wait a moment for an answer."""
        self._bmds = bmds
        if self._asked and not self._answered:
            self._take(0.0)
        if len(self._asked) < askwords.MAX_ASKS and self._ask(blk_mig, f, bmds):
            return True
        if self._answered:
            self._submit(blk_mig, bmds, self._answered.popleft())
            return True
        self._say_same(blk_mig, f, bmds)
        if self._asked and not self._reading:
            f.flush()
            self._take(WAIT_SECONDS)
        elif self._is_idle():
            bmds.bulk_completed = True
        return False

    def decide(self, blk: device.BlkMigBlock) -> None:
        """Say what is sent of a block that was read; where it is parts of it, the buffer holds only these then."""
        bmds, compared, buf = blk.bmds, blk.compared, blk.buf
        assert bmds is not None
        assert compared is not None
        copy = buf.payload[compared.offset - blk.offset :][: compared.nbytes]
        is_zero = buf.is_zero and self._zero_blocks
        if compared.is_again and bmds.proof is not None:  # read a second time by whom? Maybe still for the first time
            bmds.proof.block_sent(compared.block, buf.data)
        compared.verdict = verdict = compared.judge(copy, hashing.hash_of, is_zero=is_zero)
        blk.has_payload = verdict in (pieces.Verdict.WHOLE, pieces.Verdict.PARTS)
        if verdict in (pieces.Verdict.SAME, pieces.Verdict.PARTS) and bmds.digests is not None:
            send.note_digests(bmds, compared.block, digests.digest_of(buf.payload))
        if verdict is pieces.Verdict.PARTS:
            parts.gather(blk, compared.differing())

    def settle(self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, blk: device.BlkMigBlock) -> None:
        """Send of a block that was read what the target does not hold, or have finer digests be asked for."""
        bmds, compared = blk.bmds, blk.compared
        assert bmds is not None
        assert compared is not None
        self._reading -= 1
        if compared.verdict is None:
            self.decide(blk)
        verdict = compared.verdict
        if verdict is pieces.Verdict.FINER:
            compared.split()
            self._finer.append(compared)
            blk_mig.in_flight_bytes += _core.BLOCK_SIZE
            return
        blk.bulk_sectors = _sectors_of(bmds, compared.block)
        if verdict is pieces.Verdict.WHOLE:
            send.blk_send(blk_mig, f, blk)
            return
        same = [(compared.offset, compared.nbytes)]
        if verdict is pieces.Verdict.PARTS:
            same = compared.same()
            parts.put(blk_mig, f, blk)
        if not blk.buf.is_zero:
            blk_mig.same_bytes += sum(nbytes for _, nbytes in same)
        self._add_same(same)
        if verdict is pieces.Verdict.PARTS or len(self._same) >= askwords.MAX_RANGES:
            self._say_same(blk_mig, f, bmds)

    def section_ends(self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile) -> None:
        """Say what is the same of blocks that are settled: a barrier that follows is about them."""
        if self._bmds is not None:
            self._say_same(blk_mig, f, self._bmds)

    def link_lost(self) -> None:
        """Have all that was asked for be compared again, when no read is in flight any more."""
        for compared in (*(each for asked in self._asked for each in asked.blocks), *self._answered, *self._finer):
            assert self._bmds is not None
            self._bmds.again.set(compared.block)
        for waiting in (self._asked, self._answered, self._finer, self._same):
            waiting.clear()
        self._number = self._reading = 0

    # -- asking ------------------------------------------------------------------------------------------------------

    def _ask(self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> bool:
        """Ask for more, or send the hole that comes next; False if neither is to be done now."""
        if len(self._finer) >= FINER_BLOCKS:
            return self._ask_finer(blk_mig, f, bmds)
        if self._may_go_on(bmds):
            self._say_same(blk_mig, f, bmds)  # before any hole: the last block may start early
            if not _is_again(bmds) and bulk.send_hole(blk_mig, f, bmds):
                bmds.bulk_completed = False  # only when all blocks are settled
                return True
            blocks = self._data_ahead(blk_mig, bmds)
            blk_mig.in_flight_bytes += len(blocks) * _core.BLOCK_SIZE
            self._put_ask(blk_mig, f, bmds, blocks)
            return True
        return self._ask_finer(blk_mig, f, bmds)

    def _may_go_on(self, bmds: device.BlkMigDevState) -> bool:
        """Return whether the next block may be asked for: there is one, and it does not start early, or all is
        settled."""
        block = _next_block(bmds)
        return block is not None and (self._is_idle() or not _starts_early(bmds, block))

    def _data_ahead(self, blk_mig: state.BlkMigState, bmds: device.BlkMigDevState) -> list[pieces.ComparedBlock]:
        """Take what is compared again, then move the cursor over blocks that may hold data, up to the next hole; return
        them: at least one."""
        found: list[pieces.ComparedBlock] = []
        while len(found) < ASK_BLOCKS and (block := _next_block(bmds)) is not None:
            is_again = _is_again(bmds)
            looks_for_holes = blk_mig.zero_blocks and not is_again
            if found and (_starts_early(bmds, block) or (looks_for_holes and bulk.hole_blocks(bmds, block))):
                break
            offset = block * _core.BLOCK_SIZE
            nbytes = min(_core.BLOCK_SIZE, bmds.geometry.size - offset)
            found.append(pieces.ComparedBlock(block, offset, nbytes, is_again=is_again))
            if is_again:
                bmds.again.clear(block)
            else:
                bulk.advance(bmds, 1)
        bmds.bulk_completed = False
        return found

    def _ask_finer(self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> bool:
        blocks: list[pieces.ComparedBlock] = []
        left = digestwords.MAX_PIECES
        while self._finer and self._finer[0].asked <= left and (not blocks or self._finer[0].shift == blocks[0].shift):
            blocks.append(self._finer.popleft())
            left -= blocks[-1].asked
        if blocks:
            blocks.sort(key=lambda each: each.block)
            self._put_ask(blk_mig, f, bmds, blocks)
        return bool(blocks)

    def _put_ask(
        self,
        blk_mig: state.BlkMigState,
        f: channel.OutputQEMUFile,
        bmds: device.BlkMigDevState,
        blocks: list[pieces.ComparedBlock],
    ) -> None:
        self._number += 1
        ranges: list[askwords.Range] = []
        for offset, count in (each for compared in blocks for each in compared.ranges()):
            if ranges and ranges[-1][0] + (ranges[-1][1] << blocks[0].shift) == offset:
                offset, count = ranges[-1][0], ranges.pop()[1] + count
            ranges.append((offset, count))
        ask = askwords.Ask(self._number, blk_mig.bmds_list.index(bmds), blocks[0].shift, tuple(ranges))
        self._asked.append(_Request(self._number, blocks))
        self._say_same(blk_mig, f, bmds)
        f.put_buffer(extras.extra(extras.ExtraKind.ASK, ask.encode()))
        f.flush()

    # -- answers -----------------------------------------------------------------------------------------------------

    def _take(self, seconds: float) -> None:
        """Take the next answer if it comes within `seconds`."""
        answer = self._take_answer(seconds)
        if answer is None:
            return
        request = self._asked.popleft()
        wanted = sum(compared.asked for compared in request.blocks)
        if (answer.number, len(answer.pieces)) != (request.number, wanted):
            raise errors.StreamError(
                f"the target answers ASK {answer.number} with {len(answer.pieces)} digests, and ASK {request.number} "
                f"for {wanted} is due",
                position=answer.position,
            )
        at = 0
        for compared in request.blocks:
            compared.take(answer.pieces[at : at + compared.asked])
            at += compared.asked
        self._answered.extend(request.blocks)

    def _submit(
        self, blk_mig: state.BlkMigState, bmds: device.BlkMigDevState, compared: pieces.ComparedBlock
    ) -> None:
        """Read a block of which digests have come."""
        blk = blk_mig.reads.get()
        bmds.dirty_bitmap.take_block(compared.block)  # before the read: a write that races it marks the block again
        blk.bulk_sectors = 0
        self._reading += 1
        blk_mig.in_flight_bytes -= _core.BLOCK_SIZE  # which it counted for since it was asked for
        send.submit(blk_mig, bmds, compared.block, blk, compared=compared)

    # -- what is the same --------------------------------------------------------------------------------------------

    def _add_same(self, ranges: Iterable[askwords.Range]) -> None:
        for offset, nbytes in ranges:
            if self._same and sum(self._same[-1]) == offset:
                offset, nbytes = self._same[-1][0], self._same.pop()[1] + nbytes
            self._same.append((offset, nbytes))

    def _say_same(self, blk_mig: state.BlkMigState, f: channel.OutputQEMUFile, bmds: device.BlkMigDevState) -> None:
        if self._same:
            ranges, self._same = sorted(self._same), []
            body = askwords.encode_same(blk_mig.bmds_list.index(bmds), ranges)
            f.put_buffer(extras.extra(extras.ExtraKind.SAME, body))

    def _is_idle(self) -> bool:
        return not (self._asked or self._answered or self._finer or self._reading)


def _starts_early(bmds: device.BlkMigDevState, block: int) -> bool:
    return bmds.geometry.block_range(block)[0] < block * _core.BLOCK_SIZE


def _is_again(bmds: device.BlkMigDevState) -> bool:
    return bmds.again.find_next_set(0) >= 0


def _next_block(bmds: device.BlkMigDevState) -> int | None:
    """Return the block that is asked for next: what is compared again lies below the cursor, and goes first."""
    if (block := bmds.again.find_next_set(0)) >= 0:
        return block
    return bmds.cur_sector // _core.SECTORS_PER_BLOCK if bmds.cur_sector < bmds.geometry.total_sectors else None


def _sectors_of(bmds: device.BlkMigDevState, block: int) -> int:
    """Return how far the bulk phase is with a block that is settled."""
    start = block * _core.SECTORS_PER_BLOCK
    return min(_core.SECTORS_PER_BLOCK, bmds.geometry.total_sectors - start)
