# SPDX-License-Identifier: GPL-2.0-or-later
"""Behind a long payload a TCP reader gives the next one a moment; behind a short one it is woken by the first byte."""

from __future__ import annotations

import platform
import socket
import threading
from pathlib import Path

import pauses
import pytest

from blkmig import _input
from blkmig.channel import buffers

LINGER_NBYTES = 1 << 16
POLL, PPOLL = "7", "271"  # the first one waits for whatever comes, the other one lingers


def system_call(thread: threading.Thread) -> str:
    """Return the number of the system call that a thread is in; "running" or the like if it is in none."""
    return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86-64")
@pytest.mark.parametrize(("nbytes", "call"), [(1, POLL), (LINGER_NBYTES - 1, POLL), (LINGER_NBYTES, PPOLL)])
def test_what_comes_behind_a_payload(nbytes: int, call: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        stream = _input.InputBuffer(
            receiver.fileno(), 4096, most_lowat=1 << 20, linger_nbytes=LINGER_NBYTES, linger_seconds=0.999
        )
        sender.sendall(bytes(nbytes))
        pauses.until(lambda: buffers.unread_nbytes(receiver.fileno()) == nbytes)
        got: list[object] = []
        reader = threading.Thread(target=lambda: got.extend([stream.get_buffer(nbytes), stream.get_be64()]))
        reader.start()
        pauses.until(lambda: system_call(reader) in (POLL, PPOLL))
        assert system_call(reader) == call
        sender.sendall(b"the next" + bytes(LINGER_NBYTES))
        reader.join()
        assert got[1] == int.from_bytes(b"the next", "big")
