# SPDX-License-Identifier: GPL-2.0-or-later
"""One of each item that a stream knows, written and checked, and the threads and listeners for it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import socket
from collections.abc import Callable, Iterator

import pytest

from blkmig import _core, channel

NAME = b"drive0"
TIMEOUT = 20


def block_of(seed: int) -> _core.BlockBuffer:
    blk = _core.BlockBuffer()
    blk.data[:] = bytes((seed + i) % 251 for i in range(256)) * 4096
    blk.filled(_core.BLOCK_SIZE)
    return blk


BLOCKS = [block_of(seed) for seed in range(3)]


def put_everything(f: channel.OutputQEMUFile) -> int:
    """Put one of each item; returns the bytes of it."""
    f.put_byte(0x12)
    f.put_be16(0x3456)
    f.put_be32(0x789ABCDE)
    f.put_be64(1 << 63 | 5)
    f.put_buffer(b"some bytes")
    f.put_buffer(memoryview(bytes(range(256)) * 1024))
    for index, blk in enumerate(BLOCKS):
        f.put_block(index * 2048, _core.FLAG_DEVICE_BLOCK, NAME, blk)
    f.put_zero_records(3 * 2048, 10_000, NAME)
    f.put_block_header(7, _core.FLAG_DEVICE_BLOCK | _core.FLAG_ZERO_BLOCK, b"other")
    f.put_be64(_core.FLAG_EOS)
    return f.position


def check_everything(f: channel.InputQEMUFile) -> int:
    """Get what put_everything puts; returns the bytes of it."""
    assert f.peek_byte() == 0x12
    assert f.get_byte() == 0x12
    assert f.get_be16() == 0x3456
    assert f.get_be32() == 0x789ABCDE
    assert f.get_be64() == 1 << 63 | 5
    assert f.get_buffer(10) == b"some bytes"
    assert f.get_buffer(1024) == bytes(range(256)) * 4
    f.skip(255 * 1024)
    blk = _core.BlockBuffer()
    for index, sent in enumerate(BLOCKS):
        assert f.next_run() == (_core.FLAG_DEVICE_BLOCK, NAME, index * 2048, 1)
        f.get_block(blk)
        assert blk.data == sent.data
    sector, zeros = 3 * 2048, 0
    while zeros < 10_000:
        flags, name, at, count = f.next_run()
        assert (flags, name, at) == (9, NAME, sector)
        sector, zeros = sector + count * 2048, zeros + count
    assert f.next_run() == (9, b"other", 7, 1)
    assert f.next_run() == (_core.FLAG_EOS, b"", 0, 1)
    return f.position


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[concurrent.futures.Future[object]]:
    """Do `work` in a thread; what it raised is raised when its result is asked for, and at the end."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future
        future.result(TIMEOUT)


def ipv6_or_skip() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


@pytest.fixture(params=["tcp:127.0.0.1:0", "tcp:localhost:0", "tcp::0", "tcp:[::1]:0", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[channel.Listener]:
    if "::1" in request.param:
        ipv6_or_skip()
    uri = f"unix:{tmp_path}/a,b:c" if request.param == "unix" else request.param
    with channel.listen(uri) as made:
        yield made
