# SPDX-License-Identifier: GPL-2.0-or-later
"""The sending direction of a QEMUFile: numbers, buffers and blocks are put, and wait for the rate limit.

The bytes are moved by ``_output.OutputBuffer``; what is here is policy, and while there is none to apply, a put costs
two tests of a flag. All puts may block, and drop the GIL while they do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from typing import TYPE_CHECKING

from .. import _core, errors
from . import base, hugepages, pacing, sockets

if TYPE_CHECKING:
    from typing_extensions import Buffer

COMMAND_PATIENCE = 10
"""How many idle time-outs a command may take to end after its input has ended: nobody can see what it does then."""

LEFT_POLL_SECONDS = 0.001, 0.02
"""Seconds between two looks whether the last bytes have left, at first and later on: no event tells that."""


class SendingFile(pacing.PacedFile):
    """The puts of an OutputQEMUFile, and the end of what it sends."""

    doing = "sending"
    side = socket.SHUT_WR

    @property
    def position(self) -> int:
        """Return the bytes put so far."""
        return self._before + self._buffer.position

    @property
    def transferred(self) -> int:
        """Return the bytes that the kernel took so far; at most 64 KiB less than `position` between calls."""
        return self._flushed_before + self._buffer.flushed

    @base.transfer
    def put_byte(self, value: int) -> None:
        """Put an 8-bit number."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_byte(value)

    @base.transfer
    def put_be16(self, value: int) -> None:
        """Put a 16-bit number, big-endian."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_be16(value)

    @base.transfer
    def put_be32(self, value: int) -> None:
        """Put a 32-bit number, big-endian."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_be32(value)

    @base.transfer
    def put_be64(self, value: int) -> None:
        """Put a 64-bit number, big-endian."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_be64(value)

    @base.transfer
    def put_buffer(self, buffer: Buffer) -> None:
        """Put the bytes of any contiguous buffer."""
        if self._link.careful:
            self._put_buffer_slowly(buffer)
        else:
            self._buffer.put_buffer(buffer)

    @base.transfer
    def put_block_header(self, sector: int, flags: int, name: bytes) -> None:
        """Put the word and the name of a device record."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_block_header(sector, flags, name)

    @base.transfer
    def put_zero_records(self, sector: int, count: int, name: bytes) -> None:
        """Put `count` zero-block records, at `sector` and every 2048 sectors on; they leave with what follows."""
        if self._link.careful:
            sector, count = self._put_zero_records_slowly(sector, count, name)
        self._buffer.put_zero_records(sector, count, name)

    def put_block(self, sector: int, flags: int, name: bytes, blk: _core.BlockBuffer) -> None:
        """Put a device record and its payload of 1 MiB; a flag of a zero block leaves the payload out.

        A payload that is copied leaves in one system call, if the kernel takes all of it at once.
        """
        try:
            if self._link.careful:
                self._put_block_slowly(sector, flags, name, blk)
            else:
                self._buffer.put_block(sector, flags, name, blk)
        except BaseException as error:
            self._fail(error)
            raise

    def put_pack(self, flags: int, name: bytes, extents: list[tuple[int, int]], blk: _core.BlockBuffer) -> None:
        """Put a pack: its head, and the bytes of its extents, which stand in `blk` one behind the other."""
        try:
            if self._link.careful:
                self._put_pack_slowly(flags, name, extents, blk)
            else:
                self._buffer.put_pack(flags, name, extents, blk)
        except BaseException as error:
            self._fail(error)
            raise

    @base.transfer
    def put_pack_header(self, flags: int, name: bytes, extents: list[tuple[int, int]]) -> None:
        """Put a pack's head, behind which the caller puts the payload."""
        if self._link.careful:
            self._before_put()
        self._buffer.put_pack_header(flags, name, extents)

    def put_file_blocks(
        self,
        mapping: _core.Mapping,
        block: int,
        count: int,
        name: bytes,
        blk: _core.BlockBuffer,
        dirty: _core.Bitmap,
        bits_per_block: int,
        seconds: float,
    ) -> int:
        """Put up to `count` whole blocks of a file from `block` on; return how many, 0 while a rate limit is set.

        It ends early after `seconds`, and at a block that is zero or unreadable: see ``_output.OutputBuffer``.
        """
        try:
            if self._link.careful and self._before_put():
                return 0
            return self._buffer.put_file_blocks(mapping, block, count, name, blk, dirty, bits_per_block, seconds)
        except BaseException as error:
            self._fail(error)
            raise

    @base.transfer
    def flush(self) -> None:
        """Hand everything that is staged to the kernel."""
        self._buffer.flush()

    @base.transfer
    def wait_until_taken(self) -> None:
        """Wait until the peer's machine has everything that was put into a socket; ChannelError if it broke before.

        For the last word of a stream: a peer that has reset the link while it was under way has not heard it.
        """
        self._buffer.flush()
        delay, waited = LEFT_POLL_SECONDS[0], 0.0
        while not self._transport.has_left():
            if 0 < self._idle_timeout < waited:
                raise OSError(errno.ETIME, os.strerror(errno.ETIME))
            self._link.wait(delay)
            waited += delay
            delay = min(2 * delay, LEFT_POLL_SECONDS[1])

    def set_idle_timeout(self, seconds: float) -> None:
        """Let the peer take no less than 4 KiB in `seconds` of waiting for it, else ChannelTimeout; 0 is for ever.

        Only waiting counts, not what the caller does between two puts. On a TCP link that goes down, the system gives
        up after two minutes, or `seconds` if that is longer.
        """
        self._idle_timeout = seconds
        self._buffer.set_idle_timeout(seconds)
        for sock in self._transport.peer_sockets:
            sockets.set_user_timeout(sock, seconds)

    def limit_queue(self, *, is_longer: bool = False) -> None:
        """Have so little wait in the socket from now on, for what is put last to be soon there; see `sockets`."""
        for sock in self._transport.peer_sockets:
            sockets.limit_queue(sock, sockets.LONGER_QUEUE if is_longer else sockets.SHORT_QUEUE)

    def _idle_words(self) -> str:
        return f"the other end took nothing for {self._idle_timeout:g} s (--idle-timeout)"

    def is_writable(self) -> bool:
        """Return whether the kernel takes a few bytes now."""
        self._check()
        return self._link.wait(0, self._transport.fd, select.POLLOUT)

    @property
    def is_local(self) -> bool:
        """Return whether the other end is on this machine, as far as one can see: a command may lead anywhere."""
        return self._transport.is_local()

    def round_trip(self) -> float | None:
        """Return the shortest round trip of the link so far, in seconds; None within a machine, and if unknown."""
        return None if self.is_local else sockets.round_trip(self._transport.peer_sockets[0])

    @property
    def is_sealed(self) -> bool:
        """Return whether a bit that changes on the way breaks the link, as with TLS."""
        return self._transport.is_sealed

    def share_pages(self) -> bool:
        """Let the channel take a file's pages themselves from now on, not copies; returns whether it does.

        Until the peer has taken them, such pages show what is written to the file, so a channel without a way back
        refuses. What else must hold is decided, and said, in `passage`: ask there, and not here.
        """
        return self.is_answered and self.takes_pages and self._buffer.share_pages()

    @property
    def keeps_pages(self) -> bool:
        """Return whether pages may be given to it for good: it is a pipe, and new pages cost less than copies do."""
        return self._buffer.keeps_pages and hugepages.are_had()

    @property
    def takes_pages(self) -> bool:
        """Return whether a file's pages may stand in it instead of copies: in a socket or pipe that does not block.

        Not under TLS, which encrypts them into memory of its own.
        """
        return self._transport.takes_pages and self._buffer.takes_pages

    @property
    def is_answered(self) -> bool:
        """Return whether the way back was opened, on which the peer says that it has everything."""
        return False

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, tell the peer or the disk that this is the end, and wait for an exec: command to finish.

        A file of a file: address is on stable storage then. After an error the file is closed nevertheless. Raises the
        file's first error, if there was one, Cancelled, and ChannelError if the command has failed.
        """
        if self._is_closed:
            return
        try:
            self.flush()
            self._finish_sending()
            self._close_transport()
            self._wait_for_the_end()
        except BaseException:
            self.abort()
            raise
        super().abort()  # this direction alone: the return path outlives it

    @property
    def leads_to_command(self) -> bool:
        """Return whether a command of ours is at the other end."""
        return self._transport.child is not None

    def finish(self) -> None:
        """Flush, and tell the peer that this is the end; `close` is still to come."""
        self.flush()
        self._finish_sending()

    def abort(self) -> None:
        """Drop this direction and what is still on its way, so that the peer sees no end of the stream; never raises.

        A first direction resets the link, and only then returns: its caller may let writers go on, whose bytes must
        not reach a peer that takes what it has for complete. Twice does no harm.
        """
        if not self._is_closed and not self._transport.is_answer:
            self._transport.reset()
        super().abort()

    def _wait_for_the_end(self) -> None:
        """Wait for a command, which knows that its input has ended, to end."""
        patience = self._idle_timeout * COMMAND_PATIENCE or None
        self._wait_for_command(patience)
        if self._transport.child is not None and self._transport.child.returncode is None:
            why = f"the command has all its input, and has not ended for {patience:g} s (10 times --idle-timeout)"
            raise errors.ChannelTimeout("closing", uri=self.uri, cause=why)

    @base.transfer
    def _say_goodbye(self) -> None:
        with contextlib.suppress(ConnectionError):  # a peer that has all it wants may have gone
            self._transport.say_goodbye(self._idle_timeout)

    def _finish_sending(self) -> None:
        self._say_goodbye()
        try:
            self._transport.finish_sending()
        except OSError as error:
            kind = errors.LocalFileError if self._transport.local_file else errors.ChannelError
            raise kind("bringing the stream to the disk", uri=self.uri, cause=error) from error

    def _where(self) -> str:
        return f"{self.doing} at byte {self.transferred}"
