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

SHUT, PONG, RESUME_ACK, READY = 1, 2, 6, 0x8003


def no_blocks(section: str) -> Any:
    """Return handlers that have sent nothing yet."""
    return types.SimpleNamespace(state_if_set_up=lambda: None, format=section)


def message(kind: int, value: int) -> bytes:
    """Return what a target says on the return path."""
    return struct.pack(">HHI", kind, 4, value)


@contextlib.contextmanager
def linked(section: str = "block", **options: Any) -> Iterator[tuple[connection.Connection, socket.socket]]:
    """Yield a connection whose return path is open, and the target's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = connection.Connection(f"fd:{ours.fileno()}", no_blocks(section), **options)
        link.connect(timeout=5)
        assert link.open_return_path()
        try:
            yield link, theirs
        finally:
            link.abort()
