# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with the bytes of a stream."""

from __future__ import annotations

from . import base


class StreamError(base.MigrationError):
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
