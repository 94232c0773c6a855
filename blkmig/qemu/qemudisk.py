# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of a running QEMU as a source: QEMU tracks, blkmig reads the image's file or a read-only NBD export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Self

from .. import _core, errors, units
from ..disk import backend, dirty, identity, storage
from ..disk import extents as disk_extents
from . import address, discover, imagefile, session


class QemuBackend(backend.BlockBackend):
    """Disk `number` of a :class:`~blkmig.qemu.session.QemuSession`; the session ends with its last disk.

    `name` is the disk's name on the wire, by default the device's id or the node's name. Its writers are the guest and
    QEMU's other clients; holding those of one disk holds those of all disks of the session. The disk cannot be written
    through this object: as a target, name an NBD export of QEMU.

    A raw image that stands in this machine's page cache is read from its file; see `imagefile.py`.
    """

    def __init__(self, shared: session.QemuSession, number: int, *, name: str | None = None) -> None:
        disk = shared.disks[number]
        self.session = shared
        self.name = name or disk.name
        self.size = shared.readers.connections[number].size
        # A disk that nobody can write is only here if the user has named it, and then it is sent like any other.
        self.is_read_only = False
        self._number = number
        self._connection = shared.readers.connections[number]
        self._extents = shared.readers.extents[number]
        self._file = shared.readers.files[number]
        self.reads_in_parallel = self._file is None
        self.files = tuple(known_files(shared.image_names[number], self._file))

    def is_named_by(self, where: address.QemuAddress) -> bool:
        """Return whether `where` names this disk itself, and not only all disks."""
        return discover.is_named(self.session.disks[self._number], where)

    @property
    def mapping(self) -> _core.Mapping | None:  # type: ignore[override]
        """The mapping of the image's file; None where QEMU reads."""
        return None if self._file is None else self._file.mapping

    def open_reader(self, *, is_target: bool) -> storage.StorageReader:
        """Return a second reader; what QEMU, or the page cache, answers it may come from memory."""
        return storage.BackendReader(self)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block straight into its buffer; drops the GIL. Any number of threads: requests are pipelined."""
        if self._file is not None:
            with errors.failing("cannot read", device=self.name, offset=offset, nbytes=nbytes):
                return self._file.fill(blk, offset, nbytes)
        count = max(0, min(nbytes, self.size - offset))
        if count:
            self._connection.pread_into(blk.data[:count], offset)
        return blk.filled(count)

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read extents, of the file in one call, else several requests at once."""
        if self._file is not None:
            self._file.fill_extents(blk, extents)
            return
        self._connection.pread_each(disk_extents.parts_inside(blk, extents, self.size))
        blk.gathered()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the next extent that may hold data, by the file system or by base:allocation."""
        if self._file is not None:
            with errors.failing("cannot look for data", device=self.name, offset=offset):
                return self._file.next_data(offset, self.size)
        return self._extents.next_data(offset)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return the next extent that the top image holds, by qemu:allocation-depth."""
        return self._extents.next_allocated(offset, nbytes)

    def forget_extents(self) -> None:
        """Forget what QEMU has told, so that it is asked again."""
        self._extents.forget()

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Make QEMU track the writes from now on."""
        return self.session.create_dirty_bitmap(self._number, granularity)

    def release_dirty_bitmap(self, bitmap: dirty.DirtyBitmap) -> None:
        """Make QEMU stop tracking."""
        self.session.release_dirty_bitmap(self._number, bitmap)

    def sync_dirty(self) -> None:
        """Mark what was written, as QEMU has tracked it. Takes 4 ms, in the pause 1 ms; less if nothing was written."""
        self.sync_together([self])

    @classmethod
    def sync_together(cls, disks: Sequence[Self]) -> None:
        """Mark what was written to several disks, as QEMU has tracked it; QEMU is asked about all of them at once."""
        sessions: dict[session.QemuSession, list[Self]] = {}
        for disk in disks:
            sessions.setdefault(disk.session, []).append(disk)
        for shared, members in sessions.items():
            shared.sync_dirty([disk._number for disk in members])
            for disk in members:
                disk._check_size()

    def _check_size(self) -> None:
        if self._file is not None:
            with errors.failing("cannot be read to its end", device=self.name):
                self._file.check_size()

    # -- writers -----------------------------------------------------------------------------------------------------

    def hold_writers(self) -> None:
        """Stop the guest and close the writable exports of the session's disks, whichever disk asks first.

        With ``switchover="pause-before"`` wait for QEMU's own migration to stop the guest.
        """
        self.session.hold_writers(self._number)

    def release_writers(self, *, refuse: bool = False) -> None:
        """Undo `hold_writers` when the last disk asks. With `refuse` the guest stays stopped: the disks have moved.

        Raises :class:`~blkmig.errors.DeviceError` if a disk was written meanwhile; then its writers go on.
        """
        units.check_flags(refuse=refuse)
        self.session.release_writers(self._number, refuse=refuse)

    def about_to_move(self) -> bool:
        """Have `hold_writers` mark in QEMU that the target may own the disks; False with ``switchover="pause-before"``.

        Raises :class:`~blkmig.errors.StateError` if the writers are held already.
        """
        return self.session.about_to_move()

    def leave_in_doubt(self) -> None:
        """Leave the guest stopped; ``blkmig cleanup --force`` lets it go on."""
        self.session.leave_in_doubt(self._number)

    def check_source(self) -> None:
        """Raise if QEMU has ended, its own migration failed, or a disk is no longer what it was; see `surveillance`."""
        self.session.check_source()

    def cancel(self) -> None:
        """End every wait for QEMU, for all disks of the session."""
        self.session.cancel()

    @property
    def awaits_switchover(self) -> bool:  # type: ignore[override]
        """Whether QEMU's own migration stops the guest."""
        return self.session.is_whole_vm

    def written_bytes(self) -> int | None:
        """Return how many bytes the guest wrote, as QEMU counts them, or else as its bitmaps tell."""
        return self.session.written_bytes(self._number)

    def throttle_writers(self, fraction: float) -> bool:
        """Limit the disk's write throughput to `fraction` of what it was; 1 restores the user's own limits."""
        fraction = units.share("fraction", fraction)
        return self.session.throttle_writers(self._number, fraction)

    # -- not for targets ---------------------------------------------------------------------------------------------

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Refuse: the disk of a running QEMU is a source."""
        raise self._is_a_source()

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Refuse: the disk of a running QEMU is a source."""
        raise self._is_a_source()

    def flush(self) -> None:
        """Nothing was written through this object."""

    def _is_a_source(self) -> errors.DeviceError:
        cause = "the disk of a running QEMU is a source; as a target, name a writable NBD export of it"
        return errors.DeviceError("cannot be written", device=self.name, cause=cause)

    def close(self) -> None:
        """Remove what was created inside QEMU for this disk; with the last disk of the session, everything."""
        self.session.close_disk(self._number)


def known_files(names: list[str], file: imagefile.ImageFile | None) -> Iterator[identity.KnownFile]:
    """Yield the image files of a disk of QEMU's that are on this machine, as far as their names tell."""
    if file is not None:
        yield file.known
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            known = identity.KnownFile.of(name)
            if name.startswith("/") and known.about is not None:
                yield known
