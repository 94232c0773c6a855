# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads that pass through the receiver as pages: the bytes are right, whoever looks, and so are the errors."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fd_pairs import open_pair
from page_streams import EOS, Sender, each_block, receiver

from blkmig import _core, _input

MiB = _core.BLOCK_SIZE
CLUSTER = 1 << 16
KINDS = ["pipe", "unix", "tcp"]


@pytest.fixture
def content() -> bytes:
    """Five blocks: noise, noise with zero clusters, noise, zeros at the start of each cluster only, noise."""
    data = bytearray(random.Random(5).randbytes(5 * MiB))
    for first, count in ((0, 1), (5, 6), (15, 1)):
        data[MiB + first * CLUSTER : MiB + (first + count) * CLUSTER] = bytes(count * CLUSTER)
    for cluster in range(16):
        data[3 * MiB + cluster * CLUSTER : 3 * MiB + cluster * CLUSTER + 64] = bytes(64)
    return bytes(data)


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def store(blk: _core.BlockBuffer, target: int, offset: int) -> None:
    assert blk.store_sparse(target, offset, MiB, CLUSTER, True, offset % (2 * MiB) == 0) <= MiB


def write_what_is_seen(blk: _core.BlockBuffer, target: int, offset: int) -> None:
    os.pwrite(target, blk.payload, offset)


def write_plainly(blk: _core.BlockBuffer, target: int, offset: int) -> None:
    blk.store(target, offset, MiB)


@pytest.mark.parametrize("capacity", [512, 65536])
@pytest.mark.parametrize("take", [store, write_what_is_seen, write_plainly])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes(
    source: Path,
    target: int,
    content: bytes,
    kind: str,
    take: Callable[[_core.BlockBuffer, int, int], None],
    capacity: int,
) -> None:
    readable, writable = open_pair(kind)
    order = [random.Random(3).randrange(5) for _ in range(40)] + list(range(5))
    sender = Sender(writable, source, order)
    stream, blk = receiver(readable, capacity)
    assert list(map_blocks(stream, blk, lambda block: take(blk, target, block * MiB))) == order
    sender.join(20)
    os.close(readable)
    assert os.pread(target, len(content) + 1, 0) == content


def map_blocks(stream: _input.InputBuffer, blk: _core.BlockBuffer, do: Callable[[int], None]) -> Iterator[int]:
    for block in each_block(stream, blk):
        do(block)
        yield block


@pytest.mark.parametrize("kind", KINDS)
def test_zero_clusters_become_holes(source: Path, target: int, content: bytes, kind: str) -> None:
    """Those of a block in which one of the places that are looked at is zero."""
    os.pwrite(target, b"x" * len(content), 0)
    readable, writable = open_pair(kind)
    sender = Sender(writable, source, [0, 1, 2, 3, 4])
    stream, blk = receiver(readable)
    written = [blk.store_sparse(target, block * MiB, MiB, CLUSTER, True) for block in each_block(stream, blk)]
    sender.join(20)
    os.close(readable)
    assert written == [MiB, MiB - 8 * CLUSTER, MiB, MiB, MiB]
    assert os.pread(target, len(content), 0) == content
    if _core.next_data(target, MiB, len(content)) != (MiB, len(content)):  # where the file system knows holes
        assert _core.next_data(target, MiB, len(content)) == (MiB + CLUSTER, MiB + 5 * CLUSTER)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_and_lengths_of_any_kind(source: Path, target: int, content: bytes, kind: str) -> None:
    """A target's last block starts at any sector, and the slack of a small disk is not written."""
    readable, writable = open_pair(kind)
    sender = Sender(writable, source, [0, 2, 4])
    stream, blk = receiver(readable)
    places = {0: (1536, MiB), 2: (3 * MiB + 512, 700_000), 4: (5 * MiB, 0)}
    for block in each_block(stream, blk):
        offset, nbytes = places[block]
        assert blk.store_sparse(target, offset, nbytes, CLUSTER, True) == nbytes
    sender.join(20)
    os.close(readable)
    assert os.fstat(target).st_size == 3 * MiB + 512 + 700_000
    assert os.pread(target, MiB, 1536) == content[:MiB]
    assert os.pread(target, MiB, 3 * MiB + 512) == content[2 * MiB :][:700_000]


