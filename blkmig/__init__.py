# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's live block migration outside QEMU: disks move while they are being written.

::

    disk = blkmig.FileBackend("vda.raw", name="drive0")
    with blkmig.outgoing([disk], "tcp:dest:4444") as mig:          # save_setup ... save_cleanup
        while mig.pending() > mig.threshold_size():                # bulk phase, then dirty rounds
            mig.iterate()                                          # one section: save_live_iterate
        mig.complete()                                             # hold writers, last pass, end of stream

    blkmig.send([disk], "tcp:dest:4444", downtime_limit=0.3)       # the same in one call
    blkmig.receive("tcp::4444", {"drive0": "copy.raw"})            # the other end
"""

from . import errors
from .disk import BlockBackend, DirtyBitmap, FileBackend, MemoryBackend, open_disk, open_disks
from .errors import MigrationError
from .migration import IncomingMigration, OutgoingMigration, incoming, outgoing, receive, send
from .params import IncomingParameters, MigrationParameters
from .savevm import SaveVMHandlers
from .stats import IncomingStatistics, OutgoingStatistics

__version__ = "0.1.0"

__all__ = [
    "BlockBackend",
    "DirtyBitmap",
    "FileBackend",
    "IncomingMigration",
    "IncomingParameters",
    "IncomingStatistics",
    "MemoryBackend",
    "MigrationError",
    "MigrationParameters",
    "OutgoingMigration",
    "OutgoingStatistics",
    "SaveVMHandlers",
    "errors",
    "incoming",
    "open_disk",
    "open_disks",
    "outgoing",
    "receive",
    "send",
]
