# SPDX-License-Identifier: GPL-2.0-or-later
"""What the description at the end of a stream says of its disks, so that a receiver knows whether all of it came.

::

    "blkmig": {"version": 2, "incremental": false,
               "digest": "...", "digest_algorithm": "...",               if digests were asked for: of all disks at once
               "disks": [{"name": "vda", "size": 5000192,                the exact size in bytes
                          "resent": [3, 17],                             blocks sent again, and `resent_term` of them
                          "sent": "0123abcd",                            incremental: CRC-32 of the bitmap of what came
                          "digest": "...", "digest_algorithm": "...",    of the blocks that were sent
                          "disk_digest": "..."}]}                        incremental: of all of the disk

What coverage cannot tell, `sent` and `resent` do: that no block got lost which nobody expects, and that none went to
another place. blkmig 0.1 (version 1) wrote and reads `name`, `size` and a `digest` of the blocks that were sent.
"""

from __future__ import annotations

from typing import Any

from . import coverage, device, send

VERSION = 2


def describe(
    bmds_list: list[device.BlkMigDevState], empty: list[str], *, incremental: bool, digests: bool
) -> dict[str, Any]:
    """Return the description of the disks that were sent and of the `empty` ones, which have no bytes."""
    about: dict[str, Any] = {"version": VERSION, "incremental": incremental}
    if digests:
        parts = [(bmds.backend.name, bmds.geometry.size, disk_digest(bmds)) for bmds in bmds_list]
        parts += [(name, 0, send.combine_digests(b"")) for name in empty]
        about |= {"digest": send.combine_disks(parts), "digest_algorithm": send.STREAM_DIGEST_ALGORITHM}
    about["disks"] = [describe_disk(bmds) for bmds in bmds_list] + [
        describe_empty(name, digests=digests, incremental=incremental) for name in empty
    ]
    return about


def describe_disk(bmds: device.BlkMigDevState) -> dict[str, object]:
    """Return the entry of one disk."""
    entry: dict[str, object] = {"name": wire_name(bmds.backend.name), "size": bmds.geometry.size}
    entry["resent"] = [bmds.resent_blocks, bmds.resent_sum]
    if bmds.sent is not None:
        entry["sent"] = coverage.checksum_of(bmds.sent)
    if bmds.digests is not None:
        entry["digest"] = send.combine_digests(bmds.digests)
        entry["digest_algorithm"] = send.DIGEST_ALGORITHM
    if bmds.disk_digests is not None:
        entry["disk_digest"] = send.combine_digests(bmds.disk_digests)
    return entry


def describe_empty(name: str, *, digests: bool, incremental: bool) -> dict[str, object]:
    """Return the entry of a disk without bytes."""
    entry: dict[str, object] = {"name": wire_name(name), "size": 0, "resent": [0, 0]}
    if digests:
        entry["disk_digest" if incremental else "digest"] = send.combine_digests(b"")
    return entry


def wire_name(name: str) -> str:
    """Return a disk's name as whoever reads the stream will see it: a program whose texts are not UTF-8 has others."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def disk_digest(bmds: device.BlkMigDevState) -> str:
    """Return the digest of all that a disk holds, whether it was sent or stands in the base."""
    digests = bmds.digests if bmds.disk_digests is None else bmds.disk_digests
    assert digests is not None
    return send.combine_digests(digests)
