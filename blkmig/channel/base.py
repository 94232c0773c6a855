# SPDX-License-Identifier: GPL-2.0-or-later
"""What both directions of a channel share: errors that say what was being done, cancelling, the end of life.

One thread uses a file; only `cancel` and `set_rate_limit` may come from other threads and from signal handlers. The
first error of a file is kept: every later call raises it again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, NoReturn, ParamSpec, Self, TypeVar

from .. import _output, errors
from . import link

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="QEMUFile")


def transfer(method: Callable[Concatenate[F, P], R]) -> Callable[Concatenate[F, P], R]:
    """Give a method that moves bytes its checks and errors; it costs one flag test while nothing is wrong.

    The four methods that are called for each block have the same written out, which saves them a call.
    """

    @functools.wraps(method)
    def call(self: F, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if self._link.careful:
                self._check()
            return method(self, *args, **kwargs)
        except BaseException as error:
            self._fail(error)
            raise

    return call


class QEMUFile:
    """What both directions share: cancelling, the first error, the end."""

    doing: str
    side: int
    """The direction of a socket that this file is: what its end shuts down."""

    def __init__(self, transport: link.Transport) -> None:
        self.uri = transport.link.uri
        self._transport = transport
        self._link = transport.link
        self._error: BaseException | None = None
        self._is_closed = False
        self._idle_timeout = 0.0

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file; after an error abort it."""
        if exc_type is None:
            self.close()
        else:
            self.abort()

    @property
    def position(self) -> int:
        """Return the bytes put or consumed so far."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Make every blocked or later call raise :class:`~blkmig.errors.Cancelled`, in both directions of the link.

        From any thread and from signal handlers, at any time, also after close(). A write to a regular file is not
        interrupted; it ends by itself.
        """
        self._link.cancel()

    def close(self) -> None:
        """End this direction; twice does no harm."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop this direction as it is, and with the first one the link; never raises, twice does no harm."""
        self._is_closed = self._link.careful = True
        with contextlib.suppress(OSError):
            self._transport.close(self.side if self._transport.is_answer else socket.SHUT_RDWR)
        self._transport.end_child()
        self._error = None  # with its frames, which have this file

    def _close_link(self) -> None:
        """Give back what both directions share; the one that was made by the other leaves that to it."""
        if not self._transport.is_answer:
            self._link.close()

    def _check(self) -> None:
        """Raise what stands against using the file."""
        if self._is_closed:
            raise errors.StateError(f"the channel was closed [{self.uri}]", state="closed", required="open")
        self._link.check()
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        """Raise what `error`, caught in a put or get, means; return if it means itself."""
        if isinstance(error, OSError) and not isinstance(error, _output.PayloadError):
            self._link.check()
            self._keep(self._meaning(error), error)
        if self._error is None and (not isinstance(error, Exception) or isinstance(error, _output.PayloadError)):
            # KeyboardInterrupt and the like: nobody knows where in the item, so nothing may follow it.
            self._error = errors.ChannelError(self._where(), uri=self.uri, cause="it was interrupted before")
            self._link.careful = True

    def _meaning(self, error: OSError) -> errors.ChannelError:
        """Return what `error` of the descriptor means."""
        error = self._transport.why_broken() or error
        if error.errno == errno.ETIME:
            return errors.ChannelTimeout(self._where(), uri=self.uri, cause=self._idle_words())
        if error.errno == errno.EPROTO:
            why = "4 MiB of messages came, and nothing of a disk or a VM among them: no migration sends that"
            return errors.ChannelError(self._where(), uri=self.uri, cause=why)
        if self._transport.local_file:
            return errors.LocalFileError(self._where(), uri=self.uri, cause=error)
        return errors.ChannelError(self._where(), uri=self.uri, cause=self._explained(error))

    def _idle_words(self) -> str:
        """Return what a peer did not do for the length of the idle time-out."""
        raise NotImplementedError

    def _keep(self, error: errors.MigrationError, cause: BaseException | None) -> NoReturn:
        self._error = error
        self._link.careful = True
        raise error from cause

    def _where(self) -> str:
        return f"{self.doing} at byte {self.position}"

    def _explained(self, error: OSError) -> OSError:
        """Return `error` with what the command at the other end of the pipe has to say, if it has ended."""
        try:
            status = self._transport.child_status(link.CHILD_GRACE_SECONDS)
        except ChildProcessError as unknown:
            return OSError(error.errno, f"{error.strerror}; {unknown.strerror}")
        if status is None:
            return error
        return OSError(error.errno, f"{error.strerror}; {describe_status(status)}")

    def command_words(self) -> str:
        """Return how the command at the other end has ended, if it did and went wrong; "" else."""
        try:
            status = self._transport.child_status(link.CHILD_GRACE_SECONDS)
        except ChildProcessError as unknown:
            return f"; {unknown.strerror}"
        return f"; {describe_status(status)}" if status else ""

    def _wait_for_command(self, seconds: float | None = None, *, allowed: tuple[int, ...] = ()) -> None:
        """Wait up to `seconds` for an exec: command to end; raises ChannelError for a bad exit status, or none."""
        try:
            status = self._transport.child_status(seconds)
        except ChildProcessError as error:
            raise errors.ChannelError("closing", uri=self.uri, cause=error) from error
        if status and status not in allowed:
            raise errors.ChannelError("closing", uri=self.uri, cause=describe_status(status))

    def _close_transport(self) -> None:
        self._is_closed = self._link.careful = True
        try:
            self._transport.close(self.side)
        except OSError as error:
            kind = errors.LocalFileError if self._transport.local_file else errors.ChannelError
            raise kind("closing", uri=self.uri, cause=error) from error


def describe_status(status: int) -> str:
    """Return how a command ended, for a person."""
    if status < 0:
        return f"the command was ended by signal {-status}"
    hint = {126: ", it cannot be run", 127: ", it was not found"}.get(status, "")
    return f"the command ended with exit status {status}{hint}"
