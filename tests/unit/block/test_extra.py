# SPDX-License-Identifier: GPL-2.0-or-later
"""EXTRA, the record with a body of its own: who takes it, and what nobody takes."""

from __future__ import annotations

import struct
import tracemalloc

import model
import pytest
import savevm_streams as streams

from blkmig import errors, savevm
from blkmig.block import BlockLoadHandlers, ExtraKind, TableDisk, extra, records, table
from blkmig.block.extras import MAX_BYTES

TABLE = table.encode((TableDisk(b"vda", 1 << 20, 4096),))
BODIES = (b"", b"\0", b"body", b"x" * MAX_BYTES)


def stream_of(*payloads: bytes, name: str = "blkmig", first: bytes = b"") -> bytes:
    """Return a stream whose section starts with a table, and has these PARTs."""
    start = (TABLE if name == "blkmig" else b"") + first + streams.EOS
    parts = b"".join(streams.part(1, payload) for payload in payloads)
    return streams.HEADER + streams.start(1, name, start) + parts + streams.end(1) + streams.EOF


def load(data: bytes, *kinds: int) -> list[tuple[int, bytes]]:
    """Return what handlers for these kinds took."""
    taken: list[tuple[int, bytes]] = []
    handlers = BlockLoadHandlers(lambda name, position: pytest.fail("no block comes"))
    handlers.on_extra = {kind: lambda body, position, kind=kind: taken.append((kind, body)) for kind in kinds}  # type: ignore[misc]
    state = savevm.SaveState()
    for each in ("block", "blkmig"):
        state.register_savevm_live(each, 0, 1, handlers)
    with streams.reading(data) as f:
        savevm.LoadVM(state, f).loadvm()
    return taken


def test_the_bytes() -> None:
    assert extra(ExtraKind.COMMIT, b"\1\2") == bytes.fromhex("0000000000000500 00000002 0102")


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_a_body_arrives_whole(body: bytes) -> None:
    data = stream_of(records(extra(2, body), extra(7, b"other")), first=extra(1, body))
    wanted = [(1, body), (2, body), (7, b"other")]
    assert load(data, 1, 2, 7) == wanted
    assert model.read(data)[0].extras == wanted


@pytest.mark.parametrize(("kind", "name"), [(2, "EXTRA COMMIT"), (0, "unknown kind 0"), (200, "unknown kind 200")])
def test_a_kind_that_nobody_takes_is_refused_by_its_name_and_place(kind: int, name: str) -> None:
    """Before its body is read: its length may be any."""
    record = extra(kind, b"")[:8] + b"\xff" * 4
    position = stream_of(record + streams.EOS).index(record)
    with pytest.raises(errors.StreamError, match=name) as caught:
        load(stream_of(record + streams.EOS), 1)
    assert caught.value.position == position


@pytest.mark.parametrize("nbytes", [MAX_BYTES + 1, 0xFFFFFFFF])
def test_a_body_too_long_is_refused_before_anything_is_allocated(nbytes: int) -> None:
    data = stream_of(extra(2, b"")[:8] + struct.pack(">I", nbytes))
    tracemalloc.start()
    try:
        with pytest.raises(errors.StreamError, match=f"EXTRA COMMIT has {nbytes} bytes"):
            load(data, 2)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("flags", [0x101, 0x104, 0x110, 0x140])
def test_with_another_flag_it_is_not_taken(flags: int) -> None:
    with pytest.raises(errors.StreamError):
        load(stream_of(struct.pack(">QI", 2 << 9 | flags, 0) + streams.EOS), 2)


def test_before_the_table_and_in_a_section_of_a_qemu_there_is_none() -> None:
    record = extra(2, b"")
    with pytest.raises(errors.StreamError, match="unknown flags 0x100"):
        load(stream_of(record + streams.EOS, name="block"), 2)
    with pytest.raises(errors.StreamError, match="does not begin with its table"):
        load(streams.HEADER + streams.start(1, "blkmig", record + TABLE + streams.EOS), 2)
