# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether everything came, and is what was sent: sizes, coverage, the progress that the source reported, digests.

QEMU 7.2 to 9.0 may say "completed" with most of a disk never sent. A receiver can tell: in a full migration every block
comes at least once, and the last percentage of the bulk phase shows whether the source came to its last block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .. import _core, block, errors, params, stats
from .announcement import Announcement


def check_disks(devices: Sequence[CoveredDisk], announced: Announcement, position: int) -> None:
    """Raise unless there is a disk, and each that came is one that the stream says it has."""
    if not devices and not announced.disks:
        raise errors.IncompleteMigration(
            "the stream holds no disk at all: nothing was received (the source has none that it may send, or it was "
            "not told to send them, as a QEMU is by migrate -b)",
            missing={},
        )
    for device in devices:
        name = device.statistics.name
        if announced.is_present and name not in announced.disks:
            raise errors.StreamError(
                f"blocks of a disk {name!r} came, of which the stream's description says nothing", position=position
            )


def settle_sizes(
    devices: list[block.BlkLoadDevice],
    announced: Announcement,
    parameters: params.IncomingParameters,
    statistics: stats.IncomingStatistics,
) -> None:
    """Give each disk its size: what the stream says, else what the user said, else the target's, else what came."""
    for device in devices:
        name = device.statistics.name
        said = parameters.size_of(name)
        source: stats.SizeSource
        if name in announced.sizes:
            size, source = announced.sizes[name], "stream"
            if said is not None and said != size:
                raise errors.ParameterError(f"disk {name!r} has {size} bytes, not {said} as was said")
        elif said is not None:
            size, source = said, "option"
        elif device.backend.is_growable:
            size, source = device.coverage.inferred_size(), "inferred"
            statistics.notes.append(f"disk {name!r}: size not in the stream, taken as {size} bytes from its last block")
        else:
            size, source = device.backend.size, "target"
        device.settle(size, source)


class CoveredDisk(Protocol):
    """A disk of a stream that was read."""

    @property
    def statistics(self) -> stats.DiskStatistics:
        """Return its figures."""

    @property
    def coverage(self) -> block.BlockCoverage:
        """Return which of its blocks came."""


def check_coverage(devices: Sequence[CoveredDisk], announced: Announcement, bulk_percent: int) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` unless every block of every disk came.

    `bulk_percent` is the progress that the source reported last before its final section.
    """
    came = {device.statistics.name for device in devices}
    missing = {
        name: [(0, -(-size // _core.BLOCK_SIZE))] for name, size in announced.sizes.items() if size and name not in came
    }
    count = sum(number for ranges in missing.values() for _, number in ranges)
    for device in devices:
        note_missing(device)
        count += device.statistics.missing_blocks
        if device.statistics.missing:
            missing[device.statistics.name] = device.statistics.missing
    expected = 0 if announced.is_present else expected_bulk_percent(devices)
    if missing:
        looks_incremental = announced.incremental or (not announced.is_present and bulk_percent >= expected)
        raise errors.IncompleteMigration(
            describe_missing(missing, count, announced, looks_incremental=looks_incremental), missing=missing
        )
    check_progress(devices, announced, bulk_percent)


def note_missing(device: CoveredDisk) -> None:
    """Note in a disk's figures which of its blocks never came; its size is known."""
    size = device.statistics.size or 0
    device.statistics.missing = device.coverage.missing(size)
    device.statistics.missing_blocks = device.coverage.count_missing(size)


def check_records(devices: Sequence[CoveredDisk], announced: Announcement) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` unless the blocks that came are those that were sent.

    Coverage cannot tell that of a stream that holds only some blocks, nor of blocks that come more than once.
    """
    for device in devices:
        disk, coverage = announced.disks.get(device.statistics.name), device.coverage
        if disk is None:
            continue
        is_all = disk.sent is None or disk.sent == coverage.checksum()
        is_all &= disk.packs == (coverage.packs.packs, coverage.packs.chain)
        if not is_all or disk.resent not in (None, (coverage.resent_blocks, coverage.resent_sum)):
            raise errors.IncompleteMigration(
                f"disk {disk.name!r}: the blocks that came are not those that were sent; records of the stream got "
                "lost, came twice or were damaged, and the target is incomplete: send it again",
                missing={disk.name: []},
            )


def check_progress(devices: Sequence[CoveredDisk], announced: Announcement, bulk_percent: int) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` if QEMU's own progress says that it never got to the end.

    This works for incremental streams, too, of which coverage says nothing: blocks that QEMU skips count as read.
    """
    expected = 0 if announced.is_present else expected_bulk_percent(devices)
    if bulk_percent < expected:
        raise errors.IncompleteMigration(
            f"the source reported {bulk_percent} % of its disks sent, not {expected} %: blocks behind the last one "
            f"that came are missing; {QEMU_ADVICE}",
            missing={},
        )


