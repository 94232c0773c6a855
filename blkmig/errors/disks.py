# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with a disk, and the one place where the system's error becomes that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from . import base


class DeviceError(base.MigrationError):
    """An operation on a disk failed; `errno` is the system's reason, `offset` and `nbytes` the range, if it had one."""

    def __init__(
        self, doing: str, *, device: str, cause: OSError | str, offset: int | None = None, nbytes: int | None = None
    ) -> None:
        where = "" if offset is None else f" at offset {offset}"
        length = "" if nbytes is None else f", {nbytes} bytes"
        why = cause if isinstance(cause, str) else (cause.strerror or str(cause))
        hint = base.advice(cause)
        super().__init__(f"disk {device!r}: {doing}{where}{length}: {why}{hint and '; '}{hint}")
        self.doing = doing
        self.device = device
        self.offset = offset
        self.nbytes = nbytes
        self.errno = cause.errno if isinstance(cause, OSError) else None


class DeviceBusy(DeviceError):
    """The disk is in use by another program or another migration; it was not touched."""

    exit_code = 6


class FormatError(DeviceError):
    """The disk's first bytes are those of another image format than the one it was opened as."""

    exit_code = 2


@contextlib.contextmanager
def failing(doing: str, *, device: str, offset: int | None = None, nbytes: int | None = None) -> Iterator[None]:
    """Turn an :class:`OSError` of the body of a ``with`` into the DeviceError that says what was done to which disk.

    The one place for it, but for what is called for each block, which has no time for a ``with``.
    """
    try:
        yield
    except OSError as error:
        raise DeviceError(doing, device=device, cause=error, offset=offset, nbytes=nbytes) from error
