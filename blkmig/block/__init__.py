# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``block`` section, version 1: the only room that knows both a disk and a stream."""

from .load import BlockLoadHandlers
from .save import BlockSaveHandlers
from .target import BlkLoadDevice

__all__ = ["BlkLoadDevice", "BlockLoadHandlers", "BlockSaveHandlers"]
