# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of each disk of a migration, at either end. Sizes are bytes."""

from __future__ import annotations

import dataclasses
from typing import Literal

SizeSource = Literal["stream", "target", "option", "inferred"]
"""Who says how large a disk is: its stream, the size of its target, the user, or the last block that came."""


@dataclasses.dataclass(slots=True)
class SentDiskStatistics:
    """The figures of one disk at the sending end; with `on_progress` kept up to date, to a second, else only final."""

    name: str
    """What the target calls it."""

    size: int
    """Bytes, holes included."""

    passed_bytes: int = 0
    """How far the bulk phase has come, holes included."""

    dirty_bytes: int = 0
    """Bytes that were written since they were sent."""

    blocks: int = 0
    """Blocks sent, as those of all disks are counted."""

    resent_blocks: int = 0
    """Those of them that had been sent before."""

    packs: int = 0
    """Packs sent, as those of all disks are counted."""


@dataclasses.dataclass(slots=True)
class DiskStatistics:
    """The figures of one disk at the receiving end."""

    name: str
    """What the source calls it."""

    size: int | None = None
    """Bytes; None while it is not known."""

    size_source: SizeSource = "inferred"
    """Who says so."""

    blocks: int = 0
    """Blocks that came, zero blocks included; a block that comes again counts again."""

    zero_blocks: int = 0
    """Blocks that came as zeros."""

    resent_blocks: int = 0
    """Blocks that had come before."""

    packs: int = 0
    """Packs that came, with parts of blocks that had come before, maybe as zeros."""

    pack_bytes: int = 0
    """Bytes of the disk in them."""

    saved_by_zeros: int = 0
    """Bytes of zeros that were not sent, as the sending end counts them."""

    saved_by_granularity: int = 0
    """Bytes that packs left out of the blocks of which they have anything, counted likewise."""

    saved_by_compression: int = 0
    """Bytes by which payloads that were compressed were shorter on the wire, counted likewise."""

    same_bytes: int = 0
    """Bytes that the target held already, as the source has found by comparing; zeros count, too."""

    missing: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Ranges (first block, number of blocks) that never came; the first 1024 of them."""

    missing_blocks: int = 0
    """How many blocks never came."""

    verified: bool = False
    """Whether the digest of the whole disk was compared with the one in the stream, and is equal."""

    @property
    def has_come(self) -> bool:
        """Whether anything of the disk came, so that its target was written."""
        return self.blocks + self.packs > 0
