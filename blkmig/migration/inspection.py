# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in a stream: read to its end, nothing written, in constant memory, whole or broken.

The verdicts:

===========  ========================================================================================
complete     every block of every disk came, and the stream has its end
incremental  the stream has its end, and holds only what the top layers of its disks hold
lossy        the stream has its end, and blocks are missing: a QEMU from 7.2 to 9.0 lost them
cancelled    the stream stops between two records: the source cancelled or failed, or the link broke
truncated    the stream stops within a record, or before the description that must end it
error        the stream is damaged, or the source could not read its disk
===========  ========================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from .. import _core, block, channel, errors, savevm, stats
from ..block import ExtraKind, TableDisk
from ..disk import Extents
from . import announcement, verdict

Verdict = Literal["complete", "incremental", "lossy", "cancelled", "truncated", "error"]

SCHEMA = "blkmig-inspect/1"
INCREMENTAL = "the stream holds only the top layers of its disks: receive it with --incremental, onto the base"


class RecordListener:
    """Is told of each record of the section of the disks, for a listing; does nothing until overridden."""

    def block(self, name: str, sector: int, count: int, position: int, *, is_zero: bool) -> None:
        """Take note of a block, or of a run of zero blocks."""

    def pack(self, name: str, extents: Extents, position: int) -> None:
        """Take note of a pack, with each extent as (offset, nbytes)."""

    def progress(self, percent: int) -> None:
        """Take note of the progress that the source reports; it has changed."""

    def table(self, disks: Sequence[TableDisk], position: int) -> None:
        """Take note of the table with which a section ``blkmig`` begins."""

    def flush(self, number: int) -> None:
        """Take note that the source asks for everything to be on stable storage."""

    def barrier(self, number: int, position: int) -> None:
        """Take note of a barrier, which is acknowledged when what came before it is on stable storage."""

    def extra(self, kind: ExtraKind, nbytes: int, position: int) -> None:
        """Take note of a record of this kind, with so many bytes of body."""


