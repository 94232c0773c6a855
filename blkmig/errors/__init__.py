# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that blkmig raises on purpose, as one tree.

::

    MigrationError                      exit code 1
    ├── ParameterError                  2   what the caller asked for makes no sense
    │   ├── WrongType                   2   ... because it is of another type; a TypeError, too
    │   └── DisplayInUse                2   ... because messages or results would be written into a disk
    ├── StateError                      1   called at the wrong moment of a migration's life
    ├── NoThread                        1   the system gives this process no more threads; a RuntimeError, too
    ├── StreamError                     1   the bytes of the stream are wrong, at `position`
    │   ├── TruncatedStream             5   the stream ended too early
    │   ├── SourceReadError             1   the source could not read its disk and said so
    │   ├── UnsupportedStream           1   well-formed, but it needs something blkmig does not do
    │   ├── UnknownDevice               1   names a disk that the receiver does not have
    │   └── OutOfRange                  1   a sector outside the disk
    ├── ChannelError                    5   the link: connect, accept, send, receive
    │   ├── ChannelTimeout              5
    │   ├── DamagedOnTheWay             5   a payload is not what was sent
    │   └── LocalFileError              1   the stream's own file, on this machine
    ├── TargetFailed                    1   the target has said that it failed, or that it refuses a disk
    ├── DeviceError                     1   a disk: open, read, write, flush
    │   ├── DeviceBusy                  6   somebody else uses the disk, or a migration does
    │   └── FormatError                 2   the image is not of the format that was said
    ├── IncompleteMigration             3   the stream ended well, but blocks never came
    ├── ContentMismatch                 3   the two disks differ
    │   └── WrongBase                   3   ... before anything was written: the target does not hold the source's base
    ├── NotVerified                     3   the target has taken everything, and comparing was cut short
    ├── NotConverged                    4   the writers are faster than the link
    ├── InDoubt                         7   the target has everything, or may have, and one end does not know
    └── Cancelled                     130

Each error keeps what it knows in fields; its message says what happened, where, and what to do next.
An :class:`OSError` behind an error is its ``__cause__``. Errors can be copied and pickled, so that they come out of a
process pool as what they are, with their fields, notes and cause.
"""

from __future__ import annotations

from .base import DisplayInUse, MigrationError, NoThread, ParameterError, StateError, WrongType, each, keeping
from .disks import DeviceBusy, DeviceError, FormatError, failing
from .link import ChannelError, ChannelTimeout, DamagedOnTheWay, LocalFileError, TargetFailed
from .outcome import Cancelled, ContentMismatch, IncompleteMigration, InDoubt, NotConverged, NotVerified, WrongBase
from .stream import OutOfRange, SourceReadError, StreamError, TruncatedStream, UnknownDevice, UnsupportedStream

__all__ = [
    "Cancelled",
    "ChannelError",
    "ChannelTimeout",
    "ContentMismatch",
    "DamagedOnTheWay",
    "DeviceBusy",
    "DeviceError",
    "DisplayInUse",
    "FormatError",
    "InDoubt",
    "IncompleteMigration",
    "LocalFileError",
    "MigrationError",
    "NoThread",
    "NotConverged",
    "NotVerified",
    "OutOfRange",
    "ParameterError",
    "SourceReadError",
    "StateError",
    "StreamError",
    "TargetFailed",
    "TruncatedStream",
    "UnknownDevice",
    "UnsupportedStream",
    "WrongBase",
    "WrongType",
    "each",
    "failing",
    "keeping",
]