def test_without_punching_zeros_are_skipped(source: Path, target: int, content: bytes) -> None:
    readable, writable = open_pair("unix")
    sender = Sender(writable, source, [1])
    stream, blk = receiver(readable)
    for _ in each_block(stream, blk):
        assert blk.store_sparse(target, 0, MiB, CLUSTER, False) == MiB - 8 * CLUSTER
    sender.join(20)
    os.close(readable)
    assert os.pread(target, MiB, 0).ljust(MiB, b"\0") == content[MiB : 2 * MiB]


@pytest.mark.parametrize("kind", ["unix", "pipe", "tcp"])
def test_small_pieces_are_copied(target: int, content: bytes, kind: str) -> None:
    """More pieces than the pipes hold: the rest of the block, and all that follows, is read."""
    readable, writable = open_pair(kind)
    os.set_blocking(writable, True)

    def write() -> None:
        head = bytearray(64)
        for block in range(5):
            end = _core.put_block_header(head, 0, block * 2048, 1, b"disk")
            os.write(writable, head[:end])
            for start in range(block * MiB, (block + 1) * MiB, 1000):
                os.write(writable, content[start : min(start + 1000, (block + 1) * MiB)])
        os.close(writable)

    thread = threading.Thread(target=write)
    stream, blk = receiver(readable)
    thread.start()
    for block in range(5):
        assert stream.next_run() == (1, b"disk", block * 2048, 1)
        stream.get_block(blk)
        store(blk, target, block * MiB)
    thread.join(20)
    os.close(readable)
    assert os.pread(target, len(content), 0) == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_blocking_fd_is_read(source: Path, target: int, content: bytes, kind: str) -> None:
    """splice() would wait in it, and hear no cancel."""
    readable, writable = open_pair(kind)
    sender = Sender(writable, source, [0, 1])
    stream, blk = _input.InputBuffer(readable), _core.BlockBuffer("piped")
    stream.expect_pages()
    for block in each_block(stream, blk):
        store(blk, target, block * MiB)
    sender.join(20)
    os.close(readable)
    assert os.pread(target, 2 * MiB, 0).ljust(2 * MiB, b"\0") == content[: 2 * MiB]  # the last cluster is zero


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_that_ends_early(target: int, kind: str) -> None:
    readable, writable = open_pair(kind)
    head = bytearray(64)
    os.write(writable, head[: _core.put_block_header(head, 0, 0, 1, b"d")])
    os.write(writable, b"x" * 20_000)
    stream, blk = receiver(readable)
    assert stream.next_run()[0] == 1
    os.close(writable)
    with pytest.raises(EOFError, match="byte 20010"):
        stream.get_block(blk)
    os.close(readable)
    assert blk.filled(0)  # it forgets what it had
    assert bytes(blk.payload) == bytes(MiB)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_for_a_payload_is_woken(kind: str) -> None:
    readable, writable = open_pair(kind)
    wake = os.eventfd(0)
    head = bytearray(64)
    os.write(writable, head[: _core.put_block_header(head, 0, 0, 1, b"d")])
    stream, blk = receiver(readable, wake_fd=wake)
    assert stream.next_run()[0] == 1
    threading.Timer(0.1, os.eventfd_write, (wake, 1)).start()
    with pytest.raises(OSError, match="cancel") as caught:
        stream.get_block(blk)
    assert caught.value.errno == errno.ECANCELED
    for fd in (readable, writable, wake):
        os.close(fd)


