# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that moves a stream between a pair of Unix sockets and the connections to a peer: how it lives and ends.

::

    _output, _input ◄──► near ═══ far ◄── mover ──► peer
       (any thread)        the pair      (its thread)

So compiled code drives a descriptor as it does any other. See `splitting` and `joining`.
"""

from __future__ import annotations

import abc
import errno
import os
import socket
import threading

from . import link, sockets

LINGER_SECONDS = 1.0
"""How long what is left may take to leave when nobody here uses the stream any more; then the link is reset."""


class Mover(abc.ABC):
    """Moves bytes between `far`, one end of a pair, and the peer, until both have ended.

    `far` is its own from now on; if `start` raises OSError, it is the caller's.
    """

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self._sent_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Set by the mover, read by any thread.
        self.broken: OSError | None = None
        """Why the link is of no use any more, if it is not because both ends have closed it."""

        self.is_cut = False
        """The peer's end came before the end of what it sends."""

        self.is_busy = False
        """Something that was taken from the pair has not been handed to the peer's side."""

        self._has_sent_all = False
        self._thread: threading.Thread

    def start(self, name: str) -> None:
        """Begin, in a thread of this name. Raises OSError if there can be none."""
        link.keep_from_forks(self)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            os.close(self._sent_fd)
            raise OSError(errno.EAGAIN, str(error)) from error

    # -- any thread --------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def reset(self) -> None:
        """Break the connection at once: the peer sees no end, and gets nothing any more. Never raises."""

    @abc.abstractmethod
    def _progress(self) -> int:
        """Return a number that changes as long as something leaves. Never raises."""

    def await_sent(self, connection: link.Link, patience: float) -> None:
        """Wait until all that was put into `near`, which was shut, is the system's; what leaves starts `patience` anew.

        Raises Cancelled, and OSError, if it cannot leave, or nothing of it has for so many seconds, if not 0.
        """
        before = self._progress()
        while not connection.wait(patience or None, self._sent_fd):
            if (now := self._progress()) == before:
                raise OSError(errno.ETIME, os.strerror(errno.ETIME))
            before = now
        if self.broken is not None and not self._has_sent_all:
            raise self.broken

    def join(self) -> None:
        """Wait for the end, after `near` was closed; a peer that takes nothing holds it up for `LINGER_SECONDS`."""
        self._thread.join(LINGER_SECONDS)
        if self._thread.is_alive():
            self.reset()
            self._thread.join()
        os.close(self._sent_fd)

    def forget(self) -> None:
        """Give up what this process has of it, because it is a forked child; the mover is not in it."""
        self._far.close()
        os.close(self._sent_fd)

    # -- the mover's thread ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _run(self) -> None:
        """Move everything, and then `_end`."""

    def _note_sent(self) -> None:
        """Wake who waits for what was to be sent."""
        os.eventfd_write(self._sent_fd, 1)

    def _end(self) -> None:
        """Give the pair up, and wake who waits."""
        sockets.shut_and_close(self._far)
        self._note_sent()
