# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a pipe, of a unix socket or of a TCP connection, as descriptors."""

from __future__ import annotations

import os
import socket


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def open_pair(kind: str) -> tuple[int, int]:
    """Return (reading, writing) fds; the writing one does not block."""
    if kind == "pipe":
        readable, writable = os.pipe()
    else:
        one, other = socket.socketpair() if kind == "unix" else tcp_pair()
        readable, writable = one.detach(), other.detach()
    os.set_blocking(writable, False)
    return readable, writable
