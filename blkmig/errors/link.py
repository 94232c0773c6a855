# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with the link, and what the other end says."""

from __future__ import annotations

from . import base


class ChannelError(base.MigrationError):
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
        hint = hint or base.advice(cause)  # of a file that a stream goes to
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


class DamagedOnTheWay(ChannelError):
    """A payload is not the one that its source has sent, by its checksum; nothing of it was stored."""

    def __init__(self, doing: str, *, uri: str, device: str, offset: int) -> None:
        why = "what came is not what was sent, by its checksum"
        super().__init__(doing, uri=uri, cause=why, device=device, offset=offset, hint="migrate again")


class LocalFileError(ChannelError):
    """The file that the stream goes to or comes from, on this machine, cannot be used: no link was lost."""

    exit_code = 1


class TargetFailed(base.MigrationError):
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
