# SPDX-License-Identifier: GPL-2.0-or-later
"""One disk that is being sent, and one block on its way from it to the stream."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from .. import _core, disk, diskmap
from ..disk.geometry import BlockGeometry
from .coverage import PackTally
from .savings import Savings

if TYPE_CHECKING:
    from .digests import DigestTree
    from .pieces import ComparedBlock
    from .proof import DiskProof


class BlkMigDevState:
    """One disk that is being sent (`bmds` in QEMU)."""

    # Set in save_setup, then read-only.
    backend: disk.BlockBackend
    name: bytes
    geometry: BlockGeometry
    shared_base: bool
    dirty_bitmap: disk.DirtyBitmap
    mapping: _core.Mapping | None
    """What runs of blocks are sent from; None where each block is read by itself. See `passage`."""

    digests: bytearray | None
    """Sixteen bytes for each block, as it was sent last; None where nobody asked for digests."""

    disk_digests: bytearray | None = None
    """The same for all blocks, sent or not; None where every block is sent, and where nobody asked for digests."""

    hashed: _core.Bitmap | None = None
    """The blocks of `disk_digests` that were hashed before bulk, while only the base held them; None without that
    phase."""

    tree: DigestTree | None = None
    """The tree over the digests of all that the disk holds; None where nobody asked for digests."""

    sent: _core.Bitmap | None = None
    """The blocks that were sent at least once; None where every block is sent."""

    proof: DiskProof | None = None
    """What the target compares with its storage beside the stream; None where nobody asked for that."""

    whole_from: int = 1
    """A dirty block goes whole from so many marked bits on; below that, only what they stand for goes."""

    map: diskmap.DiskMap | None = None
    """What a picture of the disk needs; None where nobody wants one."""

    # Migration thread only.
    blocker: contextlib.ExitStack
    """Keeps other migrations off the disk and the tracker attached; closing it undoes both."""

    again: _core.Bitmap
    """The blocks below the bulk cursor that are compared once more, because the link was lost; see `compare`."""

    aio_bitmap: _core.Bitmap
    """One bit per block: set while a read of the block is in flight, bulk reads included."""

    cur_sector: int = 0
    """Where the bulk phase goes on."""

    cur_dirty: int = 0
    """The sector where the dirty phase goes on; it goes round, so that no high sector starves."""

    resent_blocks: int = 0
    resent_sum: int = 0
    """How many blocks were sent that had been sent before, and the sum of what `resent_term` makes of them."""

    counts_all: bool = False
    """Every block counts as one that is sent again, the bulk phase's, too: the link was lost once, see `log`."""

    sent_blocks: int = 0
    """Blocks sent, zero blocks included; packs are in `packs`."""

    packs: PackTally
    savings: Savings

    completed_sectors: int = 0
    """Sectors of the bulk phase that were sent, or skipped because only the base holds them."""

    bulk_completed: bool = False
    """Every block of the disk was submitted, sent or skipped."""

    data_start: int = 0
    data_end: int = 0
    """The extent of data that the disk named last: inside it nobody asks again for holes."""

    allocated_start: int = 0
    allocated_end: int = 0
    """The extent that the top layer holds, as the disk named it last: inside it nobody asks again."""

    def __init__(
        self,
        *,
        backend: disk.BlockBackend,
        name: bytes,
        geometry: BlockGeometry,
        shared_base: bool,
        dirty_bitmap: disk.DirtyBitmap,
        mapping: _core.Mapping | None,
        digests: bytearray | None,
        aio_bitmap: _core.Bitmap,
        disk_digests: bytearray | None = None,
        sent: _core.Bitmap | None = None,
        whole_from: int = 1,
    ) -> None:
        self.backend = backend
        self.name = name
        self.geometry = geometry
        self.shared_base = shared_base
        self.dirty_bitmap = dirty_bitmap
        self.mapping = mapping
        self.digests = digests
        self.disk_digests = disk_digests
        self.sent = sent
        self.whole_from = whole_from
        self.blocker = contextlib.ExitStack()
        self.aio_bitmap = aio_bitmap
        self.again = _core.Bitmap(geometry.nblocks)
        self.packs = PackTally()
        self.savings = Savings()

    @property
    def goes_whole(self) -> bool:
        """Whether blocks only go as a whole, however little of one is dirty, or is data."""
        return self.whole_from == 1

    @property
    def granule(self) -> int:
        """Return how many bytes one write makes dirty at least."""
        return _core.BLOCK_SIZE if self.goes_whole else self.dirty_bitmap.granularity

    def dirty_bytes(self, *, stop_block: int | None = None) -> int:
        """Return the bytes that the marks of all blocks, or of those below `stop_block`, would have to be sent."""
        return self.dirty_bitmap.count_bytes_rounded(self.whole_from, stop_block=stop_block)

    @property
    def label(self) -> str:
        """Return the name for messages."""
        return self.backend.name


class Pack(NamedTuple):
    """Extents of one disk that go together; see `packs`."""

    extents: disk.Extents
    """Each (offset, nbytes); ascending, apart from each other, whole sectors."""

    nbytes: int
    """All of them together."""

    nblocks: int
    """How many blocks there are from the first one to the last one that it touches."""


class BlkMigBlock:
    """One block, or one pack, on its way from a disk to the stream (`blk` in QEMU), with the buffer that carries it.

    It belongs to one thread at a time: the migration thread fills in what to read and submits it, a reading thread
    has it until it is completed, then the migration thread sends it and takes it back into the pool.
    """

    __slots__ = (
        "block",
        "bmds",
        "buf",
        "bulk_sectors",
        "compared",
        "counted_bytes",
        "error",
        "frame",
        "has_payload",
        "nblocks",
        "nbytes",
        "offset",
        "pack",
        "taken",
    )

    def __init__(self, buf: _core.BlockBuffer) -> None:
        self.buf = buf
        self.bmds: BlkMigDevState | None = None
        self.block = self.offset = self.nbytes = 0
        self.pack: Pack | None = None
        """What it is of one or several blocks; None for a whole block."""

        self.taken: disk.Extents | None = None
        """The extents whose marks were cleared; None for a whole block, as one of the bulk phase is, holes and all."""

        self.compared: ComparedBlock | None = None
        """What the target has said of the block, for a block that is compared before it is sent; see `compare`."""

        self.has_payload = True
        """Some of it is to be sent, if it is not zeros: not where the target has it, or more is to be asked."""

        self.nblocks = 1
        """How many blocks, from `block` on, count as being read while it is."""

        self.bulk_sectors = 0
        """How far the bulk phase is when this block is sent; 0 for a dirty block."""

        self.counted_bytes = _core.BLOCK_SIZE
        """How many bytes it counts for in what is left and what was sent."""

        self.frame: bytes | None = None
        """The payload, compressed, where that is what is sent; see `compressing`."""

        self.error: BaseException | None = None
        """What the read raised; the migration thread raises it again when it collects the block."""
