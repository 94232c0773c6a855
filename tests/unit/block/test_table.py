# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of disks with which a section `blkmig` begins, and what such a section must not be."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
import savevm_streams as streams

from blkmig import channel, errors, savevm
from blkmig.block import BlockLoadHandlers, TableDisk, flush_records, table

MIB = 1 << 20
MUTATIONS = 3000
DISKS = (
    TableDisk(b"vda", 3 * MIB + 700, 4096),
    TableDisk(b"", 0),
    TableDisk(b"\xff" * 255, (1 << 63) - 1, 65536),
)
ONE = (TableDisk(b"vda", MIB, 4096),)


def get(record: bytes) -> tuple[TableDisk, ...]:
    with streams.reading(record) as f:
        word = f.get_be64()
        found = table.get_table(f, word >> 9, 0)
        assert f.at_eof()
        return found


def record_of(body: bytes, count: int) -> bytes:
    return struct.pack(">QI", count << 9 | 0x20, len(body)) + body + struct.pack(">I", zlib.crc32(body))


def entry(name: bytes = b"vda", size: int = MIB, granule: int = 4096, flags: int = 0) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">QIB", size, granule, flags)


@pytest.mark.parametrize("shared_base", [False, True])
@pytest.mark.parametrize("disks", [DISKS, ONE, tuple(TableDisk(b"%d" % number, number) for number in range(256))])
def test_round_trip(disks: tuple[TableDisk, ...], shared_base: bool) -> None:
    disks = tuple(TableDisk(disk.name, disk.size, disk.granule, shared_base) for disk in disks)
    assert get(table.encode(disks)) == disks


def test_the_bytes() -> None:
    body = b"\x03vda" + struct.pack(">QIB", 700, 4096, 1)
    expected = struct.pack(">QI", 1 << 9 | 0x20, 17) + body + struct.pack(">I", zlib.crc32(body))
    assert table.encode([TableDisk(b"vda", 700, 4096, True)]) == expected


@pytest.mark.parametrize("count", [0, 257])
def test_no_disk_and_too_many_are_not_sent(count: int) -> None:
    with pytest.raises(errors.ParameterError, match="1 to 256 disks"):
        table.encode([TableDisk(b"%d" % number, 0) for number in range(count)])


def test_every_truncation_is_an_error() -> None:
    whole = table.encode(DISKS)
    for nbytes in range(len(whole)):
        with pytest.raises(errors.TruncatedStream):
            get(whole[:nbytes])
    body = b"".join(disk.encode() for disk in DISKS)
    for nbytes in range(len(body)):  # with a length and a checksum that agree
        with pytest.raises(errors.StreamError, match="the table of the disks is damaged"):
            get(record_of(body[:nbytes], len(DISKS)))


