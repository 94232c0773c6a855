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


def fail_to_answer(f: channel.OutputQEMUFile, peer: channel.InputQEMUFile) -> None:
    """Have `peer` fail to answer, because its answers are not taken, and see that both ends hear of that at once."""
    back, answers = f.return_path(), peer.return_path()
    assert back is not None
    assert answers is not None
    f.put_be32(7)
    f.flush()
    answers.set_idle_timeout(0.05)
    for end in (peer, back):
        end.set_idle_timeout(TIMEOUT, first=TIMEOUT)
    with pytest.raises(errors.ChannelTimeout, match="took nothing"):
        answers.put_buffer(bytes(64 << 20))
    assert peer.get_be32() == 7, "what has come is lost"
    with pytest.raises(errors.ChannelError, match="could not be answered: the other end took nothing"):
        peer.get_byte()
    with contextlib.suppress(errors.ChannelError):  # over TLS it is cut off
        while back.get_some(1 << 16):
            pass
