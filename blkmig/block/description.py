# SPDX-License-Identifier: GPL-2.0-or-later
"""What the description at the end of a stream says of its disks, so that a receiver knows whether all of it came.

::

    "blkmig": {"version": 2, "incremental": false,
               "digest": "...", "digest_algorithm": "...",               if digests were asked for: of all disks at once
               "disks": [{"name": "vda", "size": 5000192,                the exact size in bytes
                          "resent": [3, 17],                             blocks sent again, and `resent_term` of them
                          "packs": [12, 305419896],                      packs, and `PackTally.chain`; if there were any
                          "sent": "0123abcd",                            incremental: CRC-32 of the bitmap of what came
                          "digest": "...", "digest_algorithm": "...",    of the blocks that were sent
                          "disk_digest": "..."}]}                        incremental: of all of the disk

A stream whose disks are proven beside it has `proof`, the algorithm, in place of all digests (see `proof`).
A move to a receiver that has said that it knows trees has `tree_digest` and `tree_algorithm` in place of all other
digests. A tree digest covers all that a disk holds, and what is hashed for it in the pause does not grow with the disk
(see `digests`). Coverage cannot tell whether a block was lost that nobody expected, or whether a block went to another
place. `sent` and `resent` can. Version 1, from before the first release, has `name`, `size` and a `digest` of the
blocks that were sent.
"""

from __future__ import annotations

from typing import Any, Literal

from . import coverage, device, digests

VERSION = 2

PROOF_ALGORITHM = "blake3-256 of each block, or of its pieces"

DigestForm = Literal["flat", "tree"]


def describe(
    bmds_list: list[device.BlkMigDevState], empty: list[str], *, incremental: bool, form: DigestForm | None
) -> dict[str, Any]:
    """Return the description of the disks that were sent and of the `empty` ones, which have no bytes."""
    about: dict[str, Any] = {"version": VERSION, "incremental": incremental}
    if form is not None:
        about |= describe_all(bmds_list, empty, form)
    about["disks"] = [describe_disk(bmds, form) for bmds in bmds_list] + [
        describe_empty(name, form, incremental=incremental) for name in empty
    ]
    return about


def describe_all(bmds_list: list[device.BlkMigDevState], empty: list[str], form: DigestForm) -> dict[str, object]:
    """Return the digest of all disks at once."""
    parts = [(bmds.backend.name, bmds.geometry.size, disk_digest(bmds, form)) for bmds in bmds_list]
    parts += [(name, 0, empty_digest(form)) for name in empty]
    key = "digest" if form == "flat" else "tree_digest"
    return {key: digests.combine_disks(parts), "digest_algorithm": digests.STREAM_DIGEST_ALGORITHM}


def describe_disk(bmds: device.BlkMigDevState, form: DigestForm | None) -> dict[str, object]:
    """Return the entry of one disk."""
    entry: dict[str, object] = {"name": wire_name(bmds.backend.name), "size": bmds.geometry.size}
    entry["resent"] = [bmds.resent_blocks, bmds.resent_sum]
    if bmds.packs.packs:
        entry["packs"] = [bmds.packs.packs, bmds.packs.chain]
    if bmds.sent is not None:
        entry["sent"] = coverage.checksum_of(bmds.sent)
    if form == "tree":
        return entry | {"tree_digest": disk_digest(bmds, form), "tree_algorithm": digests.TREE_ALGORITHM}
    if bmds.digests is not None:
        entry["digest"] = digests.combine_digests(bmds.digests)
        entry["digest_algorithm"] = digests.DIGEST_ALGORITHM
    if bmds.disk_digests is not None:
        entry["disk_digest"] = digests.combine_digests(bmds.disk_digests)
    return entry


def describe_empty(name: str, form: DigestForm | None, *, incremental: bool) -> dict[str, object]:
    """Return the entry of a disk without bytes."""
    entry: dict[str, object] = {"name": wire_name(name), "size": 0, "resent": [0, 0]}
    if form == "tree":
        entry["tree_digest"] = empty_digest(form)
    elif form == "flat":
        entry["disk_digest" if incremental else "digest"] = empty_digest(form)
    return entry


def wire_name(name: str) -> str:
    """Return a disk's name as whoever reads the stream will see it: a program whose texts are not UTF-8 has others."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def disk_digest(bmds: device.BlkMigDevState, form: DigestForm) -> str:
    """Return the digest of all that a disk holds, whether it was sent or stands in the base."""
    if form == "tree":
        assert bmds.tree is not None
        return bmds.tree.root()
    found = bmds.digests if bmds.disk_digests is None else bmds.disk_digests
    assert found is not None
    return digests.combine_digests(found)


def empty_digest(form: DigestForm) -> str:
    """Return the digest of a disk without bytes."""
    return digests.tree_of(b"") if form == "tree" else digests.combine_digests(b"")
