# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether everything came: sizes, coverage, and the progress that the source reported.

QEMU 7.2 to 9.0 may say "completed" with most of a disk never sent. A receiver can tell: in a full migration every
block comes at least once, and the last progress that bulk reports is what its last block makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from .. import _core, block, errors, params, stats


@dataclasses.dataclass(frozen=True)
class Announcement:
    """What the vmdescription of a stream from blkmig says; all empty for one from QEMU."""

    is_present: bool = False
    incremental: bool = False
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    digests: dict[str, str] = dataclasses.field(default_factory=dict)


def read_announcement(vmdescription: dict[str, Any] | None) -> Announcement:
    """Return what the description says of the disks; what is not as it should be counts as not said."""
    about = (vmdescription or {}).get("blkmig")
    if not isinstance(about, dict) or not isinstance(about.get("disks"), list):
        return Announcement()
    disks = [entry for entry in about["disks"] if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    return Announcement(
        is_present=True,
        incremental=about.get("incremental") is True,
        sizes={entry["name"]: entry["size"] for entry in disks if is_size(entry.get("size"))},
        digests={entry["name"]: entry["digest"] for entry in disks if isinstance(entry.get("digest"), str)},
    )


def is_size(value: object) -> bool:
    """Return whether `value` is a possible size of a disk."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63


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
    missing = {name: [(0, -(-size // _core.BLOCK_SIZE))] for name, size in announced.sizes.items() if name not in came}
    for device in devices:
        device.statistics.missing = device.coverage.missing(device.statistics.size or 0)
        if device.statistics.missing:
            missing[device.statistics.name] = device.statistics.missing
    expected = 0 if announced.is_present else expected_bulk_percent(devices)
    if missing:
        looks_incremental = announced.incremental or (not announced.is_present and bulk_percent >= expected)
        raise errors.IncompleteMigration(
            describe_missing(missing, announced, looks_incremental=looks_incremental), missing=missing
        )
    check_progress(devices, announced, bulk_percent)


def check_progress(devices: Sequence[CoveredDisk], announced: Announcement, bulk_percent: int) -> None:
    """Raise :class:`~blkmig.errors.IncompleteMigration` if QEMU's own progress says that it never got to the end.

    So it does for an incremental stream, where coverage says nothing: what QEMU passes over counts as read.
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
    missing: dict[str, list[tuple[int, int]]], announced: Announcement, *, looks_incremental: bool
) -> str:
    """Say which blocks are missing, and what usually is the reason."""
    count = sum(number for ranges in missing.values() for _, number in ranges)
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


def verify_digests(devices: list[block.BlkLoadDevice], announced: Announcement) -> None:
    """Read every disk back and compare it with the digest in the stream. Blocks.

    Raises :class:`~blkmig.errors.ContentMismatch`, also for a disk that the stream has no digest of.
    """
    for device in devices:
        name = device.statistics.name
        if name not in announced.digests:
            raise errors.ContentMismatch(
                f"disk {name!r} cannot be verified: the stream has no digest of it; send it with --verify", device=name
            )
        if device.digest() != announced.digests[name]:
            raise errors.ContentMismatch(
                f"disk {name!r}: what was written differs from what was sent; suspect the target's storage",
                device=name,
            )
        device.statistics.verified = True
