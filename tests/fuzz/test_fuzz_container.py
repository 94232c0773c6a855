# SPDX-License-Identifier: GPL-2.0-or-later
"""The container takes any bytes: it is the right stream, or one clear error at a place inside what was read."""

from __future__ import annotations

import contextlib
import itertools
import json
import lzma
import pathlib
import random
import socket
import struct
import tracemalloc

import pytest
import savevm_streams as streams
from savevm_streams import EOS, CountingHandlers, counted, word

from blkmig import errors, savevm
from blkmig.savevm import drain

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PAGE = 1024
RAM_EOS = word(0x10)
VFIO_END = word(0xFFFFFFFFEF100001)
HTAB_END = bytes(8)

INTERESTING = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x20, 0x28, 0x22, 0x40, 0x7E, 0x7F, 0x80, 0xFE, 0xFF]


def ram_start() -> bytes:
    blocks = counted("pc.ram") + word(4 * PAGE) + word(2 << 20) + counted("vga") + word(PAGE)
    return word(5 * PAGE | 4) + blocks + RAM_EOS


def ram_pages() -> bytes:
    return b"".join(
        [
            word(0 | 0x08) + counted("pc.ram") + b"\x7e" * PAGE,
            word(PAGE | 0x28) + bytes(PAGE),
            word(2 * PAGE | 0x22) + b"\0",
            word(3 * PAGE | 0x02) + counted("vga") + b"\0",
            word(0 | 0x60) + b"\1\0\5hello",
            word(PAGE | 0x100) + counted("pc.ram") + struct.pack(">I", 7) + b"deflate",
            word(0x200),
            RAM_EOS,
        ]
    )


def bitmap_bits() -> bytes:
    return b"\x4c" + counted("drive0") + counted("bitmap0") + struct.pack(">QIQ", 0, 64, 5) + b"bits!" + b"\1"


PACKAGE = streams.command(7, b"\0\0\0\x1e") + streams.command(4) + streams.part(1) + streams.command(5) + b"\0\0"

RECORDS = [
    streams.HEADER
    + streams.configuration(
        "virt-9.0",
        streams.page_bits(10),
        streams.capabilities("validated"),
        streams.subsection("configuration/uuid", bytes(range(16))),
    ),
    streams.command(1),
    streams.command(2, b"ping"),
    streams.command(3, bytes(16)),
    streams.start(1, "block", word(77) + EOS),
    streams.start(2, "ram", ram_start(), version=4),
    streams.start(3, "dirty-bitmap", b"\x1c" + counted("drive0") + counted("bitmap0") + bytes(5) + b"\1"),
    streams.start(4, "spapr/htab", b"\0\0\0\x18"),
    streams.start(5, "s390-storage_attributes", word(1), version=0),
    streams.start(6, "0000:00:02.0/vfio", word(0xFFFFFFFFEF100003) + VFIO_END),
    streams.part(1, word(1000) + EOS),
    streams.part(2, ram_pages()),
    streams.part(3, bitmap_bits()),
    streams.part(4, bytes(4) + struct.pack(">IHH", 3, 2, 1) + b"h" * 32 + HTAB_END),
    streams.part(5, word(2) + word(4) + b"attr" + word(1)),
    streams.part(6, word(0xFFFFFFFFEF100004) + word(6) + b"device" + VFIO_END),
    PACKAGE,
    streams.end(1, word(300) + EOS),
    streams.end(2, ram_pages()),
    streams.end(3, b"\x24" + counted("bitmap0") + b"\1"),
    streams.end(4, bytes(4) + HTAB_END),
    streams.end(5, word(8) + word(1)),
    streams.end(6, VFIO_END),
    streams.start(7, "timer", bytes(30), kind=streams.FULL),
    streams.start(8, "cpu", b"\x7e\0\0\0\x08" * 5, kind=streams.FULL),
]
DESCRIPTION = streams.description(b'{"page_size":1024,"devices":[{"name":"timer"}]}')
WHOLE = b"".join(RECORDS) + streams.EOF + DESCRIPTION
TOTAL = 1377
DEVICES = sum(map(len, RECORDS[:-2]))


