# SPDX-License-Identifier: GPL-2.0-or-later
"""A1: on a channel without an answer, "done" means that what the channel holds does not change any more."""

from __future__ import annotations

import concurrent.futures
import contextlib
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


def test_a_reader_that_hands_the_pages_on(source: Path, tmp_path: Path) -> None:
    """A receiver that takes pages gets the stream's end after the source has changed."""
    readable, writable = os.pipe()
    held, handed = os.pipe()
    before, copy = source.read_bytes(), tmp_path / "copy.raw"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        receiving = pool.submit(blkmig.receive, f"fd:{held}", {"d": copy})
        sending = pool.submit(blkmig.send, [source], f"fd:{writable}", return_path=False)
        left = 3 * MIB - HELD_BACK
        while left:
            left -= os.splice(readable, handed, left)
        sending.result(TIMEOUT)
        os.close(writable)
        with source.open("r+b") as writer:
            writer.write(b"NEW!" * (3 * MIB // 4))
        while os.splice(readable, handed, MIB):
            pass
        os.close(handed)
        receiving.result(TIMEOUT)
    os.close(readable)
    os.close(held)
    assert copy.read_bytes() == before


def test_what_stands_in_a_pipe_is_taken_as_pages() -> None:
    """Whoever has written it: not a byte of a payload is copied before it is stored."""
    readable, writable = os.pipe()
    payload = bytes(range(256)) * (MIB // 256)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, readable)
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        out = stack.enter_context(channel.connect(f"fd:{writable}", timeout=TIMEOUT))
        os.close(writable)
        f = stack.enter_context(channel.listen(f"fd:{readable}").accept(timeout=TIMEOUT))
        out.put_byte(7)
        out.flush()
        assert f.get_byte() == 7
        put, blk = _core.BlockBuffer(), _core.BlockBuffer("piped")
        memoryview(put).cast("B")[:] = payload
        put.filled(MIB)
        sent = pool.submit(lambda: [out.put_block(block * 2048, 1, b"d", put) or out.flush() for block in range(2)])
        have = [(f.next_run(), f.get_block(blk), blk.has_pages, bytes(blk.payload)) for _ in range(2)]
        sent.result(TIMEOUT)
    assert [run for run, *_ in have] == [(1, b"d", 0, 1), (1, b"d", 2048, 1)]
    assert [pages for _, _, pages, _ in have] == [False, True]  # part of the first was read with what stood before it
    assert all(payload == got for *_, got in have)


@pytest.mark.parametrize("asked", [False, True])
def test_pages_are_lent_only_where_a_word_comes_back(asked: bool) -> None:
    """A socket goes both ways, but somebody must listen for the word."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # as those that connect() makes
    with ours, theirs, channel.connect(f"fd:{ours.fileno()}", timeout=TIMEOUT) as f:
        if asked:
            assert f.return_path() is not None
        assert f.share_pages() is asked
        f.abort()
