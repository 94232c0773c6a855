# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to break."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import descriptors
import pytest

from blkmig import _core, channel, errors

TIMEOUT = 20


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[channel.OutputQEMUFile, channel.InputQEMUFile]]:
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        yield f, peer
        f.abort()


def reset(peer: channel.InputQEMUFile) -> None:
    """Close as a crashing machine does."""
    with descriptors.socket_to(peer.uri) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.abort()


def put_until_error(f: channel.OutputQEMUFile) -> errors.ChannelError:
    blk = _core.BlockBuffer()
    for _ in range(100):
        try:
            f.put_block(0, 1, b"x", blk)
        except errors.ChannelError as error:
            return error
    pytest.fail("the peer is gone and nothing was said")
