# SPDX-License-Identifier: GPL-2.0-or-later
"""A receiver that listens in a thread, and plain connections to one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import blkmig


def connected(uri: str) -> socket.socket:
    scheme, _, rest = uri.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(rest)
        return sock
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host, int(port)))


@contextlib.contextmanager
def receiving(uri: str, target: Path) -> Iterator[tuple[str, concurrent.futures.Future[object]]]:
    """Run a receiver; give its address and its outcome."""
    incoming = blkmig.IncomingMigration(uri, {"d": target})
    with incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(incoming.run)
        try:
            yield incoming.uri, running
        finally:
            incoming.cancel()
