# SPDX-License-Identifier: GPL-2.0-or-later
"""OutputBuffer and InputBuffer over sockets, pipes and files: every byte in order, every wait can be ended."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import struct
from collections.abc import Callable

import pytest
from links import Link, beside, writing
from links import link as link
from links import waiting as waiting

from blkmig import _core, _input, _output

MiB = 1 << 20
NOISE = random.Random(6).randbytes(MiB)
SMALLEST = 512


@pytest.mark.parametrize("capacity", [SMALLEST, 1000, 65536])
@pytest.mark.parametrize("seed", range(3))
def test_any_items_in_any_order(link: Link, capacity: int, seed: int) -> None:
    """A random stream, written item by item, read item by item with other cuts, counted by both sides."""
    rnd = random.Random(f"{capacity} {seed}")
    items: list[tuple[str, object]] = []
    for _ in range(120):
        kind = rnd.choice(("byte", "be16", "be32", "be64", "buffer", "buffer"))
        bits = {"byte": 8, "be16": 16, "be32": 32, "be64": 64}.get(kind, 0)
        size = rnd.choice((0, 1, 8, capacity - 1, capacity, capacity + 1, 3 * capacity, 100000))
        items.append((kind, rnd.getrandbits(bits) if bits else rnd.randbytes(size)))
    codes = {"byte": ">B", "be16": ">H", "be32": ">I", "be64": ">Q"}
    stream = b"".join(struct.pack(codes[kind], value) if kind in codes else value for kind, value in items)

    def write() -> None:
        out = _output.OutputBuffer(link.output, capacity)
        position = 0
        for kind, value in items:
            getattr(out, f"put_{kind}")(value)
            position += len(value) if isinstance(value, bytes) else struct.calcsize(codes[kind])
            assert out.position == position
            assert position - capacity <= out.flushed <= position
        out.flush()
        out.flush()
        assert out.flushed == out.position == len(stream)
        link.close_output()

    with writing(link, write):
        source = _input.InputBuffer(link.input, capacity)
        at = 0
        while at < len(stream):
            size = rnd.choice((1, 2, 4, 8, 7, capacity, 2 * capacity, 50000))
            size = min(size, len(stream) - at)
            how = rnd.choice(("buffer", "skip", "number", "peek"))
            if how == "skip":
                source.skip(size)
            elif how == "number" and size in (1, 2, 4, 8):
                name = {1: "byte", 2: "be16", 4: "be32", 8: "be64"}[size]
                assert getattr(source, f"get_{name}")() == int.from_bytes(stream[at : at + size], "big")
            elif how == "peek":
                size = 0
                assert source.peek_byte() == stream[at]
            else:
                assert source.get_buffer(size) == stream[at : at + size]
            at += size
            assert source.position == at
        with pytest.raises(EOFError, match=f"the stream ends at byte {len(stream)}"):
            source.get_byte()


@pytest.mark.parametrize("capacity", [SMALLEST, 65536])
@pytest.mark.parametrize("mapped", [False, True])
def test_records(link: Link, tmp_path: pathlib.Path, capacity: int, mapped: bool) -> None:
    """Data, zero runs, progress and the end, as a migration sends them."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE[::-1] + NOISE)
    fd = os.open(path, os.O_RDONLY)
    mapping = _core.Mapping(fd, 2 * MiB)

    def write() -> None:
        out = _output.OutputBuffer(link.output, capacity)
        blk = _core.BlockBuffer()
        for i in (0, 1):
            if mapped:
                assert not blk.fill_mapped(mapping, fd, i * MiB, MiB)
            else:
                assert not blk.fill(fd, i * MiB, MiB)
            out.put_block(2048 * i, 1, b"drive0", blk)
            assert out.flushed == out.position
        out.put_be64(50 << 9 | 4)
        out.put_zero_records(4096, 10000, b"drive0")
        out.put_block(4096 + 2048 * 10000, 9, b"drive0", blk)
        out.put_block_header(7, 1, b"x" * 255)
        out.put_payload(blk, 0, 1000)
        out.put_payload(blk, 1000, 0)
        out.put_payload(blk, 1000, MiB - 1000)
        out.put_be64(2)
        out.flush()
        assert out.position == out.flushed == 3 * MiB + 2 * 15 + 10001 * 15 + 264 + 16

    with writing(link, write):
        source = _input.InputBuffer(link.input, capacity)
        blk = _core.BlockBuffer()
        for i, expected in enumerate((NOISE[::-1], NOISE)):
            assert source.next_run() == (1, b"drive0", 2048 * i, 1)
            source.get_block(blk)
            assert bytes(blk.payload) == expected
            assert not blk.is_zero
        assert source.next_run() == (4, b"", 50, 1)
        sector, left = 4096, 10001
        while left:
            flags, name, start, count = source.next_run()
            assert (flags, name, start) == (9, b"drive0", sector)
            sector += 2048 * count
            left -= count
        assert source.next_run() == (1, b"x" * 255, 7, 1)
        source.get_block(blk)
        assert bytes(blk.payload) == NOISE
        assert source.next_run() == (2, b"", 0, 1)
        assert source.position == 3 * MiB + 2 * 15 + 10001 * 15 + 264 + 16
    os.close(fd)


