# SPDX-License-Identifier: GPL-2.0-or-later
"""Which descriptors this process has open, and that a piece of work gives back those that it opens."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
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
    assert open_descriptors() == before


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
