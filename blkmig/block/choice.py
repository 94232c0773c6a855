# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks of a migration are sent, which are only named, and which are left out."""

from __future__ import annotations

from collections.abc import Iterable

from .. import disk, logs, params, units
from . import checks, wire

logger = logs.Logger(__name__)


class DiskChoice:
    """The `disks` that somebody wants to be sent. All of it is there before the disks are taken into use.

    Read-only disks are skipped and named in `skipped`. So are disks of no bytes, unless a description will name them,
    which is all that can be sent of them.
    """

    def __init__(self, disks: Iterable[disk.BlockBackend], parameters: params.MigrationParameters) -> None:
        self.all = list(disks)
        self._parameters = parameters
        self.is_described = False
        """A sealed description will end the stream."""

        self.is_enabled = True
        """Disks are to be sent."""

        self.shared_base = parameters.shared_base
        """Only their top layers are."""

        self.skipped: list[str] = []
        self.empty: list[str] = []
        """Of disks without bytes, which can be written, the names."""

    def set_params(self, *, blk_enable: bool, shared_base: bool) -> None:
        """Choose whether disks are sent, and whether only their top layers are; `shared_base` implies the former."""
        units.check_flags(blk_enable=blk_enable, shared_base=shared_base)
        self.is_enabled = blk_enable or shared_base
        self.shared_base = shared_base

    def sent(self) -> list[disk.BlockBackend]:
        """Return the disks of which there is anything to send; take note of the others."""
        self.check()
        self.skipped.clear()
        self.empty.clear()
        return [backend for backend in self.all if self._is_sent(backend)]

    def _is_sent(self, backend: disk.BlockBackend) -> bool:
        why = checks.why_left_out(backend, is_described=self.is_described)
        if why:
            self.skipped.append(backend.name)
            logger.info("disk %r is not sent: %s", backend.name, why)
        if not backend.is_read_only and not backend.size:
            self.empty.append(backend.name)
        return not backend.is_read_only and backend.size > 0

    def fits_table(self) -> bool:
        """Return whether a section ``blkmig`` can carry the disks, by their number."""
        named = sum(not backend.is_read_only for backend in self.all)
        return self.is_enabled and self.is_described and 1 <= named <= wire.MAX_DISKS

    def check(self) -> None:
        """Refuse disks that the stream, or a QEMU as its target, cannot carry. May read a disk of less than 1 MiB.

        `save_setup` does it; callers that want to know before they connect do so earlier.
        """
        checks.check_disks(self.all, self._parameters)

    def check_any_is_sent(self) -> None:
        """Refuse a migration of none of the disks. For callers to whom an empty section is no success."""
        checks.check_any_is_sent(self.all, is_described=self.is_described)


def is_read_twice(backend: disk.BlockBackend) -> bool:
    """Return whether a disk can be read by two threads at once, or need not be."""
    if backend.is_read_only or not backend.size:
        return True
    reader = backend.open_reader(is_target=False)
    if reader is not None:
        reader.close()
    return reader is not None
