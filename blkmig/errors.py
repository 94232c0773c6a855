# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that blkmig raises on purpose, as one tree.

::

    MigrationError                      exit code 1
    ├── ParameterError                  2   what the caller asked for makes no sense
    │   ├── WrongType                   2   ... because it is of another type; a TypeError, too
    │   └── DisplayInUse                2   ... because messages or results would be written into a disk
    ├── StateError                      1   called at the wrong moment of a migration's life
    ├── StreamError                     1   the bytes of the stream are wrong, at `position`
    │   ├── TruncatedStream             5   the stream ended too early
    │   ├── SourceReadError             1   the source could not read its disk and said so
    │   ├── UnsupportedStream           1   well-formed, but it needs something blkmig does not do
    │   ├── UnknownDevice               1   names a disk that the receiver does not have
    │   └── OutOfRange                  1   a sector outside the disk
    ├── ChannelError                    5   the link: connect, accept, send, receive
    │   ├── ChannelTimeout              5
    │   └── LocalFileError              1   the stream's own file, on this machine
    ├── TargetFailed                    1   the target has said that it failed, or that it refuses a disk
    ├── DeviceError                     1   a disk: open, read, write, flush
    │   ├── DeviceBusy                  6   somebody else uses the disk, or a migration does
    │   └── FormatError                 2   the image is not of the format that was said
    ├── IncompleteMigration             3   the stream ended well, but blocks never came
    ├── ContentMismatch                 3   the two disks differ
    │   └── WrongBase                   3   ... before anything was written: the target does not hold the source's base
    ├── NotConverged                    4   the writers are faster than the link
    ├── InDoubt                         7   the target has everything, or may have, and one end does not know
    └── Cancelled                     130

Each error keeps what it knows in fields; its message says what happened, where, and what to do next.
An :class:`OSError` behind an error is its ``__cause__``. Errors can be copied and pickled, so that they come out of a
process pool as what they are, with their fields, notes and cause.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

from . import portable


class MigrationError(portable.Portable, Exception):
    """Something that stops a migration. ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class ParameterError(MigrationError, ValueError):
    """A parameter, a URI or a size that cannot be used; nothing was opened or changed."""

    exit_code = 2


class DisplayInUse(ParameterError):
    """The `display`, standard output or standard error, goes into a file that a migration uses. Nothing was done."""

    def __init__(self, message: str, *, display: str) -> None:
        super().__init__(message)
        self.display = display


class WrongType(ParameterError, TypeError):
    """A parameter of a type that cannot be meant: a text for a yes or no, objects for bytes. Nothing was done."""


class StateError(MigrationError):
    """A call that the present state does not allow; the state is unchanged."""

    def __init__(self, message: str, *, state: str, required: str) -> None:
        super().__init__(f"{message} (state is {state!r}, must be {required!r})")
        self.state = state
        self.required = required


class StreamError(MigrationError):
    """The stream is not what the format allows; `position` is the byte offset where that was seen."""

    def __init__(self, message: str, *, position: int) -> None:
        super().__init__(f"{message} (at byte {position} of the stream)")
        self.position = position


class TruncatedStream(StreamError):
    """The stream ended in the middle of something; the target is incomplete."""

    exit_code = 5


class SourceReadError(StreamError):
    """The source met a read error on its disk and closed the section early, as QEMU does."""


class UnsupportedStream(StreamError):
    """The stream is well-formed, but carries something that cannot be received over one byte stream."""


class UnknownDevice(StreamError):
    """A block for a disk that the receiver was not given."""

    def __init__(self, message: str, *, device: str, position: int) -> None:
        super().__init__(message, position=position)
        self.device = device


class OutOfRange(StreamError):
    """A block that lies outside its disk; nothing of it was written."""

    def __init__(self, message: str, *, device: str, sector: int, position: int) -> None:
        super().__init__(message, position=position)
        self.device = device
        self.sector = sector


class ChannelError(MigrationError):
    """The link broke or could not be made; `doing` says what was being done, `uri` to whom.

    `device` and `offset` are the block that was sent last, where that is known.
    """

    exit_code = 5

    def __init__(
        self,
        doing: str,
        *,
        uri: str,
        cause: OSError | str,
        device: str | None = None,
        offset: int | None = None,
        hint: str = "",
    ) -> None:
        why = cause if isinstance(cause, str) else (cause.strerror or str(cause))
        where = "" if device is None else f"; disk {device!r} was at offset {offset}"
        super().__init__(f"{doing}: {why} [{uri}]{where}{hint and '; '}{hint}")
        self.doing = doing
        self.uri = uri
        self.why = why
        self.device = device
        self.offset = offset
        self.errno = cause.errno if isinstance(cause, OSError) else None


class ChannelTimeout(ChannelError):
    """The peer did not answer, connect or take data within the time allowed."""


class LocalFileError(ChannelError):
    """The file that the stream goes to or comes from, on this machine, cannot be used: no link was lost."""

    exit_code = 1


class TargetFailed(MigrationError):
    """The target has said that it does not take the disks, or not any more; the source goes on as it was.

    `device`, `offset` and `errno` are what it has said of the reason, None where it has not.
    """

    def __init__(
        self, message: str, *, device: str | None = None, offset: int | None = None, errno: int | None = None
    ) -> None:
        super().__init__(message)
        self.device = device
        self.offset = offset
        self.errno = errno


class DeviceError(MigrationError):
    """An operation on a disk failed; `errno` is the system's reason, `offset` and `nbytes` the range, if it had one."""

    def __init__(
        self, doing: str, *, device: str, cause: OSError | str, offset: int | None = None, nbytes: int | None = None
    ) -> None:
        where = "" if offset is None else f" at offset {offset}"
        length = "" if nbytes is None else f", {nbytes} bytes"
        why = cause if isinstance(cause, str) else (cause.strerror or str(cause))
        super().__init__(f"disk {device!r}: {doing}{where}{length}: {why}")
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


