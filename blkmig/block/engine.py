# SPDX-License-Identifier: GPL-2.0-or-later
"""The step that a section repeats: fill the pool of buffers with reads, send what was read, tell the progress.

A step is the same in bulk and in dirty rounds, and for every disk. What differs was decided in `save_setup`:

* the pool (`reads`) has one buffer and reads at once, or many buffers and reads on threads of its own;
* where the target holds old copies (`compare`), the bulk phase asks for their digests and sends what differs;
* a disk that is one file (`bmds.mapping`) sends runs of blocks in its bulk phase, which do not pass through the pool.
"""

from __future__ import annotations

from .. import channel
from . import bulk, dirty, send, state


def send_some(blk_mig: state.BlkMigState, f: channel.OutputQEMUFile) -> bool:
    """Do one step; False if this round has nothing more to send. Blocks."""
    goes_on = True
    while goes_on and blk_mig.reads.has_room():
        if blk_mig.bulk_completed:
            goes_on = dirty.blk_mig_save_dirty_block(blk_mig)
        else:
            bmds = bulk.find_bulk_device(blk_mig)
            save = bulk.save_device_bulk if blk_mig.comparison is None else blk_mig.comparison.save_device_bulk
            goes_on = bmds is not None and save(blk_mig, f, bmds)
    sent = send.flush_blks(blk_mig, f, wait=True)
    send.send_progress(blk_mig, f)
    return sent or not blk_mig.bulk_completed or not dirty.round_over(blk_mig)
