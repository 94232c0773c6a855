# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream over several connections: the transport whose descriptor is an end of the mover's pair.

::

    _output ──► near ═══ far ◄── Splitter ──► connection 0, 1, 2 ...        see `stripes`
    _input  ◄── near ═══ far ──► Joiner   ◄── connection 0, 1, 2 ...

The way back is that of connection 0. Where one of them is lost, so is the stream. With TLS each of them has a
session of its own.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from .. import errors
from . import buffers, joining, link, qemufile, sockets, splitting, stripes

PAIR_NBYTES = 1 << 19
"""Bytes that may wait in the pair: little, because a connection has room of its own, and what waits delays the last."""

Kind = type[splitting.Splitter] | type[joining.Joiner]


class BundledTransport(link.Transport):
    """One direction of a stream that goes over `transports`, which are its own from now on; the first one has its link.

    Raises OSError, and then they are the caller's.
    """

    takes_pages = False

    def __init__(
        self, kind: Kind, near: socket.socket, far: socket.socket, *transports: link.Transport
    ) -> None:
        super().__init__(transports[0].link, near)
        self.is_sealed = transports[0].is_sealed
        self._transports = transports
        self.peer_sockets = [sock for transport in transports for sock in transport.peer_sockets]
        self._patience = 0.0
        self._mover = kind(far, transports)

    def other_direction(self) -> link.Transport | None:
        """Return the other direction of the same stream. Raises OSError."""
        return self._transports[0].other_direction()

    def say_goodbye(self, patience: float) -> None:
        """Have `finish_sending` wait for so many seconds while nothing leaves; 0 is for ever."""
        self._patience = patience

    def finish_sending(self) -> None:
        """Wait until all of it is the system's, and say that nothing more comes. Raises ChannelError, and Cancelled."""
        super().finish_sending()
        try:
            self._mover.await_sent(self.link, self._patience)
        except OSError as error:
            kind = errors.ChannelTimeout if error.errno == errno.ETIME else errors.ChannelError
            raise kind("sending the last bytes", uri=self.link.uri, cause=error) from error
        for transport in self._transports:
            with contextlib.suppress(OSError):  # a peer that has all it wants may have gone
                transport.say_goodbye(self._patience)
            transport.finish_sending()

    def close(self, how: int = socket.SHUT_RDWR) -> None:
        """Give the descriptors back, and end the mover."""
        if self.fd < 0:
            return
        super().close()
        self._mover.join()
        first, *others = self._transports
        for transport in others:
            with contextlib.suppress(OSError):
                transport.close()
            transport.link.close()
        first.close(how)

    def reset(self) -> None:
        """Make the peer see that the link broke; never raises."""
        self._mover.reset()

    def has_left(self) -> bool:
        """Return whether the peer's machine has everything that was put. Raises OSError if the link broke."""
        return not buffers.unsent_nbytes(self.fd) and self._mover.has_left()

    def why_broken(self) -> OSError | None:
        """Return why the link broke."""
        return self._mover.broken

    def end_words(self) -> str:
        """Return what is to be said of an end of one of the connections."""
        first = next((words for transport in self._transports if (words := transport.end_words())), "")
        return first or (f": one of its {len(self._transports)} connections was cut off" if self._mover.is_cut else "")


def split(f: qemufile.OutputQEMUFile, others: Sequence[qemufile.OutputQEMUFile]) -> None:
    """Have `f` send over the connections of `others` as well, which are not used otherwise from now on.

    Raises ChannelError, with everything as it was.
    """
    for sock in (sock for file in (f, *others) for sock in file._transport.peer_sockets):
        sockets.limit_queue(sock, stripes.CHUNK_NBYTES)  # so that the one takes a chunk that sends soonest
    f.flush()
    f.reroute(_bundled(splitting.Splitter, f._transport, others))


def join(f: qemufile.InputQEMUFile, others: Sequence[qemufile.InputQEMUFile]) -> None:
    """Have `f` receive over the connections of `others` as well, which are not used otherwise from now on.

    Raises ChannelError, with everything as it was.
    """
    f.reroute(_bundled(joining.Joiner, f._transport, others))


def _bundled(
    kind: Kind,
    first: link.Transport,
    others: Sequence[qemufile.OutputQEMUFile] | Sequence[qemufile.InputQEMUFile],
) -> BundledTransport:
    try:
        near, far = socket.socketpair()
        try:
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_NBYTES)
            return BundledTransport(kind, near, far, first, *(file._transport for file in others))
        except BaseException:
            near.close()
            far.close()
            raise
    except OSError as error:
        raise errors.ChannelError("bundling connections", uri=first.link.uri, cause=error) from error