QEMU_ADVICE = (
    "a QEMU from 7.2 to 9.0 loses blocks when it finishes before its bulk phase: "
    "set its downtime-limit to 0 and migrate again"
)


def expected_bulk_percent(devices: Sequence[CoveredDisk]) -> int:
    """Return the progress that QEMU reports when it reads the last block of a full migration of these disks.

    It counts each disk only up to the start of its last block, in whatever order they go.
    """
    sectors = [-(-(device.statistics.size or 0) // _core.SECTOR_SIZE) for device in devices]
    starts = [max(count - 1, 0) // _core.SECTORS_PER_BLOCK * _core.SECTORS_PER_BLOCK for count in sectors]
    return 100 * sum(starts) // sum(sectors) if any(sectors) else 0


def describe_missing(
    missing: dict[str, list[tuple[int, int]]], count: int, announced: Announcement, *, looks_incremental: bool
) -> str:
    """Say which of the `count` blocks are missing, and what usually is the reason."""
    where = "; ".join(f"disk {name!r}: {format_ranges(ranges)}" for name, ranges in missing.items())
    if looks_incremental:
        verb = "holds" if announced.incremental else "seems to hold"
        reason = f"the stream {verb} only the disks' top layers: receive it with --incremental onto a copy of the base"
    elif announced.is_present:
        reason = "this is an error of the sender"
    else:
        reason = QEMU_ADVICE
    return f"{count} blocks of 1 MiB never came ({where}); the target is incomplete; {reason}"


def format_ranges(ranges: list[tuple[int, int]], *, most: int = 8) -> str:
    """Return block ranges as text: ``blocks 3, 7-9``."""
    shown = [str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in ranges[:most]]
    more = [f"and {len(ranges) - most} more ranges"] if len(ranges) > most else []
    return f"blocks {', '.join(shown + more)}"


def check_verifiable(devices: Sequence[CoveredDisk], announced: Announcement) -> None:
    """Raise :class:`~blkmig.errors.ContentMismatch` unless the stream has all that it takes to verify its disks."""
    for device in [] if announced.is_proven else devices:
        name = device.statistics.name
        disk = announced.disks.get(name)
        is_flat = announced.digest is not None and disk is not None and disk.digest is not None
        is_tree = announced.tree is not None and disk is not None and disk.tree is not None
        if not is_flat and not is_tree:
            reason = "the stream has no digest of it; send it with --verify, by a blkmig as new as this one"
            raise errors.ContentMismatch(f"disk {name!r} cannot be verified: {reason}", device=name)


def verify_digests(
    devices: Sequence[block.BlkLoadDevice], announced: Announcement, check_cancelled: Callable[[], None]
) -> None:
    """Read every disk back, all of it, and compare it with the digests in the stream. Blocks; calls `check_cancelled`
    all the time.

    Raises :class:`~blkmig.errors.ContentMismatch`. No disk counts as verified before all are, names and sizes included.
    Call `check_verifiable` before.
    """
    found = []
    is_tree = announced.digest is None
    combine = block.tree_of if is_tree else block.combine_digests
    for device in devices:
        name, size = device.statistics.name, device.statistics.size
        assert size is not None
        digest, about = device.digest(check_cancelled, combine=combine), announced.disks[name]
        if digest != (about.tree if is_tree else about.digest):
            raise errors.ContentMismatch(f"disk {name!r}: {_why_it_differs(announced)}", device=name)
        found.append((name, size, digest))
    if block.combine_disks(found) != (announced.tree if is_tree else announced.digest):
        raise errors.ContentMismatch(
            "the disks that came, their names, sizes and contents, are not those that were sent", device=""
        )
    for device in devices:
        device.statistics.verified = True


def _why_it_differs(announced: Announcement) -> str:
    """Say what the reason of a difference most likely is."""
    if announced.incremental:
        return "the target differs from the source: most likely it does not hold the source's base"
    return "what was written differs from what was sent; suspect the target's storage"
