# SPDX-License-Identifier: GPL-2.0-or-later
"""Zero records on the way that they take in a migration, against struct, numpy and memcpy; numbers against struct.

That way leads through the staging buffer of a stream: into it and out to /dev/null, or out of a file in the page cache
and run by run out of it. The others need no stream: their records stay in memory.
"""

from __future__ import annotations

import os
import struct
import timeit

import numpy as np
import pytest

from blkmig import _core, _input, _output

FILE = os.O_RDWR | os.O_CREAT | os.O_TRUNC
NAMES = [pytest.param(b"drive0", id="6"), pytest.param(b"drive-virtio-disk00", id="19")]
COUNT, FLAGS = 4096, 9


@pytest.fixture
def fd(bench_dir, request):
    """Return a descriptor of /dev/null for what is sent, or of a file for what is received."""
    is_sent = "encode" in request.node.name
    fd = os.open(os.devnull, os.O_WRONLY) if is_sent else os.open(bench_dir / "records", FILE, 0o600)
    yield fd
    os.close(fd)


def million(per_second):
    """Return a side that needs as long as `per_second` million records a second do."""
    return lambda: {"wall": COUNT / (per_second * 1e6)}


@pytest.mark.parametrize("name", NAMES)
def test_encode(ratio, fd, name):
    record = struct.Struct(f">QB{len(name)}s")
    size = record.size
    ours, theirs, copied = (bytearray(COUNT * size) for _ in range(3))
    array = np.zeros(COUNT, np.dtype([("word", ">u8"), ("length", "u1"), ("name", f"S{len(name)}")]))

    def packed():
        for i in range(COUNT):
            record.pack_into(theirs, i * size, i * 2048 << 9 | FLAGS, len(name), name)

    def numpy():
        array["word"] = np.arange(COUNT, dtype=np.uint64) * (2048 << 9) | FLAGS
        array["length"] = len(name)
        array["name"] = name

    def copy():
        copied[:] = ours

    out = _output.OutputBuffer(fd)

    def put():
        out.put_zero_records(0, COUNT, name)
        out.flush()

    _core.put_zero_records(ours, 0, 0, COUNT, name)
    packed()
    numpy()
    assert bytes(ours) == bytes(theirs) == array.tobytes()
    ratio(
        {
            "blkmig": put,
            "150 M/s": million(150),
            "struct": packed,
            "numpy": numpy,
            "memcpy": copy,
        },
        group=f"zero records of {size} bytes, encode",
    )


@pytest.mark.parametrize("name", NAMES)
def test_decode(ratio, fd, name):
    record = struct.Struct(f">QB{len(name)}s")
    stream = bytearray(COUNT * record.size)
    _core.put_zero_records(stream, 0, 0, COUNT, name)

    def unpacked():
        sector = 0
        for word, _, text in record.iter_unpack(stream):
            if word >> 9 != sector or word & 511 != FLAGS or text != name:
                raise ValueError
            sector += 2048

    def get():
        """Take all records once more; a run ends where the staging buffer does."""
        os.lseek(fd, 0, os.SEEK_SET)
        sector = 0
        while sector < COUNT * 2048:
            flags, text, first, count = source.next_run()
            if first != sector or flags != FLAGS or text != name:
                raise ValueError
            sector += count * 2048

    os.pwrite(fd, stream, 0)
    source = _input.InputBuffer(fd)
    get()
    ratio(
        {
            "blkmig": get,
            "200 M/s": million(200),
            "struct": unpacked,
        },
        group=f"zero records of {record.size} bytes, decode",
    )


@pytest.mark.parametrize("verb", ["put", "get"])
def test_number(ratio, verb):
    """One 64-bit number."""
    word = struct.Struct(">Q")
    names = {"put_be64": _core.put_be64, "get_be64": _core.get_be64, "pack": word.pack_into, "unpack": word.unpack_from}
    names["buffer"] = bytearray(64)
    ours = {"put": "put_be64(buffer, 8, 123456789)", "get": "get_be64(buffer, 8)"}[verb]
    theirs = {"put": "pack(buffer, 8, 123456789)", "get": "unpack(buffer, 8)[0]"}[verb]
    ratio(
        {"blkmig": timeit.Timer(ours, globals=names), "struct": timeit.Timer(theirs, globals=names)},
        group=f"be64, {verb}",
    )
