# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``block`` section, version 1: the only room that knows both a disk and a stream."""

from .buffers import LoadBuffers
from .coverage import MAX_INFERRED_BYTES, BlockCoverage, CoverageRoom, grown
from .digests import combine_digests, combine_disks, tree_of
from .load import BlockLoadHandlers
from .save import BlockSaveHandlers
from .sizes import SaidSizes
from .target import NAMELESS_TWICE, BlkLoadDevice

__all__ = [
    "MAX_INFERRED_BYTES",
    "NAMELESS_TWICE",
    "BlkLoadDevice",
    "BlockCoverage",
    "BlockLoadHandlers",
    "BlockSaveHandlers",
    "CoverageRoom",
    "LoadBuffers",
    "SaidSizes",
    "combine_digests",
    "combine_disks",
    "grown",
    "tree_of",
]
