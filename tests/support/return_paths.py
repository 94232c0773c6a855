# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection of an outgoing migration without the migration, and a target that says what a test wants."""

from __future__ import annotations

import contextlib
import socket
import struct
import types
from collections.abc import Iterator
from typing import Any

from blkmig.migration import connection

NO_BLOCKS: Any = types.SimpleNamespace(blk_mig=types.SimpleNamespace(last_sent=None))
"""Handlers that have sent nothing yet."""

SHUT, PONG, RESUME_ACK = 1, 2, 6


def message(kind: int, value: int) -> bytes:
    """Return what a target says on the return path."""
    return struct.pack(">HHI", kind, 4, value)


@contextlib.contextmanager
def linked(**options: Any) -> Iterator[tuple[connection.Connection, socket.socket]]:
    """Yield a connection whose return path is open, and the target's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = connection.Connection(f"fd:{ours.fileno()}", NO_BLOCKS, **options)
        link.connect(timeout=5)
        assert link.open_return_path()
        try:
            yield link, theirs
        finally:
            link.abort()
