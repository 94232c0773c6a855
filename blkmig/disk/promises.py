# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk of another package answers, looked at where it enters.

Nobody else would notice. A short read, or a block of which nobody said that it was filled, would be sent as zeros, and
the digests would say the same. An extent behind which the next question asks again never ends.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any

from .. import _core, errors, units
from .extents import Extents

Verb = Callable[..., Any]


def read_block(function: Verb) -> Verb:
    """Have a disk's `read_block` fail where it gives fewer bytes than the disk has there."""

    @functools.wraps(function)
    def call(self: Any, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        blk.expect()
        function(self, blk, offset, nbytes)
        _check_given(self, blk, offset, nbytes, max(0, min(nbytes, self.size - offset)))
        return blk.is_zero

    return call


def read_extents(function: Verb) -> Verb:
    """Have a disk's `read_extents` fail where it has not said that the block holds them."""

    @functools.wraps(function)
    def call(self: Any, blk: _core.BlockBuffer, extents: Extents) -> None:
        blk.expect()
        function(self, blk, extents)
        total = sum(nbytes for _, nbytes in extents)
        _check_given(self, blk, extents[0][0], total, total)

    return call


def next_data(function: Verb) -> Verb:
    """Have a disk's `next_data` answer an extent at or behind the place that it was asked for, or None."""

    @functools.wraps(function)
    def call(self: Any, offset: int) -> tuple[int, int] | None:
        return _extent(self, function(self, offset), offset)

    return call


def next_allocated(function: Verb) -> Verb:
    """Have a disk's `next_allocated` do the same."""

    @functools.wraps(function)
    def call(self: Any, offset: int, nbytes: int) -> tuple[int, int] | None:
        return _extent(self, function(self, offset, nbytes), offset)

    return call


def _whole(function: Verb, nbytes_of: Callable[..., int], doing: str) -> Verb:
    @functools.wraps(function)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        answer = function(self, *args, **named)
        done = units.whole(answer)
        if done is not None and not named and done != (wanted := nbytes_of(*args)):
            raise OSError(errno.EIO, f"{done} of {wanted} bytes were {doing}, and that is no error to its class")
        return answer

    return call


def write_block(function: Verb) -> Verb:
    """Have a disk's `write_block` fail where it returns another number of bytes than it was to write, as a short
    ``os.pwrite`` does on a full disk."""
    return _whole(function, lambda blk, offset, nbytes: nbytes, "written")


def pwrite(function: Verb) -> Verb:
    """Have a local disk's `_pwrite` do the same."""
    return _whole(function, lambda view, offset: view.nbytes, "written")


def pread_into(function: Verb) -> Verb:
    """Have a local disk's `_pread_into` fail where it returns another number of bytes than it was to read."""
    return _whole(function, lambda view, offset: view.nbytes, "read")


CHECKS: dict[str, Callable[[Verb], Verb]] = {
    "read_block": read_block,
    "read_extents": read_extents,
    "next_data": next_data,
    "next_allocated": next_allocated,
    "write_block": write_block,
    "_pwrite": pwrite,
    "_pread_into": pread_into,
}
"""The verbs whose answers are looked at, each with what makes it one that is."""


def _check_given(disk: Any, blk: _core.BlockBuffer, offset: int, nbytes: int, wanted: int) -> None:
    given = blk.given
    if given < wanted:
        said = "nobody said how many bytes there are: call blk.filled()" if given < 0 else f"{given} of {wanted} came"
        cause = f"a read that is short is an error; {said}"
        raise errors.DeviceError("cannot read", device=disk.name, cause=cause, offset=offset, nbytes=nbytes)


def _extent(disk: Any, answer: Any, offset: int) -> tuple[int, int] | None:
    """Return the part of an extent at or behind `offset`."""
    if answer is None:
        return None
    if isinstance(answer, tuple | list) and len(answer) == 2:
        start, end = units.whole(answer[0]), units.whole(answer[1])
        if start is not None and end is not None and end > max(start, offset):
            return max(start, offset), end
    cause = f"its class answers {answer!r}, where (start, end) of an extent at or behind {offset} must be, or None"
    raise errors.DeviceError("cannot look for data", device=disk.name, cause=cause, offset=offset)
