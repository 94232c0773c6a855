# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether all of a stream came: what it has held is compared with what it says of itself, disk by disk."""

from __future__ import annotations

from collections.abc import Callable

from .. import block, errors, params, savevm, stats
from . import announcement, targets, verdict


def judge(
    stream: savevm.LoadedStream,
    handlers: block.BlockLoadHandlers,
    came: targets.TargetSet,
    open_device: Callable[[str, int], block.BlkLoadDevice],
    parameters: params.IncomingParameters,
    statistics: stats.IncomingStatistics,
    check_proven: Callable[[bool, int], None],
) -> announcement.Announcement:
    """Check that everything came, and give the disks their sizes; return what the stream says of them."""
    section = stream.section(handlers.format or "block")
    if section is None:
        raise errors.IncompleteMigration(
            "the stream holds no disks at all: a QEMU sends them only if it is told to, as by migrate -b",
            missing={},
        )
    if not section.ended:
        raise errors.TruncatedStream("the section of disks has no end: the source gave up", position=stream.nbytes)
    announced = announcement.read_announcement(stream, handlers)
    check_proven(announced.is_proven, stream.nbytes)
    verdict.check_disks(came.devices, announced, stream.nbytes)
    opened = {device.statistics.name for device in came.devices}
    for name, size in announced.sizes.items():  # of some no block came: they are empty, or nothing has changed
        if name in opened:
            continue
        if not size and not came.is_wanted(name):
            statistics.notes.append(f"disk {name!r} has no bytes, and nobody has said where it goes: left out")
        elif parameters.incremental or not size:
            open_device(name, stream.nbytes)
    verdict.settle_sizes(came.devices, announced, parameters, statistics)
    came.check_sizes()
    check = verdict.check_progress if parameters.incremental else verdict.check_coverage
    check(came.devices, announced, handlers.percent_before_section)
    verdict.check_records(came.devices, announced)
    if announced.is_present or not parameters.incremental:
        came.check_all_came()
    if parameters.verify:
        verdict.check_verifiable(came.devices, announced)
    return announced
