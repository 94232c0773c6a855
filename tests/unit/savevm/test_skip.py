# SPDX-License-Identifier: GPL-2.0-or-later
"""The other live sections that a QEMU may write beside its disks are skipped."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
import savevm_streams as streams
from savevm_streams import counted, word

from blkmig import errors, savevm

END_OF_STATE, CONFIG_STATE, SETUP_STATE, DATA_STATE, INIT_DATA_SENT = (0xFFFFFFFFEF100000 + tag for tag in range(1, 6))


def sections(idstr: str, version: int, *payloads: bytes, instance: int = 0, tail: bytes = b"") -> savevm.LoadedStream:
    """Load a stream with START, PARTs and END of a section between those of `block`."""
    first, *parts, last = payloads
    records = [
        streams.start(1, "block"),
        streams.start(3, idstr, first, version=version, instance=instance),
        *(streams.part(3, payload) for payload in parts),
        streams.end(1),
        streams.end(3, last),
    ]
    return streams.load(streams.HEADER + streams.configuration("pc") + b"".join(records) + (tail or streams.EOF))


def check(loaded: savevm.LoadedStream) -> None:
    assert loaded.reached_eof
    assert all(info.ended for info in loaded.sections)
    assert len(loaded.sections) == 2


# -- dirty-bitmap ----------------------------------------------------------------------------------------------------

EOS, ZEROES, BITMAP, NODE, START, COMPLETE, BITS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40


def flags_in_1(flags: int) -> bytes:
    return bytes([flags])


def flags_in_2(flags: int) -> bytes:
    return struct.pack(">H", 0x8000 | flags)


def flags_in_4(flags: int) -> bytes:
    return struct.pack(">I", 0x80800000 | flags)


@pytest.mark.parametrize("put", [flags_in_1, flags_in_2, flags_in_4])
def test_dirty_bitmap(put: Callable[[int], bytes]) -> None:
    names = counted("drive0") + counted("bitmap0")
    begin = put(START | NODE | BITMAP) + names + struct.pack(">IB", 65536, 3)
    bits = put(BITS | NODE | BITMAP) + names + struct.pack(">QIQ", 2048, 64, 16) + b"\x10" * 16
    zeroes = put(BITS | ZEROES) + struct.pack(">QI", 4096, 64)
    complete = put(COMPLETE | BITMAP) + counted("bitmap0")
    check(sections("dirty-bitmap", 1, begin * 2 + put(EOS), zeroes + bits + put(EOS), put(EOS), complete + put(EOS)))


def test_dirty_bitmap_whose_last_record_says_eos_too() -> None:
    bits = flags_in_1(BITS | EOS) + struct.pack(">QIQ", 0, 1, 3) + b"abc"
    check(sections("dirty-bitmap", 1, flags_in_1(EOS), bits, flags_in_1(COMPLETE | EOS)))


def test_dirty_bitmaps_of_many_shapes() -> None:
    seed = 2
    rng = random.Random(seed)
    for _ in range(200):
        payload = b""
        for _ in range(rng.randrange(10)):
            put = rng.choice([flags_in_1, flags_in_2, flags_in_4])
            named = rng.choice([0, NODE, BITMAP, NODE | BITMAP])
            names = b"".join(counted("n" * rng.randrange(256)) for flag in (NODE, BITMAP) if named & flag)
            kind = rng.choice([START, COMPLETE, BITS, BITS | ZEROES])
            size = rng.randrange(5000)
            body = {
                START: bytes(5),
                COMPLETE: b"",
                BITS: bytes(12) + struct.pack(">Q", size) + b"\x7e" * size,
                BITS | ZEROES: bytes(12),
            }[kind]
            payload += put(kind | named) + names + body
        loaded = sections("dirty-bitmap", 1, flags_in_1(EOS), payload + flags_in_1(EOS), flags_in_1(EOS))
        assert loaded.reached_eof, f"seed {seed}"


# -- spapr/htab ------------------------------------------------------------------------------------------------------


def entries(*chunks: tuple[int, int, int]) -> bytes:
    body = b"".join(struct.pack(">IHH", *chunk) + b"\x10" * 16 * chunk[1] for chunk in chunks)
    return bytes(4) + body + bytes(8)


@pytest.mark.parametrize("shift", [18, 24, 46])
def test_spapr_htab(shift: int) -> None:
    payloads = [entries((0, 3, 0), (500, 0, 12), (0, 1, 1)), entries(), entries((7, 65535, 0))]
    check(sections("spapr/htab", 1, struct.pack(">I", shift), *payloads))


def test_spapr_htab_of_a_guest_without_one() -> None:
    none = b"\xff\xff\xff\xff"
    check(sections("spapr/htab", 1, none, none, none))


# -- s390-storage_attributes -----------------------------------------------------------------------------------------


def test_s390_storage_attributes() -> None:
    more = word(0x12345000 | 0x02) + word(5) + b"\x10" * 5
    check(sections("s390-storage_attributes", 0, word(1), more + more + word(1), word(1), more + word(8) + word(1)))


@pytest.mark.parametrize("flags", [0, 4, 3, 0x10])
def test_s390_unknown_flags(flags: int) -> None:
    with pytest.raises(errors.StreamError, match=r"s390-storage_attributes.*unknown flags"):
        sections("s390-storage_attributes", 0, word(flags), word(1))


# -- vfio ------------------------------------------------------------------------------------------------------------

VFIO_END = word(END_OF_STATE)
VFIO_DATA = word(DATA_STATE) + word(100) + b"\x10" * 100


def test_vfio() -> None:
    setup = word(SETUP_STATE) + VFIO_END
    live = VFIO_DATA + word(DATA_STATE) + word(0) + word(INIT_DATA_SENT) + VFIO_END
    check(sections("0000:00:02.0/vfio", 1, setup, live, VFIO_END, VFIO_DATA + VFIO_END))


def test_vfio_configuration_behind_the_disks_is_device_state() -> None:
    last = VFIO_DATA + word(CONFIG_STATE) + b"whatever the device wants" + VFIO_END
    tail = streams.EOF + streams.description(b'{"devices":[]}')
    loaded = sections("0000:00:02.0/vfio", 1, VFIO_END, last, tail=tail)
    assert loaded.reached_eof
    assert loaded.vmdescription == {"devices": []}
    assert loaded.drained_bytes == 1 + 4 + len(last) + 5
    assert [info.ended for info in loaded.sections] == [True, False]


def test_vfio_configuration_before_the_end_of_the_disks_is_an_error() -> None:
    records = [
        streams.start(1, "block"),
        streams.start(3, "0/vfio", VFIO_END),
        streams.end(3, word(CONFIG_STATE) + b"whatever" + VFIO_END),
        streams.end(1),
    ]
    with pytest.raises(errors.UnsupportedStream, match="vfio device's configuration") as caught:
        streams.load(streams.HEADER + b"".join(records) + streams.EOF)
    assert caught.value.position == 8 + len(records[0] + records[1]) + 5


def test_vfio_unknown_tag() -> None:
    with pytest.raises(errors.StreamError, match="unknown tag 0xdead"):
        sections("0/vfio", 1, word(0xDEAD), VFIO_END)


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idstr", "version"), [("dirty-bitmap", 1), ("spapr/htab", 1), ("s390-storage_attributes", 0), ("0/vfio", 1)]
)
def test_newer_versions_are_refused(idstr: str, version: int) -> None:
    with pytest.raises(errors.UnsupportedStream, match=f"'{idstr}' has version {version + 1}, known is {version}"):
        sections(idstr, version + 1, b"", b"")


@pytest.mark.parametrize(
    ("idstr", "version", "payload"),
    [
        ("dirty-bitmap", 1, flags_in_1(BITS) + bytes(12) + word(1 << 63)),
        ("s390-storage_attributes", 0, word(2) + word((1 << 64) - 1)),
        ("0/vfio", 1, word(DATA_STATE) + word((1 << 40) + 1)),
    ],
)
def test_absurd_lengths_are_refused(idstr: str, version: int, payload: bytes) -> None:
    with pytest.raises(errors.StreamError, match=r"claims a chunk of \d+ bytes"):
        sections(idstr, version, payload, b"")


@pytest.mark.parametrize("instance", [0, 1, 0xFFFFFFFF])
def test_any_instance_is_skipped(instance: int) -> None:
    check(sections("0/vfio", 1, VFIO_END, VFIO_END, instance=instance))
