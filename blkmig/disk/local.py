# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks whose writers are threads of this process: reading and writing them, through the gate of `gate.py`.

A class of such disks says how bytes are read and written, and nothing else.
"""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, SupportsIndex

from .. import _core, _gate, _storing, errors
from . import extents as disk_extents
from . import gate

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LocalBackend(gate.GatedBackend):
    """What all disks with writers in this process share; a subclass says how bytes are read and written."""

    # -- for the subclass; errors are OSError --------------------------------------------------------------------------

    @abc.abstractmethod
    def _pread_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with what the disk holds at `offset`; the range lies inside the disk."""

    @abc.abstractmethod
    def _pwrite(self, view: memoryview, offset: int) -> None:
        """Write all of `view` at `offset`; the range lies inside the disk."""

    @abc.abstractmethod
    def _pwrite_zeroes(self, offset: int, nbytes: int) -> None:
        """Make [offset, offset + nbytes), which lies inside the disk, read as zeros."""

    # -- the guest: any thread -----------------------------------------------------------------------------------------

    def pread(self, offset: SupportsIndex, nbytes: SupportsIndex) -> bytes:
        """Read [offset, offset + nbytes), which must lie inside the disk. Blocks."""
        offset, nbytes = self.check_range("cannot read", offset, nbytes)
        with _gate.Passage(self._passages, self, offset, nbytes, False):
            self.check_open()
            data = bytearray(nbytes)
            with self.failing("cannot read", offset, nbytes):
                self._pread_into(memoryview(data), offset)
        return bytes(data)

    def pwrite(self, data: Buffer, offset: SupportsIndex) -> None:
        """Write all of `data`, any contiguous buffer, at `offset` and mark it dirty.

        Blocks, also while writers are held. Nothing is written if any of it lies outside the disk. After a failed
        write the range holds old bytes or new ones.
        """
        view = bytes_of(data)
        offset, nbytes = self.check_range("cannot write", offset, view.nbytes)
        with self.writing(offset, nbytes):
            try:
                self._pwrite(view, offset)
            except OSError as error:
                raise self.failed("cannot write", error, offset, nbytes) from error

    def pwrite_zeroes(self, offset: SupportsIndex, nbytes: SupportsIndex) -> None:
        """Make [offset, offset + nbytes) read as zeros, as :meth:`pwrite` does, leaving holes where the disk can."""
        offset, nbytes = self.check_range("cannot write zeros", offset, nbytes)
        with self.writing(offset, nbytes), self.failing("cannot write zeros", offset, nbytes):
            self._pwrite_zeroes(offset, nbytes)

    # -- a migration ---------------------------------------------------------------------------------------------------

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read one extent after the other, each to its place in `blk`."""
        self.check_open()
        for offset, part in disk_extents.parts_inside(blk, extents, self.size):
            offset, nbytes = self.check_range("cannot read", offset, part.nbytes)
            with self.failing("cannot read", offset, nbytes):
                self._pread_into(part, offset)
        blk.gathered()

    def write_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write one extent after the other, each from its place in `blk`."""
        self.check_open()
        for offset, part in disk_extents.parts(blk, extents):
            offset, nbytes = self.check_range("cannot write", offset, part.nbytes)
            with self.failing("cannot write", offset, nbytes):
                self._pwrite(part, offset)

    # -- the target ----------------------------------------------------------------------------------------------------

    def write_zeroes(self, offset: SupportsIndex, nbytes: SupportsIndex) -> None:
        """Make [offset, offset + nbytes) read as zeros; see the contract."""
        self.check_open()
        offset, nbytes = self.check_range("cannot write zeros", offset, nbytes)
        try:
            self._pwrite_zeroes(offset, nbytes)
        except OSError as error:
            raise self.failed("cannot write zeros", error, offset, nbytes) from error

    # -- errors --------------------------------------------------------------------------------------------------------

    def failed(
        self, doing: str, error: OSError, offset: int | None = None, nbytes: int | None = None
    ) -> errors.DeviceError:
        """Return the :class:`~blkmig.errors.DeviceError` to raise from `error`, which may be of an earlier block."""
        cause = gate.CLOSED if self._closed else error
        if isinstance(error, _storing.LateError):
            doing, offset, nbytes, cause = "cannot write", error.offset, _core.BLOCK_SIZE, error
        if isinstance(error, _core.ExtentError):
            offset, nbytes = error.offset, error.nbytes
        return errors.DeviceError(doing, device=self.name, cause=cause, offset=offset, nbytes=nbytes)

    @contextlib.contextmanager
    def failing(self, doing: str, offset: int | None = None, nbytes: int | None = None) -> Iterator[None]:
        """Turn an :class:`OSError` of the body into the :class:`~blkmig.errors.DeviceError` that says where."""
        try:
            yield
        except OSError as error:
            raise self.failed(doing, error, offset, nbytes) from error


_FIELD_NAMES = re.compile(":[^:]*:")
_REFERENCES = re.compile("[OP&Xz]|Z(?![fdg])")  # objects and pointers: see PEP 3118, and c/plain.h


def bytes_of(data: Buffer) -> memoryview:
    """Return the bytes of any contiguous buffer of plain items; a memoryview cannot be cast while it has no bytes.

    Raises :class:`~blkmig.errors.WrongType` for what is no such buffer, and for one of objects or pointers, as a numpy
    array of dtype object is: what it holds are addresses of this process, and what was written over them would be taken
    for such.
    """
    try:
        view = memoryview(data)
    except (TypeError, ValueError, BufferError) as error:
        raise errors.WrongType(f"bytes are needed, or a buffer of them, not {type(data).__name__}: {error}") from error
    if not view.c_contiguous:
        raise errors.WrongType("the bytes of a buffer must lie one behind the other, in C order: make a copy of it")
    if _REFERENCES.search(_FIELD_NAMES.sub("", view.format)):
        raise errors.WrongType(f"a buffer of objects has no bytes of a disk: its items are of format {view.format!r}")
    return view.cast("B") if view.nbytes else memoryview(bytearray())
