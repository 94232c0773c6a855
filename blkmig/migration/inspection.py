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

from .. import block, channel, errors, savevm
from ..block import ExtraKind, TableDisk
from . import announcement, inspecteddisk, trailing, verdict

Verdict = Literal["complete", "incremental", "lossy", "cancelled", "truncated", "error"]

SCHEMA = "blkmig-inspect/1"
INCREMENTAL = "the stream holds only the top layers of its disks: receive it with --incremental, onto the base"


@dataclasses.dataclass(slots=True)
class Inspection:
    """What a stream holds."""

    stream: savevm.LoadedStream
    """The container: version, machine type, sections, commands, description."""

    disks: list[inspecteddisk.InspectedDisk]
    """What came of each disk, in the order of their first blocks."""

    verdict: Verdict
    """Whether it is whole: complete, or why not."""

    reason: str
    """The verdict in words."""

    percent: int
    """The last progress that the source reported."""

    format: block.Format | None
    """The section that carries the disks; None where there is none."""


def inspect(
    f: channel.InputQEMUFile,
    *,
    sizes: dict[str, int] | None = None,
    observer: savevm.StreamObserver | None = None,
    records: inspecteddisk.RecordListener | None = None,
) -> Inspection:
    """Read the stream `f` to its end, or as far as it is whole, and return what it holds. Blocks.

    `f` is what ``blkmig.channel.listen(uri)`` returns from its ``accept(timeout=None)``; whoever opens it closes it.
    `sizes` maps names of disks to exact sizes, "" to that of every other disk, where the stream does not say them.
    Raises only errors of the channel; what is wrong with the stream is the verdict.
    """
    disks: list[inspecteddisk.InspectedDisk] = []
    room, frames, zeros = block.CoverageRoom(), block.ComingFrame(), block.ComingZeros()
    listener = records or inspecteddisk.RecordListener()

    def open_device(name: str, position: int) -> inspecteddisk.InspectedDisk:
        disks.append(inspecteddisk.InspectedDisk(name, listener, room, frames, zeros))
        return disks[-1]

    def note_table(table: Sequence[TableDisk], position: int) -> dict[bytes, inspecteddisk.InspectedDisk]:
        listener.table(table, position)
        return {}  # each is counted from its first block on

    handlers = block.BlockLoadHandlers(open_device)
    handlers.on_percent = listener.progress
    handlers.on_flush = listener.flush
    handlers.on_barrier = listener.barrier
    handlers.on_table = note_table
    handlers.on_extra = {kind: _note_extra(listener, kind) for kind in ExtraKind}
    handlers.on_extra |= {ExtraKind.ZSTD: frames.take, ExtraKind.ZEROS: zeros.take}
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
    if stream.behind is not None:
        reason += f"; {trailing.describe(stream.behind, f.uri)}"
    return Inspection(stream, disks, judged, reason, handlers.percent, handlers.format)


def _note_extra(listener: inspecteddisk.RecordListener, kind: ExtraKind) -> block.OnExtra:
    return lambda body, position: listener.extra(kind, len(body), position)


def settle_sizes(
    disks: list[inspecteddisk.InspectedDisk], announced: announcement.Announcement, sizes: dict[str, int]
) -> None:
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
    disks: list[inspecteddisk.InspectedDisk],
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
            "behind": None if stream.behind is None else stream.behind.position,
            "sections": [section._asdict() for section in stream.sections],
        },
        "disks": [
            {**dataclasses.asdict(disk.statistics), "rounds": disk.rounds, "missing": disk.statistics.missing}
            for disk in inspection.disks
        ],
    }
