# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads of one disk, and blocks that are submitted by hand."""

from __future__ import annotations

import threading

import sim

from blkmig import _core, disk
from blkmig.block import device, reads, send, state
from blkmig.disk import geometry

MIB = sim.MIB


class GatedDisk(sim.LayeredDisk):
    """A disk whose reads wait until the test lets one of them go."""

    def __init__(self, nblocks: int) -> None:
        super().__init__(b"x" * nblocks * MIB)
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.error: BaseException | None = None

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self.begun.release()
        assert self.gate.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        return super().read_block(blk, offset, nbytes)


def state_of(backend: disk.BlockBackend, pool: reads.BlockReads) -> tuple[state.BlkMigState, device.BlkMigDevState]:
    """Return the state of a migration of one disk."""
    shape = geometry.BlockGeometry(backend.size)
    bmds = device.BlkMigDevState(
        backend=backend,
        name=b"d",
        geometry=shape,
        shared_base=False,
        dirty_bitmap=backend.create_dirty_bitmap(MIB),
        mapping=None,
        digests=None,
        aio_bitmap=_core.Bitmap(shape.nblocks),
    )
    return state.BlkMigState(reads=pool, bmds_list=[bmds], total_sector_sum=shape.total_sectors), bmds


def submit(blk_mig: state.BlkMigState, bmds: device.BlkMigDevState, block: int) -> None:
    blk = blk_mig.reads.get()
    blk.bulk_sectors = 0
    send.submit(blk_mig, bmds, block, blk)
