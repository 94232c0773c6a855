# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks of 1 MiB, page cache: read and scanned, mapped, stored, and over a socket, against os, socket and numpy."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading

import numpy as np
import pytest

from blkmig import _core
from blkmig.channel import buffers

MiB = 1 << 20


@pytest.fixture(scope="module")
def files(bench_dir, request):
    """Return (source, target, blocks): two files of random data in the page cache."""
    blocks = 8 if request.config.option.quick else 64
    fds = []
    for name in ("source", "target"):
        path = bench_dir / f"io-{name}"
        path.write_bytes(np.random.default_rng(1).bytes(blocks * MiB))
        fds.append(os.open(path, os.O_RDWR))
    yield (*fds, blocks)
    for fd in fds:
        os.close(fd)


def test_fill(ratio, files):
    """Read a block and know whether it is zero."""
    source, _, blocks = files
    blk, mapping = _core.BlockBuffer(), _core.Mapping(source, blocks * MiB)
    page = mmap.mmap(-1, MiB)
    words = np.frombuffer(page, np.uint64)

    def fill():
        for i in range(blocks):
            assert not blk.fill(source, i * MiB, MiB)

    def mapped():
        for i in range(blocks):
            assert not blk.fill_mapped(mapping, source, i * MiB, MiB)

    def plain():
        for i in range(blocks):
            assert os.preadv(source, [page], i * MiB) == MiB
            assert np.max(words)

    def limit():
        for i in range(blocks):
            os.preadv(source, [page], i * MiB)

    sides = {"fill": fill, "fill_mapped": mapped, "preadv + numpy": plain, "preadv": limit}
    ratio(sides, group="read and scan 1 MiB")


def test_fill_zeros(ratio, bench_dir, files):
    """Allocated zeros: all of it has to be read and scanned."""
    blocks = files[2]
    path = bench_dir / "io-zeros"
    path.write_bytes(bytes(blocks * MiB))
    blk, page = _core.BlockBuffer(), mmap.mmap(-1, MiB)
    words = np.frombuffer(page, np.uint64)
    with contextlib.closing(os.fdopen(os.open(path, os.O_RDONLY), "rb")) as file:
        fd = file.fileno()

        def fill():
            for i in range(blocks):
                assert blk.fill(fd, i * MiB, MiB)

        def plain():
            for i in range(blocks):
                os.preadv(fd, [page], i * MiB)
                assert not np.max(words)

        def limit():
            for i in range(blocks):
                os.preadv(fd, [page], i * MiB)

        ratio({"fill": fill, "preadv + numpy": plain, "preadv": limit}, group="read and scan 1 MiB of zeros")


def test_store(ratio, files):
    source, target, blocks = files
    blk = _core.BlockBuffer()
    blk.fill(source, 0, MiB)
    data = blk.data

    def store():
        for i in range(blocks):
            blk.store(target, i * MiB, MiB)

    def sparse():
        for i in range(blocks):
            blk.store_sparse(target, i * MiB, MiB, 65536, False)

    def limit():
        for i in range(blocks):
            os.pwrite(target, data, i * MiB)

    ratio({"store": store, "store_sparse": sparse, "os.pwrite": limit}, group="store 1 MiB")


def tcp():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def pump(send, receive, link):
    """Run `send` beside `receive` until both are done."""
    a, b = link()
    with a, b:
        thread = threading.Thread(target=send, args=(a,))
        thread.start()
        receive(b)
        thread.join()


def unix():
    pair = socket.socketpair()
    for each in pair:  # with the default of 208 KiB both sides do little but take turns
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MiB)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * MiB)
    return pair


@pytest.mark.parametrize(("link", "name"), [(tcp, "TCP"), (unix, "unix socket")])
def test_link(ratio, files, link, name):
    """Blocks with their headers through a socket, the sender and the receiver in threads."""
    source, _, blocks = files
    blocks *= 4
    blk, received, page, target = _core.BlockBuffer(), _core.BlockBuffer(), mmap.mmap(-1, MiB), mmap.mmap(-1, MiB)
    blk.fill(source, 0, MiB)
    page[:] = bytes(blk.data)
    header = memoryview(bytes(15))

    def put(sock):
        out = buffers.open_output(sock.fileno())
        for i in range(blocks):
            out.put_block(2048 * i, 1, b"drive0", blk)

    def get(sock):
        source = buffers.open_input(sock.fileno(), is_tcp=link is tcp)
        for i in range(blocks):
            assert source.next_run() == (1, b"drive0", 2048 * i, 1)
            source.get_block(received)

    def send(sock):
        for _ in range(blocks):
            sock.sendall(header)
            sock.sendall(page)

    def receive(sock):
        word, view = bytearray(15), memoryview(target)
        for _ in range(blocks):
            for buffer in (memoryview(word), view):
                got = 0
                while got < len(buffer):
                    got += sock.recv_into(buffer[got:])

    ratio(
        {"blkmig": lambda: pump(put, get, link), "sendall, recv_into": lambda: pump(send, receive, link)},
        group=f"blocks of 1 MiB, {name}",
    )
