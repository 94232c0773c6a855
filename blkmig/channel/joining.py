# SPDX-License-Identifier: GPL-2.0-or-later
"""The mover that puts a stream together that comes over several connections: see `stripes`."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence

from . import link, mover, stripes

GONE_SECONDS = 1.0
"""How long the next chunk may take to come on one connection when another one is not there any more: the peer has sent
everything and closed it, or this process has a newer link, or it broke."""


class Joiner(mover.Mover):
    """Puts what comes from `transports` into `far`, in its order."""

    def __init__(self, far: socket.socket, transports: Sequence[link.Transport]) -> None:
        super().__init__(far)
        self._lanes = [stripes.ReceivingLane(transport) for transport in transports]
        # The mover's own.
        self._number = 0  # of the next chunk
        self._is_deaf = False  # nobody reads `near`
        self._current: stripes.ReceivingLane | None = None
        self._gone: set[int] = set()  # connections that nothing more can come to, while a chunk of theirs waits
        self.start("blkmig-join")

    def reset(self) -> None:
        """Break all connections at once. Never raises."""
        for lane in self._lanes:
            lane.transport.reset()

    def has_left(self) -> bool:
        """Return True: nothing is sent."""
        return True

    def _progress(self) -> int:
        return 0

    def _run(self) -> None:
        try:
            for lane in self._lanes:
                self._fill(lane)
            self._deliver()
            while not (self.is_cut or self._is_deaf or self._is_whole()):
                self._step()
        except OSError as error:
            self.broken = stripes.explained([lane.transport for lane in self._lanes], error)
        except Exception as error:  # without memory, for one: whoever waits must hear of it
            self.broken = OSError(errno.ECONNABORTED, f"the stream could not be joined: {error!r}")
        finally:
            self._end()

    def _fill(self, lane: stripes.ReceivingLane) -> None:
        """Take what has come of a chunk. Over TLS, some may have come although its socket has nothing to say."""
        self.is_cut = not lane.fill() or self.is_cut

    def _is_whole(self) -> bool:
        return all(lane.has_ended for lane in self._lanes) and all(lane.number == self._number for lane in self._lanes)

    def _step(self) -> None:
        """Wait until something can be done, and do it."""
        ready = self._wait()
        if ready.get(self._far.fileno(), 0) & (select.POLLHUP | select.POLLERR):
            self._is_deaf = True
            return
        for lane in self._lanes:
            if lane.fd in ready and not lane.has_ended:
                if lane.is_read:
                    self._fill(lane)
                else:
                    self._gone.add(lane.fd)
        self._deliver()

    def _wait(self) -> dict[int, int]:
        poller = select.poll()
        for lane in self._lanes:
            if lane.is_read or not (lane.has_ended or lane.fd in self._gone):
                poller.register(lane.fd, select.POLLIN if lane.is_read else 0)
        is_delivering = self._current is not None
        poller.register(self._far.fileno(), select.POLLOUT if is_delivering else 0)
        ready = poller.poll(GONE_SECONDS * 1000 if self._gone and not is_delivering else None)
        if not ready:
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return dict(ready)

    def _deliver(self) -> None:
        """Hand on what is next, as far as whoever reads takes it."""
        while lane := self._current or stripes.next_of(self._lanes, self._number):
            self._current = lane
            try:
                lane.chunk = lane.chunk[self._far.send(lane.chunk) :]
            except BlockingIOError:
                return
            except OSError:  # nobody reads it any more
                self._is_deaf = True
                return
            if not lane.chunk:
                self._current = None
                self._number += 1
                lane.delivered()
                if lane.transport.unseal is not None:
                    self._fill(lane)
