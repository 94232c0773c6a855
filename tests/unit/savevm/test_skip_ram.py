# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory is skipped in every form that the wire has for it."""

from __future__ import annotations

import random
import struct

import pytest
import savevm_streams as streams
from savevm_streams import counted, word

from blkmig import errors, savevm

PAGE = 4096
ZERO_FLAG, MEM_SIZE, PAGE_FLAG, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
XBZRLE, HOOK, COMPRESS, MULTIFD_FLUSH = 0x40, 0x80, 0x100, 0x200
END = word(EOS)


def memory(payload: bytes, *config: bytes, machine: str = "pc", version: int = 4) -> savevm.LoadedStream:
    """Load a stream whose ram section is `payload`; what comes behind it shows that all of it was skipped."""
    ram = streams.start(2, "ram", payload, version=version)
    block = streams.start(1, "block") + streams.end(1)
    return streams.load(streams.HEADER + streams.configuration(machine, *config) + ram + block + streams.EOF)


def page(flag: int, name: str | None, body: bytes, *, address: int = 0x5000, page_size: int = PAGE) -> bytes:
    flags = flag | (CONTINUE if name is None else 0)
    return word(address * page_size | flags) + (b"" if name is None else counted(name)) + body


BODIES = {
    "zero": (ZERO_FLAG, b"\xaa"),
    "page": (PAGE_FLAG, b"\x10" * PAGE),
    "xbzrle": (XBZRLE, b"\1\0\3abc"),
    "xbzrle, empty": (XBZRLE, b"\1\0\0"),
    "xbzrle, full": (XBZRLE, b"\1\x10\0" + b"\x10" * PAGE),
    "compressed": (COMPRESS, b"\0\0\0\5hello"),
    "compressed, longer than the page": (COMPRESS, struct.pack(">I", PAGE + 13) + b"\x10" * (PAGE + 13)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("name", ["pc.ram", None, "", "n" * 255])
def test_every_kind_of_page(body: tuple[int, bytes], name: str | None) -> None:
    loaded = memory(page(body[0], name, body[1]) * 3 + END)
    assert loaded.section("block") is not None
    assert loaded.reached_eof


def test_pages_of_all_kinds_in_any_order() -> None:
    seed = 1
    rng = random.Random(seed)
    for _ in range(50):
        payload = b""
        for _ in range(rng.randrange(100)):
            flag, body = rng.choice(list(BODIES.values()))
            payload += page(flag, rng.choice([None, "pc.ram", "vga.vram"]), body, address=rng.getrandbits(40))
            payload += rng.choice([b"", word(MULTIFD_FLUSH)])
        assert memory(payload + END).reached_eof, f"seed {seed}"


@pytest.mark.parametrize("count", [65535, 65536, 65537, 65538, 200000])
def test_long_runs_of_zero_pages(count: int) -> None:
    """They are dropped in one call, which comes up for air every 65,536 words."""
    run = page(ZERO_FLAG, None, b"\0") * count
    assert memory(run + page(PAGE_FLAG, "pc.ram", b"\x10" * PAGE) + run[:9] + END).reached_eof


def test_runs_that_cross_every_border_of_the_staging() -> None:
    """Pages and zero pages of all alignments, some 300 times what is read ahead."""
    seed = 3
    rng = random.Random(seed)
    kinds = [page(ZERO_FLAG, None, b"\0"), page(PAGE_FLAG, None, b"\x10" * PAGE)]
    payload = b"".join(rng.choice(kinds) * rng.randrange(20) for _ in range(1000))
    assert memory(payload + END).nbytes > len(payload), f"seed {seed}"


@pytest.mark.parametrize("cut", range(1, 2 * (8 + 1) + 8))
def test_runs_that_are_cut(cut: int) -> None:
    data = streams.HEADER + streams.start(2, "ram", page(ZERO_FLAG, None, b"\0") * 2 + END, version=4, footers=False)
    with pytest.raises(errors.TruncatedStream):
        streams.load(data[:-cut])


def test_continue_lasts_across_sections() -> None:
    ram = [
        streams.start(2, "ram", page(PAGE_FLAG, "pc.ram", bytes(PAGE)) + END, version=4),
        streams.part(2, page(PAGE_FLAG, None, bytes(PAGE)) + END),
        streams.end(2, page(ZERO_FLAG, None, b"\0") + END),
    ]
    loaded = streams.load(streams.HEADER + b"".join(ram) + streams.EOF)
    assert loaded.sections[0].ended


@pytest.mark.parametrize("bits", [10, 12, 13, 14, 16])
def test_page_size_of_the_configuration(bits: int) -> None:
    size = 1 << bits
    payload = page(PAGE_FLAG, "ram", b"\x10" * size, page_size=size) + page(
        PAGE_FLAG, None, b"\x10" * size, page_size=size
    )
    assert memory(payload + END, streams.page_bits(bits)).reached_eof


def test_page_size_of_the_machine() -> None:
    assert memory(page(PAGE_FLAG, "ram", b"\x10" * 8192, page_size=8192) + END, machine="sun4u").reached_eof


# -- the list of blocks ----------------------------------------------------------------------------------------------


def block(name: str, used: int, *fields: int) -> bytes:
    return counted(name) + word(used) + b"".join(map(word, fields))


BLOCKS = [("pc.ram", 128 << 20), ("vga.vram", 16 << 20), ("/rom@etc/acpi/tables", 0x20000), ("pc.bios", 0x40000)]
TOTAL = sum(used for _, used in BLOCKS)


def test_plain_list_of_blocks() -> None:
    assert memory(word(TOTAL | MEM_SIZE) + b"".join(block(*entry) for entry in BLOCKS) + END).reached_eof


@pytest.mark.parametrize("huge", range(1 << len(BLOCKS)))
@pytest.mark.parametrize("page_size", [0x10000, 2 << 20, 1 << 30])
def test_any_block_may_say_its_page_size(huge: int, page_size: int) -> None:
    """The list does not say which blocks do; the next byte does, or the missing flags behind the last one."""
    entries = [block(*entry, *([page_size] if huge >> n & 1 else [])) for n, entry in enumerate(BLOCKS)]
    assert memory(word(TOTAL | MEM_SIZE) + b"".join(entries) + END).reached_eof
    followed = page(PAGE_FLAG, "pc.ram", bytes(PAGE)) + END
    assert memory(word(TOTAL | MEM_SIZE) + b"".join(entries) + followed).reached_eof


@pytest.mark.parametrize("address", [0, 0x100000, 0xFEFF0000, 0x0100000000000000])
def test_ignore_shared_gives_every_block_an_address(address: int) -> None:
    entries = b"".join(block(*entry, address) for entry in BLOCKS)
    payload = word(TOTAL | MEM_SIZE) + entries + END
    assert memory(payload, streams.capabilities("x-ignore-shared")).reached_eof


def test_no_memory_at_all() -> None:
    assert memory(word(MEM_SIZE) + END).reached_eof


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "kind", "message"),
    [
        (word(HOOK), errors.UnsupportedStream, "RDMA"),
        (word(HOOK | CONTINUE), errors.UnsupportedStream, "RDMA"),
        (word(0), errors.StreamError, "unknown combination of flags 0x0"),
        (word(0x01), errors.StreamError, "flags 0x1"),
        (word(0x400), errors.StreamError, "flags 0x400"),
        (word(CONTINUE), errors.StreamError, "flags 0x20"),
        (word(PAGE_FLAG | ZERO_FLAG), errors.StreamError, "flags 0xa"),
        (word(EOS | CONTINUE), errors.StreamError, "flags 0x30"),
        (word(XBZRLE | CONTINUE) + b"\2\0\3abc", errors.StreamError, "encoding 2"),
        (word(XBZRLE | CONTINUE) + b"\1\x10\1" + bytes(PAGE + 1), errors.StreamError, "4097 bytes"),
        (word(COMPRESS | CONTINUE) + b"\xff\xff\xff\xff", errors.StreamError, "4294967295 bytes"),
        (word(TOTAL | MEM_SIZE) + block("pc.ram", TOTAL + 1), errors.StreamError, "a RAM block of"),
        (word(TOTAL | MEM_SIZE) + block("pc.ram", (1 << 64) - 1), errors.StreamError, "a RAM block of"),
    ],
)
def test_memory_that_is_refused(payload: bytes, kind: type[errors.StreamError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        memory(payload)
    assert type(caught.value) is kind


@pytest.mark.parametrize("version", [0, 3, 5])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(errors.UnsupportedStream, match=f"version {version}, not 4"):
        memory(END, version=version)


def test_mapped_ram_is_refused() -> None:
    with pytest.raises(errors.UnsupportedStream, match="mapped-ram"):
        memory(END, streams.capabilities("mapped-ram"))