class InspectedDisk:
    """What came of one disk."""

    def __init__(self, name: str, records: RecordListener, room: block.CoverageRoom | None = None) -> None:
        self.statistics = stats.DiskStatistics(name)
        self.coverage = block.BlockCoverage(name, block.MAX_INFERRED_BYTES, room=room)
        self.zero = _core.Bitmap(len(self.coverage.bits))
        """Blocks that came as zero last."""

        self.resent = _core.Bitmap(len(self.coverage.bits))
        self.rounds = 0
        """Times that the sender went over the disk: a block that comes again in a round begins the next one."""

        self._round = _core.Bitmap(len(self.coverage.bits))
        self._last_zero: tuple[int, int] | None = None
        """Number and offset of the block that came last, if it came as zero: a pack of its data may follow."""

        self._records = records

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        """Skip one block's payload and count it."""
        number = self.coverage.check(sector, 1, position)
        f.skip(_core.BLOCK_SIZE)
        self._came(number, 1)
        self.zero.clear(number)
        self._last_zero = None
        self._records.block(self.statistics.name, sector, 1, position, is_zero=False)

    def load_pack(self, f: channel.InputQEMUFile, extents: Extents, position: int, number: int) -> None:
        """Skip a pack's payload and count it."""
        self.coverage.check_pack(extents, position)
        nbytes = sum(length for _, length in extents)
        f.skip(nbytes)
        self.coverage.add_pack(extents, number=number)
        self._records.pack(self.statistics.name, extents, position)
        self.statistics.packs += 1
        self.statistics.pack_bytes += nbytes
        zero, self._last_zero = self._last_zero, None
        if zero is not None and zero[1] <= extents[0][0] and sum(extents[-1]) <= zero[1] + _core.BLOCK_SIZE:
            self.zero.clear(zero[0])  # a block with holes: it has come once
            extents = []
        for offset, length in extents:
            first, stop = offset // _core.BLOCK_SIZE, -(-(offset + length) // _core.BLOCK_SIZE)
            if first < len(self.resent):
                self.resent.set_range(first, min(stop, len(self.resent)) - first)

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        """Count zero blocks."""
        number = self.coverage.check(sector, count, position)
        self._came(number, count, is_zero=True)
        self.zero.set_range(number, count)
        self._last_zero = number + count - 1, sector + (count - 1) * _core.SECTORS_PER_BLOCK << _core.SECTOR_BITS
        self.statistics.zero_blocks += count
        self._records.block(self.statistics.name, sector, count, position, is_zero=True)

    def _came(self, number: int, count: int, *, is_zero: bool = False) -> None:
        """Count `count` blocks from block `number` on."""
        if len(self._round) < len(self.coverage.bits):
            self._grow(len(self.coverage.bits))
        if self._round.count(number, number + count):
            self._round.clear_range(0, -(-self.coverage.end_sector // _core.SECTORS_PER_BLOCK))
            self.rounds += 1
        self._round.set_range(number, count)
        self.rounds = max(self.rounds, 1)
        known = self.coverage.bits
        if count == 1 and known.test(number):
            self.resent.set(number)
        elif count > 1:
            self._note_resent(number, number + count)
        self.statistics.resent_blocks += self.coverage.add(number, count, is_zero=is_zero)
        self.statistics.blocks += count

    def _grow(self, nblocks: int) -> None:
        """Let the bitmaps grow with that of the coverage."""
        self.zero, self.resent, self._round = [
            block.grown(bits, nblocks) for bits in (self.zero, self.resent, self._round)
        ]

    def _note_resent(self, start: int, stop: int) -> None:
        """Mark the blocks of a run that had come before."""
        known = self.coverage.bits
        area = known.next_dirty_area(start, stop)
        while area is not None:
            self.resent.set_range(*area)
            area = known.next_dirty_area(sum(area), stop) if sum(area) < stop else None


@dataclasses.dataclass(slots=True)
class Inspection:
    """What a stream holds."""

    stream: savevm.LoadedStream
    disks: list[InspectedDisk]
    verdict: Verdict
    reason: str
    percent: int
    """The last progress that the source reported."""

    format: block.Format | None
    """The section that carries the disks; None where there is none."""


def inspect(
    f: channel.InputQEMUFile,
    *,
    sizes: dict[str, int] | None = None,
    observer: savevm.StreamObserver | None = None,
    records: RecordListener | None = None,
) -> Inspection:
    """Read the stream `f` to its end, or as far as it is whole, and return what it holds.

    `sizes` maps names of disks to exact sizes, "" to that of every other disk, where the stream does not say them.
    Raises only errors of the channel; what is wrong with the stream is the verdict.
    """
    disks: list[InspectedDisk] = []
    room = block.CoverageRoom()
    listener = records or RecordListener()

    def open_device(name: str, position: int) -> InspectedDisk:
        disks.append(InspectedDisk(name, listener, room))
        return disks[-1]

    def note_table(table: Sequence[TableDisk], position: int) -> dict[bytes, InspectedDisk]:
        listener.table(table, position)
        return {}  # each is counted from its first block on

    handlers = block.BlockLoadHandlers(open_device)
    handlers.on_percent = listener.progress
    handlers.on_flush = listener.flush
    handlers.on_barrier = listener.barrier
    handlers.on_table = note_table
    handlers.on_extra = {kind: _note_extra(listener, kind) for kind in ExtraKind}
    state = savevm.SaveState()
    for name in block.FORMATS:
        state.register_savevm_live(name, 0, 1, handlers)
    loader = savevm.LoadVM(state, f, observer=observer)
    failure: errors.StreamError | None = None
    try:
        loader.loadvm()
    except errors.StreamError as error:
        failure = error
    stream = loader.summary()
    announced = announcement.Announcement()
    try:
        if failure is None:
            announced = announcement.read_announcement(stream, handlers)
    except errors.StreamError as error:
        failure = error
    settle_sizes(disks, announced, sizes or {})
    section = stream.section(handlers.format or "block")
    judged, reason = judge(stream, section, disks, announced, handlers.percent_before_section, failure)
    return Inspection(stream, disks, judged, reason, handlers.percent, handlers.format)


def _note_extra(listener: RecordListener, kind: ExtraKind) -> block.OnExtra:
    return lambda body, position: listener.extra(kind, len(body), position)


def settle_sizes(disks: list[InspectedDisk], announced: announcement.Announcement, sizes: dict[str, int]) -> None:
    """Note each disk's size, and who says it."""
    for disk in disks:
        name = disk.statistics.name
        said = sizes.get(name, sizes.get(""))
        if name in announced.sizes:
            disk.statistics.size, disk.statistics.size_source = announced.sizes[name], "stream"
        elif said is not None:
            disk.statistics.size, disk.statistics.size_source = said, "option"
        else:
            disk.statistics.size, disk.statistics.size_source = disk.coverage.inferred_size(), "inferred"
        verdict.note_missing(disk)


def judge(
    stream: savevm.LoadedStream,
    section: savevm.SectionInfo | None,
    disks: list[InspectedDisk],
    announced: announcement.Announcement,
    bulk_percent: int,
    failure: errors.StreamError | None,
) -> tuple[Verdict, str]:
    """Return the verdict, and why."""
    if isinstance(failure, errors.TruncatedStream):
        return ("cancelled" if stream.is_between_records else "truncated"), str(failure)
    if failure is not None:
        return "error", str(failure)
    if section is None or not (disks or announced.disks):
        return "complete", "the stream holds no disks"
    if not section.ended:
        return "truncated", "the section of disks has no end"
    misfit = next((disk for disk in disks if not disk.coverage.fits(disk.statistics.size or 0)), None)
    if misfit is not None:
        return "error", f"disk {misfit.statistics.name!r} got blocks that a disk of its size cannot have"
    if any(disk.statistics.resent_blocks for disk in disks if not disk.statistics.name):
        return "error", block.NAMELESS_TWICE
    try:
        verdict.check_disks(disks, announced, stream.nbytes)
        verdict.check_records(disks, announced)
    except errors.StreamError as error:
        return "error", str(error)
    except errors.IncompleteMigration as error:
        return "lossy", str(error)
    try:
        verdict.check_coverage(disks, announced, bulk_percent)
    except errors.IncompleteMigration as error:
        is_incremental = announced.incremental or (
            not announced.is_present and bulk_percent >= verdict.expected_bulk_percent(disks)
        )
        return ("incremental", INCREMENTAL) if is_incremental else ("lossy", str(error))
    if announced.incremental:
        return "incremental", INCREMENTAL
    return "complete", "every block of every disk came"


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Return the inspection as JSON objects; `schema` names their form, and changes when that does.

    All sizes are bytes, a block is 1 MiB, `missing` is a list of [first block, number of blocks], the first 1024 of it.
    """
    stream = inspection.stream
    return {
        "schema": SCHEMA,
        "verdict": inspection.verdict,
        "reason": inspection.reason,
        "percent": inspection.percent,
        "format": inspection.format,
        "container": {
            "nbytes": stream.nbytes,
            "version": stream.version,
            "machine": stream.machine,
            "capabilities": list(stream.capabilities),
            "page_size": stream.page_size,
            "footers": stream.has_footers,
            "commands": stream.commands,
            "reached_eof": stream.reached_eof,
            "vmdescription": stream.vmdescription is not None,
            "device_state_nbytes": stream.drained_bytes,
            "sections": [dataclasses.asdict(section) for section in stream.sections],
        },
        "disks": [
            {**dataclasses.asdict(disk.statistics), "rounds": disk.rounds, "missing": disk.statistics.missing}
            for disk in inspection.disks
        ],
    }
