# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking a disk into use for a migration that sends it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from .. import _core, disk, params, passage
from ..disk import geometry
from . import checks, device, digests, granules, wire


def taken_into_use(
    disks: Sequence[disk.BlockBackend],
    departure: passage.Departure,
    parameters: params.MigrationParameters,
    *,
    shared_base: bool,
    section: wire.Format = "block",
) -> Iterator[device.BlkMigDevState]:
    """Take one disk after the other into use, and yield the state of each; what was yielded is the caller's."""
    for backend, granularity in zip(disks, granules.of_disks(disks, parameters, section), strict=True):
        yield take_into_use(
            backend, departure, parameters, shared_base=shared_base, granularity=granularity, section=section
        )


def take_into_use(
    backend: disk.BlockBackend,
    departure: passage.Departure,
    parameters: params.MigrationParameters,
    *,
    shared_base: bool,
    granularity: int,
    section: wire.Format,
) -> device.BlkMigDevState:
    """Keep other migrations off a disk, track its writes from now on, and return its state. All or nothing."""
    shape = geometry.BlockGeometry(backend.size)
    with contextlib.ExitStack() as blocker, geometry.keeping_account(shape.size):
        hashed = bytearray(shape.nblocks * digests.DIGEST_SIZE) if parameters.digests else None
        blocker.enter_context(backend.block_use("a migration that sends it"))
        bitmap = backend.create_dirty_bitmap(granularity)
        blocker.callback(backend.release_dirty_bitmap, bitmap)
        bmds = device.BlkMigDevState(
            backend=backend,
            name=checks.encode_name(backend),
            geometry=shape,
            shared_base=shared_base,
            dirty_bitmap=bitmap,
            mapping=departure.runs_from(backend),
            digests=hashed,
            disk_digests=bytearray(hashed) if hashed is not None and shared_base else None,
            sent=_core.Bitmap(shape.nblocks) if shared_base else None,
            whole_from=granules.whole_from(bitmap.bits_per_block, section, parameters),
            aio_bitmap=_core.Bitmap(shape.nblocks),
        )
        leaves = bmds.digests if bmds.disk_digests is None else bmds.disk_digests
        bmds.tree = None if leaves is None else digests.DigestTree(leaves)
        bmds.blocker = blocker.pop_all()
    return bmds
