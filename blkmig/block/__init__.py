# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``block`` section, version 1: the only room that knows both a disk and a stream.

The way of a block, from a migration's call to the system call::

    iterate ─ ... ─ save_live_iterate ─ send_some ─┬─ save_device_bulk ─ submit ─ read ─ read_block     the disk
                                                   ├─ save_device_dirty ─ submit ─ read ─ read_block    the disk
                                                   ├─ flush_blks ─ blk_send ─ put_block                 the channel
                                                   └─ save_device_bulk ─ send_run ─ put_file_blocks     both at once

    run ─ ... ─ load_state ─┬─ next_run                                                                 the channel
                            └─ load_block ─┬─ get_block                                                 the channel
                                           └─ write_block                                               the disk

Whether a payload goes that way as bytes or as pages of a file is decided in `passage`.
docs/architecture/way-of-a-block.md has every step.
"""

from typing import TYPE_CHECKING

from .. import later
from .compressed import Coming as ComingFrame
from .zeropieces import Coming as ComingZeros

if TYPE_CHECKING:
    from .answering import Answers
    from .askwords import MAX_ASKS
    from .basewords import BaseRun
    from .buffers import LoadBuffers
    from .checks import NAMELESS_TWICE, why_left_out
    from .choice import DiskChoice
    from .coverage import MAX_INFERRED_BYTES, BlockCoverage, CoverageCounts, CoverageRoom, grown
    from .digests import combine_digests, combine_disks, tree_of
    from .extras import ExtraKind, OnExtra, extra, get_extra
    from .hashing import MISSING, can_hash
    from .load import BlockLoadHandlers, LoadDevice
    from .log import SentLog
    from .loss import Counts, take_back_in_flight, take_back_sent
    from .proofs import Proofs
    from .proving import Difference, Proving
    from .save import BlockSaveHandlers
    from .sizes import SaidSizes
    from .table import TableDisk, barrier_records, flush_records, records
    from .target import BlkLoadDevice
    from .wire import FORMATS, Format

__all__ = [
    "FORMATS",
    "MAX_ASKS",
    "MAX_INFERRED_BYTES",
    "MISSING",
    "NAMELESS_TWICE",
    "Answers",
    "BaseRun",
    "BlkLoadDevice",
    "BlockCoverage",
    "BlockLoadHandlers",
    "BlockSaveHandlers",
    "ComingFrame",
    "ComingZeros",
    "Counts",
    "CoverageCounts",
    "CoverageRoom",
    "Difference",
    "DiskChoice",
    "ExtraKind",
    "Format",
    "LoadBuffers",
    "LoadDevice",
    "OnExtra",
    "Proofs",
    "Proving",
    "SaidSizes",
    "SentLog",
    "TableDisk",
    "barrier_records",
    "can_hash",
    "combine_digests",
    "combine_disks",
    "extra",
    "flush_records",
    "get_extra",
    "grown",
    "records",
    "take_back_in_flight",
    "take_back_sent",
    "tree_of",
    "why_left_out",
]

__getattr__ = later.opener(
    __name__,
    answering="Answers",
    askwords="MAX_ASKS",
    basewords="BaseRun",
    buffers="LoadBuffers",
    checks="NAMELESS_TWICE why_left_out",
    choice="DiskChoice",
    coverage="MAX_INFERRED_BYTES BlockCoverage CoverageCounts CoverageRoom grown",
    digests="combine_digests combine_disks tree_of",
    extras="ExtraKind OnExtra extra get_extra",
    hashing="MISSING can_hash",
    load="BlockLoadHandlers LoadDevice",
    log="SentLog",
    loss="Counts take_back_in_flight take_back_sent",
    proofs="Proofs",
    proving="Difference Proving",
    save="BlockSaveHandlers",
    sizes="SaidSizes",
    table="TableDisk barrier_records flush_records records",
    target="BlkLoadDevice",
    wire="FORMATS Format",
)