def test_every_cut_of_a_record(waiting: Link) -> None:
    """A record that arrives byte by byte is the same record; what is behind a payload stays for the next."""
    stream = struct.pack(">QB3s", 2048 << 9 | 9, 3, b"vda") + struct.pack(">QB3s", 4096 << 9 | 9, 3, b"vda")

    def write() -> None:
        for byte in stream + struct.pack(">Q", 2):
            os.write(waiting.output, bytes([byte]))

    with beside(write):
        source = _input.InputBuffer(waiting.input)
        runs = []
        while not runs or runs[-1][0] != 2:
            runs.append(source.next_run())
        assert sum(run[3] for run in runs if run[0] == 9) == 2
        assert runs[0][:3] == (9, b"vda", 2048)


def test_get_some_and_staged(waiting: Link) -> None:
    source = _input.InputBuffer(waiting.input)
    os.write(waiting.output, b"abcdef")
    assert source.staged == 0
    assert source.get_some(2) == b"ab"
    assert source.staged == 4
    assert source.get_some(100) == b"cdef"
    assert source.position == 6
    waiting.close_output()
    assert source.get_some(1) == b""
    with pytest.raises(ValueError, match="cannot get 0 bytes"):
        source.get_some(0)


@pytest.mark.parametrize(
    "get",
    [
        lambda s: s.get_byte(),
        lambda s: s.get_be64(),
        lambda s: s.get_buffer(9),
        lambda s: s.get_buffer(70000),
        lambda s: s.skip(9),
        lambda s: s.next_run(),
        lambda s: s.get_block(_core.BlockBuffer()),
    ],
)
@pytest.mark.parametrize("have", [0, 1, 7])
def test_end_inside_an_item(link: Link, get: Callable[[_input.InputBuffer], object], have: int) -> None:
    os.write(link.output, b"\1" * have)
    link.close_output()
    source = _input.InputBuffer(link.input)
    with contextlib.suppress(EOFError):
        for _ in range(have):  # single bytes are there before the end
            get(source)
    with pytest.raises(EOFError, match=f"the stream ends at byte {have}, inside an item"):
        get(source)


def test_numbers_that_cannot_be(link: Link) -> None:
    source, out = _input.InputBuffer(link.input), _output.OutputBuffer(link.output)
    with pytest.raises(ValueError, match="cannot get -1 bytes"):
        source.get_buffer(-1)
    with pytest.raises(OverflowError):
        source.skip(-1)
    assert source.get_buffer(0) == b""
    source.skip(0)
    for put, value in ((out.put_byte, 256), (out.put_be16, -1), (out.put_be32, 1 << 32), (out.put_be64, 1 << 64)):
        with pytest.raises(OverflowError):
            put(value)
    blk = _core.BlockBuffer()
    for sector, flags, name in ((1 << 55, 1, b""), (0, 512, b""), (0, 1, bytes(256))):
        with pytest.raises(OverflowError):
            out.put_block(sector, flags, name, blk)
        with pytest.raises(OverflowError):
            out.put_block_header(sector, flags, name)
    with pytest.raises(OverflowError):
        out.put_zero_records(0, 1 << 45, b"")
    for offset, nbytes in ((-1, 1), (0, -1), (0, MiB + 1), (MiB, 1), (1, MiB)):
        with pytest.raises(IndexError):
            out.put_payload(blk, offset, nbytes)
    out.put_zero_records(0, 0, b"")
    assert out.position == out.flushed == 0


def test_fds_that_cannot_be(tmp_path: pathlib.Path) -> None:
    for make in (_output.OutputBuffer, _input.InputBuffer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            make(-1)
        for capacity in (0, -1, SMALLEST - 1):
            with pytest.raises(ValueError, match="at least 512 bytes"):
                make(0, capacity)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="Is a directory"):
        _input.InputBuffer(directory).get_byte()
    os.close(directory)
    full = os.open("/dev/full", os.O_WRONLY)
    out = _output.OutputBuffer(full)
    out.put_byte(1)
    with pytest.raises(OSError, match="No space left"):
        out.flush()
    assert (out.position, out.flushed) == (1, 0)
    os.close(full)