def attempt(data: bytes, note: str) -> savevm.LoadedStream | None:
    """Load `data`; None for an error of the stream. Anything else that is raised fails the test."""
    handlers = CountingHandlers()
    loaded, position = None, 0
    try:
        loaded = streams.load(data, handlers)
    except errors.StreamError as error:
        position = error.position
    except Exception as error:
        error.add_note(note)
        raise
    assert 0 <= position <= len(data), note
    assert handlers.calls[-1] == "load_cleanup", note
    assert loaded is None or loaded.nbytes <= len(data), note
    return loaded


def test_the_whole_stream_is_well_formed() -> None:
    handlers = CountingHandlers()
    loaded = streams.load(WHOLE, handlers)
    assert handlers.total == TOTAL
    assert loaded.vmdescription == {"page_size": 1024, "devices": [{"name": "timer"}]}
    assert loaded.drained_bytes == len(RECORDS[-1] + RECORDS[-2])
    assert len(loaded.sections) == 6
    assert all(info.ended for info in loaded.sections)
    assert loaded.nbytes == len(WHOLE)


@pytest.mark.parametrize("eighth", range(8))
def test_every_cut(eighth: int) -> None:
    """A cut stream is truncated, and nothing else; without its description it is whole."""
    whole_from = len(WHOLE) - len(DESCRIPTION)
    for length in range(eighth, len(WHOLE), 8):
        loaded = None
        with contextlib.suppress(errors.TruncatedStream):
            loaded = streams.load(WHOLE[:length])
        footer_and_zero = WHOLE[:length][-6:-5] == b"\x7e" and WHOLE[length - 1] == 0
        if length == whole_from:
            assert loaded is not None
            assert loaded.vmdescription is None
        elif loaded is not None:  # device state may hold what looks like its end
            assert length > DEVICES, f"cut to {length} bytes"
            assert footer_and_zero, f"cut to {length} bytes"


def test_cuts_between_records_are_told_apart() -> None:
    """A source that gives up stops before a record or a footer; QEMU does the latter when it is told to cancel."""
    edges = set(itertools.accumulate(map(len, RECORDS[:-2])))
    edges |= {edge - 5 for edge in edges if WHOLE[edge - 5] == 0x7E}
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, CountingHandlers())
    package = sum(map(len, RECORDS[: RECORDS.index(PACKAGE)]))
    for length in itertools.chain(range(len(RECORDS[0]) + 1, package), range(package + len(PACKAGE), DEVICES)):
        with streams.reading(WHOLE[:length]) as f:
            loader = savevm.LoadVM(state, f)
            with pytest.raises(errors.TruncatedStream) as caught:
                loader.loadvm()
        is_edge = length in edges
        assert loader.summary().is_between_records == is_edge, f"cut to {length} bytes"
        assert ("between two records" in str(caught.value)) == is_edge, f"cut to {length} bytes"


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(40):
        data = bytearray(WHOLE)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
            data[rng.randrange(len(data))] = rng.choice([rng.randrange(256), rng.choice(INTERESTING)])
        attempt(bytes(data), f"seed {seed}, stream {number}")


def test_every_byte_of_the_framing() -> None:
    """Each byte that is no payload, with the values that mean something to somebody."""
    data = bytearray(WHOLE)
    pages = (bytes([0x7E]) * 64, bytes(64))
    for offset, value in enumerate(WHOLE):
        if any(WHOLE[max(offset - 32, 0) : offset + 32] == page for page in pages):
            continue
        for other in (0, 5, 0x7E, 0xFF):
            data[offset] = other
            attempt(bytes(data), f"byte {offset} is {other:#x}")
        data[offset] = value


@pytest.mark.parametrize("seed", range(20))
def test_records_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(50):
        records = [rng.choice(RECORDS[1:]) for _ in range(rng.randrange(40))]
        data = RECORDS[0] + b"".join(records) + streams.EOF + DESCRIPTION
        attempt(data, f"seed {seed}, stream {number}")


