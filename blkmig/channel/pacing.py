# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rate limit does to a sender: its puts wait until what has left is paid for, and large ones go in slices.

While there is no limit, a put of `sending` costs two tests of a flag, and nothing of this is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core, _output, errors, units
from . import base, buffers, link, rate

if TYPE_CHECKING:
    from typing_extensions import Buffer

LONGEST_WAIT = 0.1
"""Seconds after which a sender that waits for its rate limit looks whether the limit was changed."""


class PacedFile(base.QEMUFile):
    """A sending direction, as far as it waits for its rate limit."""

    def __init__(self, transport: link.Transport, *, limiter: rate.RateLimiter | None = None) -> None:
        super().__init__(transport)
        self._buffer = _open_buffer(transport)
        self._before = self._flushed_before = 0  # what was put, and had left, before `reroute`
        self._limiter = limiter or rate.RateLimiter()
        # Sending thread only. From where on the bytes are not on the limiter's account yet; None: they are free.
        self._unpaid_from: int | None = None

    def reroute(self, transport: link.Transport) -> None:
        """Have what is put from now on leave by way of `transport`, which has the present one; nothing is staged."""
        self._settle()
        self._unpaid_from = None
        self._before += self._buffer.position
        self._flushed_before += self._buffer.flushed
        self._transport, self._buffer = transport, _open_buffer(transport)
        self._buffer.set_idle_timeout(self._idle_timeout)

    def set_rate_limit(self, bytes_per_second: int) -> None:
        """Let at most so many bytes leave per second from now on, 0: as many as the link takes.

        From any thread. A sender that waits notices within a tenth of a second. Puts wait by themselves, so that the
        stream flows evenly, in slices of 20 ms; exact from 64 KiB/s up.
        """
        limit = units.whole(bytes_per_second)
        if limit is None or limit < 0:
            raise errors.ParameterError(f"a rate limit is 0 or more bytes per second, not {bytes_per_second!r}")
        bytes_per_second = limit
        if bytes_per_second != self._limiter.rate:
            self._limiter.rate = bytes_per_second
            self._link.careful = True

    def rate_limit_exceeded(self) -> bool:
        """Return whether the next put would wait for the rate limit."""
        self._settle()
        return self._limiter.delay() > 0

    @base.transfer
    def wait_rate_limit(self) -> None:
        """Wait until what has left is paid for; what is staged leaves before the wait."""
        self._wait_rate_limit()

    def _wait_rate_limit(self) -> None:
        self._settle()
        if self._limiter.delay() > 0:
            self._buffer.flush()
        while (delay := self._limiter.delay()) > 0:
            self._link.wait(min(delay, LONGEST_WAIT))

    def _settle(self) -> None:
        if self._unpaid_from is not None:
            position = self._buffer.position
            self._limiter.charge(position - self._unpaid_from)
            self._unpaid_from = position

    def _before_put(self) -> bool:
        """Check and wait as the rate limit says; returns whether there is one, so that large items go in slices."""
        self._check()
        if not self._limiter.rate:
            self._unpaid_from = None
            return False
        self._wait_rate_limit()
        self._unpaid_from = self._buffer.position
        return True

    def _put_buffer_slowly(self, buffer: Buffer) -> None:
        if not self._before_put():
            self._buffer.put_buffer(buffer)
            return
        view = memoryview(buffer)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        start = 0
        while self._before_put() and len(view) - start > (nbytes := self._limiter.slice_nbytes()):
            self._buffer.put_buffer(view[start : start + nbytes])
            start += nbytes
        self._buffer.put_buffer(view[start:])

    def _put_zero_records_slowly(self, sector: int, count: int, name: bytes) -> tuple[int, int]:
        """Put all but one slice; returns the sector and the count of what is left."""
        while self._before_put() and count > (step := self._limiter.slice_nbytes() // (9 + len(name)) or 1):
            self._buffer.put_zero_records(sector, step, name)
            sector += step * _core.SECTORS_PER_BLOCK
            count -= step
        return sector, count

    def _put_block_slowly(self, sector: int, flags: int, name: bytes, blk: _core.BlockBuffer) -> None:
        if not self._before_put() or flags & _core.FLAG_ZERO_BLOCK:
            self._buffer.put_block(sector, flags, name, blk)
            return
        self._buffer.put_block_header(sector, flags, name)
        self._put_payload_slowly(blk, _core.BLOCK_SIZE)

    def _put_pack_slowly(
        self, flags: int, name: bytes, extents: list[tuple[int, int]], blk: _core.BlockBuffer
    ) -> None:
        if not self._before_put():
            self._buffer.put_pack(flags, name, extents, blk)
            return
        self._put_payload_slowly(blk, self._buffer.put_pack_header(flags, name, extents))

    def _put_payload_slowly(self, blk: _core.BlockBuffer, total: int) -> None:
        start = 0
        while self._before_put() and total - start > (nbytes := self._limiter.slice_nbytes()):
            self._buffer.put_payload(blk, start, nbytes)
            start += nbytes
        self._buffer.put_payload(blk, start, total - start)


def _open_buffer(transport: link.Transport) -> _output.OutputBuffer:
    return buffers.open_output(transport.fd, wake_fd=transport.link.wake_fd, seal=transport.seal)
