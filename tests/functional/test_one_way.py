# SPDX-License-Identifier: GPL-2.0-or-later
"""A1: on a channel without an answer, "done" means that what the channel holds does not change any more."""

from __future__ import annotations

import concurrent.futures
import os
import socket
from pathlib import Path

import fd_pairs
import pytest

import blkmig
from blkmig import _core, channel

MIB = 1 << 20
HELD_BACK = 256 << 10
"""What the reader leaves in the channel until the source was written: every channel holds as much."""

TIMEOUT = 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "d.raw"
    path.write_bytes(b"old!" * (3 * MIB // 4))
    return path


def received(stream: bytes, tmp_path: Path) -> bytes:
    """Return what a receiver makes of `stream`."""
    (tmp_path / "stream").write_bytes(stream)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "copy.raw"})
    return (tmp_path / "copy.raw").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp"])
def test_what_is_written_after_the_end_is_not_in_the_copy(kind: str, source: Path, tmp_path: Path) -> None:
    readable, writable = fd_pairs.open_pair(kind)
    want = 3 * MIB - HELD_BACK
    stream = bytearray()
    with concurrent.futures.ThreadPoolExecutor() as pool, os.fdopen(readable, "rb", buffering=0) as reader:
        sent = pool.submit(blkmig.send, [source], f"fd:{writable}", return_path=False)
        while len(stream) < want:
            stream += reader.read(want - len(stream))
        sent.result(TIMEOUT)  # the rest is in the channel, and the sender is done
        os.close(writable)
        before = source.read_bytes()
        with source.open("r+b") as writer:
            writer.write(b"NEW!" * (3 * MIB // 4))
        stream += reader.read() if kind == "pipe" else b"".join(iter(lambda: reader.read(MIB), b""))
    assert received(bytes(stream), tmp_path) == before


@pytest.mark.parametrize("asked", [False, True])
def test_pages_are_lent_only_where_a_word_comes_back(asked: bool) -> None:
    """A socket goes both ways, but somebody must listen for the word."""
    ours, theirs = socket.socketpair()
    with ours, theirs, channel.connect(f"fd:{ours.fileno()}", timeout=TIMEOUT) as f:
        os.set_blocking(f._transport.fd, False)  # as those that connect() makes
        f._buffer = _core.OutputBuffer(f._transport.fd)
        if asked:
            assert f.return_path() is not None
        assert f.share_pages() is asked
        f.abort()
