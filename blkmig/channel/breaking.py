# SPDX-License-Identifier: GPL-2.0-or-later
"""How one thread ends what another one waits for at a socket, without a cancel, which would be for good."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable

PIECE = 1 << 18


class Breaker:
    """Ends what a thread is blocked in at a socket, from any other thread: the socket is at its end from then on.

    It has a descriptor of its own, so that it never touches one that was closed, and belongs to something else by now.
    """

    def __init__(self, sock: socket.socket, last_words: Callable[[bytes], bytes]) -> None:
        self._socket = sock
        self._last_words = last_words  # makes of a message what is to be sent for it
        self._lock = threading.Lock()  # held while it is used or closed
        _alive.add(self)

    def stop_receiving(self) -> None:
        """Have the end come behind what has arrived. What is said the other way still leaves."""
        self._shut(socket.SHUT_RD)

    def break_off(self) -> None:
        """End both directions."""
        self._shut(socket.SHUT_RDWR)

    def say_last(self, data: bytes, seconds: float) -> bool:
        """Send what fits, end our direction, and drop what still comes for `seconds` at most; return whether all of
        `data` has fit. Never raises.

        For a link that was cancelled, on which nothing else can be said: a peer that would try to come again is to know
        that it need not. Whoever closes a link with unread bytes resets it, and what was said is lost.
        """
        end, has_fit = time.monotonic() + seconds, False
        with self._lock, contextlib.suppress(OSError):
            words = self._last_words(data)
            has_fit = self._socket.send(words) == len(words)
            self._socket.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(PIECE):
                    break
        return has_fit

    def close(self) -> None:
        """Give the descriptor back; the socket stays as it is. Twice does no harm."""
        with self._lock:
            self._socket.close()

    def forget(self) -> None:
        """Give up what this process has of it, because it is a forked child: the parent's thread may have the lock."""
        self._socket.close()

    def _shut(self, how: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.shutdown(how)


_alive: weakref.WeakSet[Breaker] = weakref.WeakSet()


def _forget_all() -> None:
    """Close, in a forked child, what would keep the peers of the process that forked it from seeing an end."""
    for alive in list(_alive):
        with contextlib.suppress(OSError):
            alive.forget()


os.register_at_fork(after_in_child=_forget_all)
