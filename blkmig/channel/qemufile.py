# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUFile: one direction of a channel, as numbers, buffers and blocks, and the way from it to the other one.

::

    sending.SendingFile ────── OutputQEMUFile ─┐
                                               ├── return_path(): each one makes the other, so they are in one file
    receiving.ReceivingFile ── InputQEMUFile ──┘
"""

from __future__ import annotations

import contextlib
import socket
from typing import NoReturn

from .. import errors
from . import base, breaking, link, rate, receiving, sending


class OutputQEMUFile(sending.SendingFile):
    """The sending direction. Small items are staged; they leave with a payload, when 64 KiB are full, or by flush()."""

    def __init__(self, transport: link.Transport, *, limiter: rate.RateLimiter | None = None) -> None:
        super().__init__(transport, limiter=limiter)
        self._return_path: InputQEMUFile | None = None
        self._is_one_way = False

    def return_path(self) -> InputQEMUFile | None:
        """Return what the other side says, always the same file; None for a channel that goes one way.

        It outlives close(): the peer then sees the end of the stream and can still answer. It has a close() of its own.
        """
        if self._return_path is None:
            transport = _other_direction(self)
            self._return_path = None if transport is None else InputQEMUFile(transport)
            if self._return_path is not None:
                self._return_path.set_idle_timeout(self._idle_timeout, first=self._idle_timeout)
        return self._return_path

    def why_broken(self) -> str:
        """Return why what was put cannot leave, "" if nothing is known to be in its way."""
        why = self._transport.why_broken()
        return "" if why is None else why.strerror or str(why)

    def go_one_way(self) -> None:
        """Take what comes back for no answers from now on: nobody at the other end speaks."""
        self._is_one_way = True

    def printed(self) -> bytes:
        """Return what has come instead of answers, 64 KiB at most. Does not wait."""
        if self._return_path is None or not self._return_path.wait_readable(0):
            return b""
        return self._return_path.get_some(1 << 16)

    @property
    def is_answered(self) -> bool:
        """Return whether the way back was opened, on which the peer says that it has everything."""
        return self._return_path is not None and not self._is_one_way

    def _keep(self, error: errors.MigrationError, cause: BaseException | None) -> NoReturn:
        """Raise `error`; of an answer that could not be sent, end the link.

        Whoever asked would wait for it, and this end for what follows on it, both with a link that looks whole.
        """
        if self._transport.is_answer and self._transport.socket is not None:
            with contextlib.suppress(OSError):  # it is gone
                self._transport.socket.shutdown(socket.SHUT_RDWR)
        super()._keep(error, cause)

    def abort(self) -> None:
        """Close without flushing, and the return path as well; never raises, twice does no harm."""
        super().abort()
        if self._return_path is not None:
            self._return_path.abort()
        self._close_link()


class InputQEMUFile(receiving.ReceivingFile):
    """The receiving direction. Small items are read ahead, up to 64 KiB, payloads go straight to their block.

    The end of the stream inside an item is :class:`~blkmig.errors.TruncatedStream`, which leaves the file usable: what
    has arrived of a record by then is still there for `peek_byte`.
    """

    def __init__(self, transport: link.Transport, *, begun: bytes = b"") -> None:
        super().__init__(transport, begun=begun)
        self._return_path: OutputQEMUFile | None = None

    def return_path(self) -> OutputQEMUFile | None:
        """Return the way to talk back to the source, always the same file; None for a channel that goes one way.

        It outlives close() and has a close() of its own.
        """
        if self._return_path is None:
            transport = _other_direction(self)
            self._return_path = None if transport is None else OutputQEMUFile(transport)
            if self._return_path is not None:
                self._return_path.set_idle_timeout(self._idle_timeout)
        return self._return_path

    def _fail(self, error: BaseException) -> None:
        """Raise what `error` means: an end may be this one's own, because an answer could not be sent."""
        back = None if self._return_path is None else self._return_path._error
        if isinstance(error, EOFError) and isinstance(back, errors.ChannelError):
            self._link.check()
            why = f"the other end could not be answered: {back.why}"
            cause = why if back.errno is None else OSError(back.errno, why)
            self._keep(errors.ChannelError(self._where(), uri=self.uri, cause=cause), error)
        super()._fail(error)

    def breaker(self) -> breaking.Breaker | None:
        """Return what ends this file from any other thread; None for a channel that goes one way."""
        try:
            sock = self._transport.socket
            return None if sock is None else breaking.Breaker(sock.dup(), self._transport.last_words)
        except OSError as error:
            raise errors.ChannelError("opening the link once more", uri=self.uri, cause=error) from error

    def abort(self) -> None:
        """Close without waiting, and the return path as well; never raises, twice does no harm."""
        super().abort()
        if self._return_path is not None:
            self._return_path.abort()
        self._close_link()


def _other_direction(file: base.QEMUFile) -> link.Transport | None:
    file._check()
    try:
        return file._transport.other_direction()
    except OSError as error:
        raise errors.ChannelError("opening the return path", uri=file.uri, cause=error) from error