def one_block(source: Path, block: int) -> tuple[_core.BlockBuffer, int]:
    readable, writable = open_pair("unix")
    sender = Sender(writable, source, [block])
    stream, blk = receiver(readable)
    assert stream.get_byte() == 7
    assert stream.next_run()[0] == 1
    stream.get_block(blk)
    sender.join(20)
    os.close(readable)
    return blk, block


def test_a_file_that_takes_no_pages_is_written(source: Path, tmp_path: Path, content: bytes) -> None:
    blk, _ = one_block(source, 2)
    with (tmp_path / "appended").open("a+b") as file:  # splice() refuses those
        store(blk, file.fileno(), 0)
    assert (tmp_path / "appended").read_bytes() == content[2 * MiB : 3 * MiB]


def test_a_file_that_cannot_grow(source: Path, target: int, content: bytes) -> None:
    blk, _ = one_block(source, 2)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store(blk, target, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    blk, _ = one_block(source, 0)
    store(blk, target, 0)
    assert os.pread(target, MiB + 1, 0) == content[:MiB]


def test_a_payload_that_nobody_took_is_forgotten(source: Path, content: bytes) -> None:
    blk, _ = one_block(source, 2)
    with source.open("rb") as file:
        assert not blk.fill(file.fileno(), 0, MiB)
    assert bytes(blk.payload) == content[:MiB]


def test_a_wait_for_more_wakes_for_little(content: bytes) -> None:
    """After a payload more is waited for than a byte, for a moment; what comes is seen by everybody then."""
    readable, writable = open_pair("tcp")
    stream, blk = receiver(readable)
    head = bytearray(64)
    with socket.socket(fileno=writable) as sock:
        sock.setblocking(True)
        sock.sendall(head[: _core.put_block_header(head, 0, 0, 1, b"d")] + content[:MiB])
        assert stream.next_run()[0] == 1
        stream.get_block(blk)
        sock.sendall(b"!")
        assert stream.get_byte() == ord("!")
    assert bytes(blk.payload) == content[:MiB]
    os.close(readable)


@pytest.mark.parametrize("capacity", [512, 65536])
def test_a_payload_behind_zeros_comes_as_pages(content: bytes, capacity: int) -> None:
    """Although its beginning is read with the zero records before it; and in the end nothing is left in the socket.

    To close a socket with something in it tells the sender of an error that there was not.
    """
    readable, writable = open_pair("tcp")
    stream, blk = receiver(readable, capacity)
    zeros, head = bytearray(9 * 14), bytearray(64)
    _core.put_zero_records(zeros, 0, 0, 9, b"disk0")
    nbytes = _core.put_block_header(head, 0, 9 * 2048, 1, b"disk0")
    with socket.socket(fileno=writable) as sock:
        sock.setblocking(True)
        sock.sendall(zeros)
        zeros_before = stream.next_run()[3]
        for rest in (b"", b"end of it"):
            sock.sendall(bytes(zeros) + bytes(head[:nbytes]) + content[:MiB])
            sock.sendall(bytes(zeros) + EOS.to_bytes(8, "big") + rest)
            assert count_zeros(stream) == (18 - zeros_before, 1)
            stream.get_block(blk)
            assert blk.has_pages
            assert bytes(blk.payload) == content[:MiB]
            assert count_zeros(stream) == (9, EOS)
            assert stream.get_buffer(len(rest)) == rest
            assert fcntl.ioctl(readable, termios.FIONREAD, bytes(4)) == bytes(4)
            sock.sendall(zeros)
            zeros_before = stream.next_run()[3]
    os.close(readable)


def count_zeros(stream: _input.InputBuffer) -> tuple[int, int]:
    """Return how many zero blocks come, and the flags of the record behind them."""
    zeros = 0
    while (run := stream.next_run())[0] == 9:
        zeros += run[3]
    return zeros, run[0]


@pytest.mark.parametrize("seed", range(8))
def test_any_records_in_any_pieces(content: bytes, seed: int) -> None:
    """Zero records, blocks and other records, as the link cuts them, taken as pages or as bytes."""
    rng = random.Random(seed)
    readable, writable = open_pair("tcp")
    stream, piped = receiver(readable, rng.choice([512, 4096, 65536]))
    moved = _core.BlockBuffer("moved")
    wire, sent = random_records(rng, content)
    thread = threading.Thread(target=send_pieces, args=(writable, wire, random.Random(seed)))
    thread.start()
    came: list[tuple[int, int]] = []
    while not came or came[-1][0] != EOS:
        flags, _, sector, count = stream.next_run()
        came += [(flags, sector + number * 2048) for number in range(count)]
        if flags == 1:
            blk = piped if rng.random() < 0.6 else moved
            stream.get_block(blk)
            assert bytes(blk.payload) == content[sector % 5 * MiB :][:MiB], f"seed {seed}"
    assert came == sent, f"seed {seed}"
    thread.join(20)
    os.close(readable)


def random_records(rng: random.Random, content: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Return a stream, and (flags, sector) of each of its records; of a block, the sector says the contents."""
    wire, sent, record = bytearray(), [], bytearray(512)
    for _ in range(40):
        kind, sector = rng.choice(["zeros", "block", "progress"]), 2048 * rng.randrange(1 << 20)
        if kind == "zeros":
            count = rng.choice([1, 3, 300, 5000])
            zeros = bytearray(count * 13)
            _core.put_zero_records(zeros, 0, sector, count, b"disk")
            wire += zeros
            sent += [(9, sector + number * 2048) for number in range(count)]
        elif kind == "block":
            name = rng.choice([b"disk", b"other disk"])
            wire += record[: _core.put_block_header(record, 0, sector, 1, name)] + content[sector % 5 * MiB :][:MiB]
            sent.append((1, sector))
        else:
            wire += (sector << 9 | 4).to_bytes(8, "big")
            sent.append((4, sector))
    return bytes(wire) + EOS.to_bytes(8, "big"), [*sent, (EOS, 0)]


def send_pieces(fd: int, wire: bytes, rng: random.Random) -> None:
    with socket.socket(fileno=fd) as sock:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = 0
        while start < len(wire):
            nbytes = rng.choice([1, 13, 100, 4096, 60_000, MiB, 3 * MiB])
            sock.sendall(wire[start : start + nbytes])
            start += nbytes


@pytest.mark.parametrize("items", [1, 20, 29, 31, 37])
def test_a_head_is_read_ahead_only_where_there_is_room(content: bytes, items: int) -> None:
    """A head of 264 bytes comes, then small items that leave little room behind them in the smallest buffer."""
    readable, writable = open_pair("pipe")
    stream, _ = receiver(readable, 512)
    head = bytearray(300)
    name = b"n" * 255
    words = b"".join(number.to_bytes(8, "big") for number in range(items))
    os.write(writable, bytes(head[: _core.put_block_header(head, 0, 0, 1, name)]) + words + b"!" * 4)
    assert stream.next_run() == (1, name, 0, 1)
    assert [stream.get_be64() for _ in range(items)] == list(range(items))
    os.write(writable, b"?" * 300)
    assert stream.get_be64() == int.from_bytes(b"!!!!????", "big")
    assert stream.get_buffer(296) == b"?" * 296
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("spare", [0, 2, 3])
def test_without_descriptors_for_pipes_payloads_are_copied(
    source: Path, target: int, content: bytes, spare: int
) -> None:
    """None at all, one pipe, and one pipe and a half: all or nothing."""
    readable, writable = open_pair("unix")
    sender = Sender(writable, source, [0, 2])
    stream, blk = receiver(readable)
    assert stream.peek_byte() == 7  # by now the sender has opened what it needs
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1 + spare, old[1]))
    try:
        for block in each_block(stream, blk):
            store(blk, target, block * MiB)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    sender.join(20)
    os.close(free)
    os.close(readable)
    assert os.pread(target, MiB, 0) == content[:MiB]
    assert os.pread(target, MiB, 2 * MiB) == content[2 * MiB : 3 * MiB]
