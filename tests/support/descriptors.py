# SPDX-License-Identifier: GPL-2.0-or-later
"""Which descriptors this process has open, and that a piece of work gives back those that it opens."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from blkmig.channel import sockets


def open_descriptors() -> set[int]:
    """Return the descriptors of this process, but for the one that looks."""
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@contextlib.contextmanager
def given_back() -> Iterator[set[int]]:
    """Yield the open descriptors, and fail unless the same ones are open after the ``with``.

    What earlier tests left to the garbage collector, say by an exception in a cycle with the frame that caught it, goes
    first: else a collection inside of the ``with`` closes it there.
    """
    gc.collect()
    before = open_descriptors()
    yield before
    for thread in threading.enumerate():
        if thread.name == "blkmig-close":
            thread.join()
    after = open_descriptors()
    assert after == before, {fd: what_is(fd) for fd in after ^ before}


def what_is(fd: int) -> str:
    """Return what is open at a descriptor, for messages."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - what is no path stays as it is
    except OSError:
        return "closed"


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process `count` descriptors for a ``with``."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers: list[int] = []
    lowest = os.dup(0)
    os.close(lowest)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - numbers
    with contextlib.suppress(OSError):
        while lowest + len(numbers) <= highest:
            numbers.append(os.dup(0))  # fill the gaps
    top = max([lowest, *numbers])
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in numbers:
            os.close(number)


def descriptor_to(uri: str) -> int:
    """Return a descriptor of this process: a connected socket whose other end is at `uri`, as a channel calls it."""
    for fd in sorted(open_descriptors()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if uri == sockets.peer_uri(sock, f"unix:{sock.getpeername()}"):
                return fd
    raise AssertionError(f"nothing here is connected to {uri}")


def socket_to(uri: str) -> socket.socket:
    """Return that socket, with a descriptor of its own."""
    return socket.socket(fileno=os.dup(descriptor_to(uri)))