@pytest.mark.parametrize("seed", range(10))
def test_bytes_taken_out_and_put_in(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(100):
        begin, end = sorted(rng.randrange(len(WHOLE)) for _ in range(2))
        begin = max(begin, end - rng.choice([1, 8, 100]))
        inserted = rng.choice([b"", rng.randbytes(rng.randrange(20)), rng.choice(RECORDS)])
        attempt(WHOLE[:begin] + inserted + WHOLE[end:], f"seed {seed}, stream {number}")


@pytest.mark.parametrize("seed", range(10))
def test_noise(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(100):
        start = rng.choice([b"", streams.HEADER, RECORDS[0], b"".join(RECORDS[:10])])
        noise = bytes(rng.choice(INTERESTING) for _ in range(rng.randrange(300)))
        attempt(start + rng.choice([noise, rng.randbytes(300)]), f"seed {seed}, stream {number}")


def test_memory_stays_small_whatever_is_claimed() -> None:
    """Every 32-bit and 64-bit field as large as it goes: nothing is allocated for it."""
    tracemalloc.start()
    for offset in range(4, len(WHOLE), 23):
        for nbytes in (4, 8):
            data = WHOLE[:offset] + b"\xff" * nbytes + WHOLE[offset + nbytes :]
            attempt(data, f"{nbytes} bytes at {offset}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_on_a_link_that_stays_open(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a return path the loader looks for the end by itself; it always comes to one when the link closes."""
    monkeypatch.setattr(drain, "IDLE_TIME", 0.001)
    monkeypatch.setattr(drain, "PATIENT_IDLE_TIME", 0.001)
    monkeypatch.setattr(drain, "SETTLE_TIME", 0.001)
    rng = random.Random(seed)
    for number in range(10):
        data = bytearray(WHOLE)
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice(INTERESTING)
        state = savevm.SaveState()
        state.register_savevm_live("block", 0, 1, CountingHandlers())
        with streams.conversation() as (f, far):
            far.sendall(data)
            far.shutdown(socket.SHUT_WR)
            loader = savevm.LoadVM(state, f)
            with contextlib.suppress(errors.StreamError):
                loader.loadvm()
            assert loader.summary().nbytes <= len(data), f"seed {seed}, stream {number}"
            loader.finish(1)


def golden(name: str) -> bytes:
    with lzma.open(GOLDEN / f"{name}.stream.xz") as file:
        return file.read()


def test_recordings_are_there() -> None:
    names = {recording["name"] for recording in json.loads((GOLDEN / "manifest.json").read_text())}
    assert {"no-disk", "xbzrle", "compress", "ignore-shared", "dirty-bitmaps"} <= names


@pytest.mark.parametrize("name", ["no-disk", "compress", "ignore-shared", "xbzrle"])
def test_recordings_with_flipped_bytes(name: str) -> None:
    """Streams of the real QEMU: their guest memory, commands and device state, but no disk (those are block/'s)."""
    data = without_blocks(golden(name))
    rng = random.Random(name)
    for number in range(30):
        mutated = bytearray(data)
        for _ in range(rng.choice([1, 2, 10])):
            mutated[rng.randrange(len(mutated))] = rng.choice(INTERESTING)
        attempt(bytes(mutated), f"{name}, stream {number}")


@pytest.mark.parametrize("name", ["no-disk", "compress", "ignore-shared"])
def test_recordings_cut(name: str) -> None:
    data = without_blocks(golden(name))
    rng = random.Random(name)
    for _ in range(30):
        length = rng.randrange(len(data))
        loaded = attempt(data[:length], f"{name}, {length} bytes")
        assert loaded is None or data[length - 1] == 0, f"{name}, {length} bytes"


def without_blocks(data: bytes) -> bytes:
    """Replace the payload of each record of section `block` by an EOS, so that what is left is small."""
    spans: list[tuple[int, int]] = []

    class Spans(savevm.SaveVMHandlers):
        def load_state(self, f: object, version_id: int) -> None:
            begin = f.position  # type: ignore[attr-defined]
            skip_block_payload(f)
            spans.append((begin, f.position))  # type: ignore[attr-defined]

    streams.load(data, Spans())
    pieces = []
    position = 0
    for begin, end in spans:
        pieces += [data[position:begin], EOS]
        position = end
    return b"".join([*pieces, data[position:]])


def skip_block_payload(f: object) -> None:
    while True:
        flags = f.get_be64() & 511  # type: ignore[attr-defined]
        if flags & 1:
            f.skip(f.get_byte() + (0 if flags & 8 else 1 << 20))  # type: ignore[attr-defined]
        elif flags & 2:
            return
