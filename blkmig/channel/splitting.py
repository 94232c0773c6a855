# SPDX-License-Identifier: GPL-2.0-or-later
"""The mover that sends a stream over several connections: see `stripes`.

A chunk goes over the first connection that takes it, in turns where several do.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Sequence

from . import buffers, link, mover, stripes


class Splitter(mover.Mover):
    """Sends what comes out of `far` over `transports`."""

    def __init__(self, far: socket.socket, transports: Sequence[link.Transport]) -> None:
        super().__init__(far)
        self._lanes = [stripes.SendingLane(transport) for transport in transports]
        self._handed_over = 0  # bytes that the connections took
        # The mover's own.
        self._count = 0
        self._has_all = False
        self._has_hung_up = False  # nobody uses `near`
        self._has_input = False
        self._first = 0  # whose turn it is
        self.start("blkmig-split")

    def reset(self) -> None:
        """Break all connections at once. Never raises."""
        for lane in self._lanes:
            lane.transport.reset()

    def has_left(self) -> bool:
        """Return whether the peer's machine has everything that was taken. Raises OSError if a connection broke."""
        if self.broken is not None:
            raise self.broken
        return not self.is_busy and all(lane.transport.has_left() for lane in self._lanes)

    def _progress(self) -> int:
        return self._handed_over - sum(map(_queued, self._lanes))

    def _run(self) -> None:
        try:
            while not self._has_sent_all:
                self._step()
        except OSError as error:
            self._break(stripes.explained([lane.transport for lane in self._lanes], error))
        except Exception as error:  # without memory, for one: whoever waits must hear of it
            self._break(OSError(errno.ECONNABORTED, f"the stream could not be split: {error!r}"))
        finally:
            self._end()

    def _break(self, why: OSError) -> None:
        """End all connections: what was sent must not look whole, and who waits for an answer waits for nothing."""
        self.broken = why
        self.reset()
        for lane in self._lanes:
            with contextlib.suppress(OSError):  # it is reset
                lane.socket.shutdown(socket.SHUT_RDWR)

    def _step(self) -> None:
        """Wait until something can be done, and do it."""
        ready = self._wait()
        self._has_hung_up = self._has_hung_up or bool(ready.get(self._far.fileno(), 0) & select.POLLHUP)
        self._has_input = self._has_input or self._far.fileno() in ready
        for lane in self._lanes:
            if lane.unsent and lane.fd in ready:
                self._send(lane)
        if self._has_input and not self._has_all:
            self._take(ready)
        if self._has_all:
            self._put_ends()

    def _wait(self) -> dict[int, int]:
        poller = select.poll()
        for lane in self._lanes:
            if lane.unsent or (self._has_input and not self._has_all):
                poller.register(lane.fd, select.POLLOUT)
        is_free = any(not lane.unsent for lane in self._lanes)
        if is_free and not (self._has_input or self._has_all):
            poller.register(self._far.fileno(), select.POLLIN)
        return dict(poller.poll())

    def _take(self, ready: dict[int, int]) -> None:
        """Take a chunk, and give it to a connection that can send it."""
        turns = self._lanes[self._first :] + self._lanes[: self._first]
        lane = next((lane for lane in turns if not lane.unsent and lane.fd in ready), None)
        if lane is None:
            return
        self._has_input, self.is_busy = False, True  # busy before it is taken, so that it is seen all the time
        try:
            nbytes = self._far.recv_into(lane.room)
        except BlockingIOError:
            self._note_busy()
            return
        except ConnectionResetError:  # whoever closed `near` has left something unread
            nbytes = 0
        if not nbytes:
            self._has_all = True
            return
        lane.put(self._count, nbytes)
        self._count += 1
        self._first = (self._lanes.index(lane) + 1) % len(self._lanes)
        self._send(lane)

    def _send(self, lane: stripes.SendingLane) -> None:
        try:
            self._handed_over += lane.send()
        except OSError:
            if not lane.has_ended:
                raise
            lane.unsent = memoryview(b"")  # the peer has gone, with all it wants
        self._note_busy()

    def _note_busy(self) -> None:
        self.is_busy = any(lane.unsent for lane in self._lanes)

    def _put_ends(self) -> None:
        """Put the end on each connection that has sent what it had, and see whether all have."""
        for lane in self._lanes:
            if not (lane.unsent or lane.has_ended):
                lane.put_end(self._count)
                self._send(lane)
        if all(lane.has_ended and not lane.unsent for lane in self._lanes):
            self._note_busy()
            self._has_sent_all = True


def _queued(lane: stripes.SendingLane) -> int:
    with contextlib.suppress(OSError):
        return buffers.unsent_nbytes(lane.fd)
    return 0