class IncompleteMigration(MigrationError):
    """The stream is complete, its disks are not: `missing` maps each disk to the block ranges that never came.

    A range is ``(first block, number of blocks)``, a block is 1 MiB.
    """

    exit_code = 3

    def __init__(self, message: str, *, missing: dict[str, list[tuple[int, int]]]) -> None:
        super().__init__(message)
        self.missing = missing


class ContentMismatch(MigrationError):
    """The target's contents are not those of the source."""

    exit_code = 3

    def __init__(self, message: str, *, device: str) -> None:
        super().__init__(message)
        self.device = device


class WrongBase(ContentMismatch):
    """The target does not hold what the source's base holds; nothing was written."""


class NotConverged(MigrationError):
    """The writers dirty blocks faster than the link carries them; the source is untouched and still in use.

    `dirty_rate` and `bandwidth` are bytes per second, `pending` is bytes. `written_rate` is what the writers write,
    which is less than they dirty, for that counts in whole granules; None where a disk does not count it.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        dirty_rate: float,
        bandwidth: float,
        pending: int,
        rounds: int,
        written_rate: float | None = None,
    ) -> None:
        super().__init__(message)
        self.dirty_rate = dirty_rate
        self.bandwidth = bandwidth
        self.pending = pending
        self.rounds = rounds
        self.written_rate = written_rate


class InDoubt(MigrationError):
    """What one end has done, and the other end's word or knowledge of it is not to be had.

    At the source: a disk was to move, the end of its stream has left, and the target's word did not come. The target
    may own the disk, so the source's writers stay held: only the operator can know on which side the disk may be used.
    At the target: everything is on stable storage, and the link broke when the source was told. The target stays.
    """

    exit_code = 7


class Cancelled(MigrationError):
    """The migration was cancelled; both disks are closed, the source is still in use, the target is incomplete."""

    exit_code = 130


@contextlib.contextmanager
def keeping(first: BaseException | None) -> Iterator[None]:
    """Clean up after `first`, if that is an error, in the body of a ``with``: one of the body becomes a note to it."""
    try:
        yield
    except Exception as error:
        if first is None:
            raise
        first.add_note(f"and then: {error}")


@contextlib.contextmanager
def failing(doing: str, *, device: str, offset: int | None = None, nbytes: int | None = None) -> Iterator[None]:
    """Turn an :class:`OSError` of the body of a ``with`` into the DeviceError that says what was done to which disk.

    The one place for it, but for what is called for each block, which has no time for a ``with``.
    """
    try:
        yield
    except OSError as error:
        raise DeviceError(doing, device=device, cause=error, offset=offset, nbytes=nbytes) from error
