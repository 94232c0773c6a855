# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs on their way: what is put is what is got, however it is cut; what cannot be a pack is neither."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
from pathlib import Path

import pytest

from blkmig import _core, _input, _output

MIB = _core.BLOCK_SIZE
PACK = 0x10


def wire_of(name: bytes, extents: list[tuple[int, int]], payload: bytes) -> bytes:
    """Return a pack as the page of the format has it."""
    listed = b"".join(struct.pack(">QI", *extent) for extent in extents)
    return struct.pack(">QB", len(extents) << 9 | PACK, len(name)) + name + listed + payload


def filled(payload: bytes) -> _core.BlockBuffer:
    blk = _core.BlockBuffer()
    blk.data[: len(payload)] = payload
    blk.gathered()
    return blk


def some_extents(rng: random.Random) -> list[tuple[int, int]]:
    """Return a list that may stand in a pack."""
    count = rng.choice((1, 2, 100, 256))
    longest = MIB // 512 // count
    end, found = 0, []
    for _ in range(count):
        offset = end + 512 * rng.choice((0, 1, rng.randrange(1 << 40)))
        nbytes = 512 * rng.randint(1, longest)
        found.append((offset, nbytes))
        end = offset + nbytes
    return found


def put(path: Path, capacity: int, name: bytes, extents: list[tuple[int, int]], payload: bytes) -> bytes:
    with path.open("wb") as file:
        out = _output.OutputBuffer(file.fileno(), capacity)
        out.put_pack(PACK, name, extents, filled(payload))
        out.flush()
        assert out.position == out.flushed == path.stat().st_size
    return path.read_bytes()


def get(path: Path, capacity: int, data: bytes) -> tuple[bytes, list[tuple[int, int]], bytes]:
    path.write_bytes(data)
    with path.open("rb") as file:
        stream = _input.InputBuffer(file.fileno(), capacity)
        flags, _, count, _ = stream.next_run()
        assert flags == PACK
        name, extents = stream.get_pack_header(count)
        blk = _core.BlockBuffer("moved")
        total = sum(nbytes for _, nbytes in extents)
        stream.get_pack_payload(blk, total)
        assert not blk.is_zero
        return name, extents, bytes(blk.payload[:total])


@pytest.mark.parametrize("seed", range(24))
def test_what_is_put_is_got(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    name, extents = rng.randbytes(rng.choice((0, 1, 3, 255))), some_extents(rng)
    payload = rng.randbytes(sum(nbytes for _, nbytes in extents))
    data = put(tmp_path / "f", rng.choice((512, 513, 4096, 65536)), name, extents, payload)
    assert data == wire_of(name, extents, payload)
    assert get(tmp_path / "f", rng.choice((512, 513, 4096, 65536)), data) == (name, extents, payload)


PLACES = (0, 1, 511, 512, 1024, 1536)
LENGTHS = (0, 1, 512, 1024, MIB - 512, MIB)


def test_every_small_list() -> None:
    """All lists of two extents of a small grid: the writer takes those that the rule allows, the reader the same."""
    readable, writable = socket.socketpair()
    out, stream = _output.OutputBuffer(writable.fileno()), _input.InputBuffer(readable.fileno())
    taken = 0
    for first, other in itertools.product(itertools.product(PLACES, LENGTHS), repeat=2):
        extents = [first, other]
        may_be = (
            all(offset % 512 == 0 and nbytes % 512 == 0 and nbytes for offset, nbytes in extents)
            and sum(first) <= other[0]
            and first[1] + other[1] <= MIB
        )
        listed = struct.pack(">BQIQI", 0, *first, *other)
        writable.send(listed)
        if may_be:
            assert out.put_pack_header(PACK, b"", extents) == first[1] + other[1]
            assert stream.get_pack_header(2) == (b"", extents)
            taken += 1
        else:
            with pytest.raises(ValueError, match=r"pack|extents"):
                out.put_pack_header(PACK, b"", extents)
            with pytest.raises(ValueError, match="pack"):
                stream.get_pack_header(2)
    assert taken == 24
    readable.close()
    writable.close()


@pytest.mark.parametrize("count", [0, 257, 1 << 55, (1 << 64) - 1])
def test_how_many_extents(count: int) -> None:
    readable, writable = os.pipe()
    stream = _input.InputBuffer(readable)
    with pytest.raises(ValueError, match="1 to 256 extents"):
        stream.get_pack_header(count)
    os.close(readable)
    os.close(writable)


def test_far_places(tmp_path: Path) -> None:
    """Up to 2^63, and no further: no sum overflows."""
    top = (1 << 63) - 512
    assert get(tmp_path / "f", 512, wire_of(b"d", [(0, 512), (top - 512, 512)], bytes(1024)))[1][1] == (top - 512, 512)
    for offset in (top, 1 << 63, (1 << 64) - 512):
        with pytest.raises(ValueError, match="below 2"):
            get(tmp_path / "f", 512, wire_of(b"d", [(offset, 512)], bytes(512)))


def test_one_system_call(tmp_path: Path) -> None:
    """Head and payload leave together, where the kernel takes all of it: one message of a socket that keeps them."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for each in (one, other):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MIB)
    extents = [(block * MIB, 512) for block in range(64)]
    payload = bytes(range(256)) * 128
    _output.OutputBuffer(one.fileno()).put_pack(PACK, b"d", extents, filled(payload))
    assert other.recv(2 * MIB) == wire_of(b"d", extents, payload)
    one.close()
    other.close()


def test_a_mapping_is_no_payload_of_a_pack(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * MIB)
    blk = _core.BlockBuffer("mapped")
    with (tmp_path / "f").open("rb") as file:
        blk.fill_mapped(_core.Mapping(file.fileno(), MIB), file.fileno(), 0, MIB)
    with (tmp_path / "o").open("wb") as file:
        out = _output.OutputBuffer(file.fileno())
        with pytest.raises(ValueError, match="own bytes"):
            out.put_pack(PACK, b"d", [(0, 512)], blk)
        assert out.position == 0
