# SPDX-License-Identifier: GPL-2.0-or-later
"""Old copies of a disk, so that only what differs need come: a new target begins with one, or a target is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import _core, errors
from ..disk import backend, identity
from ..files import partial
from ..files.file import FileBackend
from . import opening

if TYPE_CHECKING:
    from ..files import inplace


class Reuse:
    """What the target of the disk that messages call `label` does with an old copy: it begins with `old`, or is one
    itself (`in_place`), or neither. Raises :class:`~blkmig.errors.DeviceError`, and OSError where it says so.
    """

    def __init__(
        self, old: str | os.PathLike[str] | None, *, in_place: bool, label: str, idle_timeout: float
    ) -> None:
        self.in_place = in_place
        self._old = None if old is None else OldCopy(old, label=label, idle_timeout=idle_timeout)
        self._mark: inplace.InPlace | None = None
        self._label = label

    @property
    def is_filled(self) -> bool:
        """Whether a new target begins with an old copy."""
        return self._old is not None

    def files(self) -> Iterator[identity.KnownFile]:
        """Yield the files that are read."""
        if self._old is not None:
            yield from self._old.files()

    def check(self, path: str, *, exists: bool, is_new: bool) -> None:
        """Raise if the target at `path` is to be an old copy and is none, or is to be made and is there."""
        if self.in_place and not exists:
            cause = "it does not exist, and --in-place is for a target that holds an old copy"
            raise self._cannot(f"open {path!r}", cause)
        if self._old is not None and not is_new:
            cause = "it exists, and --delta makes a new file: for the old copy itself, --in-place"
            raise self._cannot(f"create {path!r}", cause)

    def fill(self, made: partial.Partial | None, path: str, *, is_raw: bool) -> None:
        """Have the file that is made for `path` begin with the old copy. Blocks."""
        if self._old is None or made is None:
            return
        if not is_raw:
            cause = "an image cannot begin with an old copy: copy that, and say --in-place"
            raise self._cannot(f"create {path!r}", cause)
        self._old.copy_into(made.fd)

    def take(self, target: backend.BlockBackend, path: str) -> None:
        """Prepare the target at `path`, which exists. Blocks."""
        if self.in_place:
            from ..files import inplace

            with errors.failing(f"cannot open {path!r}", device=self._label):
                self._mark = inplace.take(target, path, self._label)

    @property
    def inode(self) -> int | None:
        """Return the number of the file that has a mark while it is written, None if it has none."""
        return None if self._mark is None else self._mark.inode

    def begin(self) -> None:
        """Mark a target that is about to be written: all disks of the stream were taken."""
        if self._mark is not None:
            with errors.failing("cannot be marked", device=self._label):
                self._mark.begin()

    def end(self) -> None:
        """Take note that a target is whole. Raises OSError."""
        if self._mark is not None:
            self._mark.end(is_whole=True)

    def discard(self, *, is_written: bool) -> None:
        """Let the target go, with its mark if it `is_written` and not whole. Raises OSError. Safe twice."""
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.close() if is_written else mark.end(is_whole=False)

    def _cannot(self, doing: str, cause: str) -> errors.DeviceError:
        return errors.DeviceError(f"cannot {doing}", device=self._label, cause=cause)


class OldCopy:
    """The old copy that `text` names, of the disk that messages call `label`. It is only read.

    Raises :class:`~blkmig.errors.ParameterError` for a text that can be none.
    """

    def __init__(
        self, text: str | os.PathLike[str], *, label: str, idle_timeout: float = opening.IDLE_SECONDS
    ) -> None:
        if opening.is_live(text):
            raise errors.ParameterError(f"{text!r} is in use: an old copy is a file, a device or an NBD export")
        self._text = text
        self._label = label
        self._idle_timeout = idle_timeout
        if not opening.is_nbd(text):
            opening.describe(text)

    def files(self) -> Iterator[identity.KnownFile]:
        """Yield the files that are read."""
        return opening.files_named(self._text)

    def copy_into(self, fd: int) -> None:
        """Copy it to the empty file open at `fd`, which then has its size. Blocks.

        Nobody may write it meanwhile. Raises :class:`~blkmig.errors.DeviceError`.
        """
        with (
            opening.open_disk(
                self._text, name=self._label, writable=False, idle_timeout=self._idle_timeout
            ) as old,
            errors.failing(f"cannot copy {os.fspath(self._text)!r}", device=self._label),
        ):
            from ..files import copying

            if isinstance(old, FileBackend) and (source := old.plain_fd()) is not None:
                copying.copy_contents(source, fd, old.size)
            else:
                _copy_blocks(old, fd)


def _copy_blocks(old: backend.BlockBackend, fd: int) -> None:
    """Copy a disk that is no plain file, block by block; what is zeros becomes holes."""
    buf = _core.BlockBuffer("own")
    os.ftruncate(fd, old.size)
    offset = 0
    while (extent := old.next_data(offset)) is not None:
        start, offset = extent[0], max(extent)
        while start < offset:
            nbytes = min(offset - start, _core.BLOCK_SIZE)
            if not old.read_block(buf, start, nbytes):
                _core.pwrite_full(fd, buf.payload[:nbytes], start)
            start += nbytes