HOSTILE = {
    "no disks": record_of(b"", 0),
    "too many disks": record_of(b"".join(entry(b"%d" % number) for number in range(257)), 257),
    "disks without end": struct.pack(">QI", 0x7FFFFFFFFFFFFF << 9 | 0x20, 0xFFFFFFFF),
    "a length without end": struct.pack(">QI", 256 << 9 | 0x20, 0xFFFFFFFF),
    "the same name twice": record_of(entry() * 2, 2),
    "a size above 2^63 - 1": record_of(entry(size=1 << 63), 1),
    "granule 0": record_of(entry(granule=0), 1),
    "granule 2048": record_of(entry(granule=2048), 1),
    "granule 5000": record_of(entry(granule=5000), 1),
    "granule 2 MiB": record_of(entry(granule=2 * MIB), 1),
    "unknown flags": record_of(entry(flags=4), 1),
    "a top layer that is resumed": record_of(entry(flags=3), 1),
    "one disk that is resumed, and one that is not": record_of(entry(flags=2) + entry(b"vdb"), 2),
    "a wrong checksum": table.encode(ONE)[:-1] + bytes([table.encode(ONE)[-1] ^ 1]),
    "bytes behind the disks": record_of(entry() + b"\0", 1),
    "fewer disks than said": record_of(entry() + entry(b"vdb")[:-1], 2),
    "more disks than said": record_of(entry() + entry(b"vdb"), 1),
    "a name over the end": record_of(b"\xff" + entry()[1:], 1),
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tables_are_errors(record: bytes) -> None:
    """A9."""
    with pytest.raises(errors.StreamError, match="the table of the disks is damaged") as caught:
        get(record + bytes(8192))
    assert caught.value.position == 0


def test_mutations_are_errors_or_tables_within_bounds() -> None:
    rng = random.Random(21)
    whole = table.encode(DISKS)
    for number in range(MUTATIONS):
        data = bytearray(whole[12:-4])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        record = record_of(bytes(data), 3) if number % 2 else whole[:12] + bytes(data) + whole[-4:]
        try:
            found = get(record)
        except errors.StreamError:
            continue
        assert len({disk.name for disk in found}) == len(found) == 3
        assert all(0 <= disk.size < 1 << 63 and 4096 <= disk.granule <= MIB for disk in found)


# -- in its section --------------------------------------------------------------------------------------------------


class Nowhere:
    """Where blocks go that nobody looks at."""

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        f.skip(MIB)

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        pass


TABLE, EOS, ZERO = table.encode(ONE), streams.EOS, struct.pack(">Q", 1 | 8) + b"\x03vda"


def load(*payloads: bytes, name: str = "blkmig", handlers: BlockLoadHandlers | None = None) -> BlockLoadHandlers:
    """Load a section with a START and then PARTs of these payloads."""
    handlers = handlers or BlockLoadHandlers(lambda name, position: Nowhere())
    state = savevm.SaveState()
    for each in ("block", "blkmig"):
        state.register_savevm_live(each, 0, 1, handlers)
    first, *others = payloads
    data = streams.HEADER + streams.start(1, name, first) + b"".join(streams.part(1, each) for each in others)
    with streams.reading(data + streams.end(1) + streams.EOF) as f:
        savevm.LoadVM(state, f).loadvm()
    return handlers


def test_a_section_with_a_table() -> None:
    heard: list[object] = []
    handlers = BlockLoadHandlers(lambda name, position: Nowhere())
    handlers.on_table = lambda disks, position: heard.append(disks) or {b"vda": Nowhere()}  # type: ignore[func-returns-value]
    handlers.on_flush = heard.append
    load(TABLE + EOS, ZERO + EOS, flush_records(1), flush_records(2), handlers=handlers)
    assert heard == [ONE, 1, 2]
    assert (handlers.format, handlers.table, handlers.described_disks) == ("blkmig", ONE, (1, 0))
    assert (handlers.is_described, handlers.sizes.of("vda"), handlers.sizes.of("vdb")) == (True, MIB, None)
    assert handlers.sizes.agree_with({"vda": MIB})
    assert not handlers.sizes.agree_with({"vda": MIB - 1})


def test_a_section_block_is_what_it_was() -> None:
    handlers = load(EOS, ZERO + EOS, name="block")
    assert (handlers.format, handlers.table, handlers.is_described) == ("block", None, False)


HOSTILE_SECTIONS = {
    "no table": ("does not begin with its table", (EOS,)),
    "blocks first": ("does not begin with its table", (ZERO + TABLE + EOS,)),
    "the table in a PART": ("does not begin with its table", (EOS, TABLE + EOS)),
    "the table twice": ("comes a second time", (TABLE + TABLE + EOS,)),
    "the table again in a PART": ("comes a second time", (TABLE + EOS, TABLE + EOS)),
    "a flag too many": ("does not begin with its table", (struct.pack(">Q", 1 << 9 | 0x22) + TABLE[8:] + EOS,)),
    "a disk that the table does not have": (
        "a disk that the table of the disks does not have",
        (TABLE + EOS, struct.pack(">Q", 1 | 8) + b"\x03vdb" + EOS),
    ),
    "a disk of no bytes": (
        "a disk that the table of the disks does not have",
        (table.encode([TableDisk(b"vda", 0)]) + EOS, ZERO + EOS),
    ),
    "FLUSH 0": ("FLUSH 0 where 1 is due", (TABLE + EOS, flush_records(0))),
    "FLUSH 1 twice": ("FLUSH 1 where 2 is due", (TABLE + EOS, flush_records(1), flush_records(1))),
    "FLUSH 3": ("FLUSH 3 where 1 is due", (TABLE + EOS, flush_records(3))),
}


@pytest.mark.parametrize(("match", "payloads"), HOSTILE_SECTIONS.values(), ids=HOSTILE_SECTIONS.keys())
def test_hostile_sections_are_errors(match: str, payloads: tuple[bytes, ...]) -> None:
    """A9."""
    with pytest.raises(errors.StreamError, match=match):
        load(*payloads)


@pytest.mark.parametrize("payload", [TABLE + EOS, flush_records(1)])
def test_a_section_block_has_no_records_of_the_other(payload: bytes) -> None:
    with pytest.raises(errors.StreamError, match="unknown flags"):
        load(EOS, payload, name="block")


@pytest.mark.parametrize(("one", "other"), [("block", "blkmig"), ("blkmig", "block")])
def test_disks_in_two_sections_are_an_error(one: str, other: str) -> None:
    handlers = BlockLoadHandlers(lambda name, position: Nowhere())
    state = savevm.SaveState()
    for each in ("block", "blkmig"):
        state.register_savevm_live(each, 0, 1, handlers)
    payloads = {"block": EOS, "blkmig": TABLE + EOS}
    data = streams.HEADER + streams.start(1, one, payloads[one]) + streams.start(2, other, payloads[other])
    with streams.reading(data) as f, pytest.raises(errors.StreamError, match="disks in two sections"):
        savevm.LoadVM(state, f).loadvm()


def test_other_marks_of_an_eos_say_nothing() -> None:
    """The table has said the sizes, so what `block` says of them in these bits is not read."""
    marks = struct.pack(">Q", (3 << 2 | 1 << 40) << 9 | 2)
    handlers = load(TABLE + marks, marks, struct.pack(">Q", 7 << 11 | 2))
    assert handlers.described_disks == (1, 0)
