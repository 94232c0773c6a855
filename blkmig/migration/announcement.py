# SPDX-License-Identifier: GPL-2.0-or-later
"""What the description at the end of a stream says of its disks, and whether there is one where one must be.

Nothing here is taken on trust: a stream that must have a description and has none was cut, one that is damaged is an
error, and so is one that lacks what its version must have. What could not be read is never treated as if it had not
been said.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, NoReturn

from .. import block, errors, savevm

KNOWN_VERSIONS = (1, 2)
SEALED_SINCE = 2


class AnnouncedDisk(NamedTuple):
    """What the description says of one disk; see `block.description`. None: it does not say."""

    name: str
    size: int
    resent: tuple[int, int] | None = None
    packs: tuple[int, int] = (0, 0)
    sent: str | None = None
    digest: str | None = None
    """Digest of all that the disk holds, in the flat form."""

    tree: str | None = None
    """The same, in the form of a tree; one of them is there, or none."""


@dataclasses.dataclass(frozen=True)
class Announcement:
    """What a stream from blkmig says of its disks at its end; all empty for one from QEMU."""

    is_present: bool = False
    incremental: bool = False
    disks: dict[str, AnnouncedDisk] = dataclasses.field(default_factory=dict)
    digest: str | None = None
    """Digest of all disks, names and sizes included, made from their flat digests."""

    tree: str | None = None
    """The same, made from their trees."""

    is_proven: bool = False
    """The disks are proven beside the stream, in place of that."""

    @property
    def sizes(self) -> dict[str, int]:
        """Return the exact size of each disk, in bytes."""
        return {name: disk.size for name, disk in self.disks.items()}


def read_announcement(stream: savevm.LoadedStream, handlers: block.BlockLoadHandlers) -> Announcement:
    """Return what the description of `stream` says, which `handlers` have loaded.

    Raises :class:`~blkmig.errors.TruncatedStream` where there must be a description and is none, and
    :class:`~blkmig.errors.StreamError` where it is damaged.
    """
    state, position = stream.vmdescription_state, stream.nbytes
    if state == "none" and (stream.has_footers or stream.has_configuration or handlers.is_described):
        raise errors.TruncatedStream(
            "the stream was cut behind its end of file: the description that must follow is missing (a QEMU that was "
            "told to leave it out, by suppress-vmdesc, cannot be told from that)",
            position=position,
        )
    if state == "damaged" or (handlers.is_described and state != "sealed"):
        _damaged(position)
    if stream.vmdescription is None or "blkmig" not in stream.vmdescription:
        return _damaged(position) if handlers.is_described else Announcement()
    announced = _parse(stream.vmdescription["blkmig"], position, is_sealed=state == "sealed")
    empty = sum(not size for size in announced.sizes.values())
    if handlers.is_described and handlers.described_disks != (len(announced.disks) - empty, empty):
        _damaged(position)
    if not handlers.sizes.agree_with(announced.sizes) or not handlers.base.is_whole:
        _damaged(position)
    if any(entry.shared_base != announced.incremental for entry in handlers.table or ()):
        _damaged(position)
    return announced


def is_size(value: object) -> bool:
    """Return whether `value` is a possible size of a disk."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_size, value))


def _damaged(position: int) -> NoReturn:
    raise errors.StreamError(
        "the description at the end of the stream is damaged: what came cannot be checked; send it again",
        position=position,
    )


def _parse(about: Any, position: int, *, is_sealed: bool) -> Announcement:
    """Return what is under the key ``blkmig``; all of it must be as its version says."""
    version = about.get("version") if isinstance(about, dict) else None
    if isinstance(version, int) and version > max(KNOWN_VERSIONS):
        raise errors.UnsupportedStream(
            f"the stream's description is of version {version}, known are those up to {max(KNOWN_VERSIONS)}: "
            "receive it with a newer blkmig",
            position=position,
        )
    if version not in KNOWN_VERSIONS or is_sealed != (version >= SEALED_SINCE):
        _damaged(position)
    incremental, entries = about.get("incremental"), about.get("disks")
    digest, tree = about.get("digest"), about.get("tree_digest")
    if not isinstance(incremental, bool) or not isinstance(entries, list):
        _damaged(position)
    if not isinstance(digest, str | None) or not isinstance(tree, str | None):
        _damaged(position)
    disks = [_parse_disk(entry, position, incremental=incremental) for entry in entries]
    named = {disk.name: disk for disk in disks}
    if len(named) != len(disks):
        _damaged(position)
    return Announcement(True, incremental, named, digest, tree, "proof" in about)


def _parse_disk(entry: Any, position: int, *, incremental: bool) -> AnnouncedDisk:
    """Return one entry of the list of disks."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not is_size(entry.get("size")):
        _damaged(position)
    texts = [entry.get(key) for key in ("digest", "disk_digest", "sent", "tree_digest")]
    resent, packs = entry.get("resent"), entry.get("packs", [0, 0])
    if not (resent is None or _is_pair(resent)) or not _is_pair(packs):
        _damaged(position)
    if not all(isinstance(text, str | None) for text in texts):
        _damaged(position)
    digest, disk_digest, sent, tree = texts
    return AnnouncedDisk(
        name=entry["name"],
        size=entry["size"],
        resent=None if resent is None else (resent[0], resent[1]),
        packs=(packs[0], packs[1]),
        sent=sent,
        digest=disk_digest if incremental else digest,
        tree=tree,
    )
