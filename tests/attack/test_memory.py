# SPDX-License-Identifier: GPL-2.0-or-later
"""C4: memory is bounded by a constant, whatever a stream says: below 100 MiB, the interpreter included.

Each stream is fed through a pipe to a process of its own, which tells its largest resident size. (That of getrusage
begins with the size of whoever started it.)
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import pytest
import savevm_streams as streams

from blkmig import _core
from blkmig.block import coverage, wire

MIB = 1 << 20
LIMIT = 100 * MIB
SECONDS = 120
MEMORY = Path("/dev/shm")
BEGIN = streams.HEADER + streams.configuration()
START = streams.start(1, "block")

PROGRAM = """
import sys
import blkmig
from blkmig import channel, migration
try:
    if sys.argv[1] == "inspect":
        with channel.listen("-") as listener:
            migration.as_json(migration.inspect(listener.accept(timeout=None)))
    else:
        blkmig.receive("-", into=sys.argv[2], verify=sys.argv[1] == "verify")
    outcome = ""
except blkmig.MigrationError as error:
    outcome = f"{type(error).__name__}: {error}"
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, outcome)
"""


def fed(what: str, pieces: Iterator[bytes]) -> tuple[int, str]:
    """Let a process receive, verify or inspect the stream; return its largest resident size and its error."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as into:
        words = [sys.executable, "-c", PROGRAM, what, into]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False, env=command.environment()
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            feeder = threading.Thread(target=feed, args=(process.stdin, pieces))
            feeder.start()
            killer = threading.Timer(SECONDS, process.kill)
            killer.start()
            said = process.stdout.read().decode()
            killer.cancel()
            feeder.join()
    resident, _, outcome = said.strip().partition(" ")
    return int(resident), outcome


def feed(pipe: object, pieces: Iterator[bytes]) -> None:
    """Write all that the process takes."""
    try:
        with pipe:  # type: ignore[attr-defined]
            for piece in pieces:
                pipe.write(piece)  # type: ignore[attr-defined]
    except BrokenPipeError:
        pass


def record(name: bytes, sector: int, *, zero: bool = True) -> bytes:
    """Return one record, without its payload."""
    return struct.pack(">QB", sector << 9 | (9 if zero else 1), len(name)) + name


def described(disks: list[dict[str, object]]) -> bytes:
    """Return the end of a stream from an old blkmig."""
    about = {"version": 1, "incremental": False, "disks": disks}
    return streams.EOF + streams.description(json.dumps({"blkmig": about}).encode())


def many_disks(count: int = 256, blocks: int = 6) -> Iterator[bytes]:
    """Each disk holds data, one after the other."""
    payload = b"x" * 4096 + bytes(MIB - 4096)
    yield BEGIN + START + struct.pack(">BI", 2, 1)
    for number in range(count):
        for block in range(blocks):
            yield record(b"d%d" % number, block * 2048, zero=False)
            yield payload
    yield streams.EOS + streams.footer(1) + streams.end(1)
    yield described([{"name": f"d{number}", "size": blocks * MIB} for number in range(count)])


def far_blocks() -> Iterator[bytes]:
    """Every disk has a block just below 64 TiB, and blocks all over."""
    yield BEGIN + START + struct.pack(">BI", 2, 1)
    for number in range(256):
        for page in range(1, 2048, 8):
            yield record(b"d%d" % number, (page << 15) * 2048)
    yield streams.EOS + streams.footer(1) + streams.end(1) + described([])


def every_second_block(nblocks: int) -> Iterator[bytes]:
    """Half of a huge disk comes, and the other half is missing."""
    yield BEGIN + START + struct.pack(">BI", 2, 1)
    for start in range(0, nblocks, 8192):
        yield b"".join(record(b"d", block * 2048) for block in range(start, start + 8192, 2))
    yield streams.EOS + streams.footer(1) + streams.end(1) + described([{"name": "d", "size": nblocks * MIB}])


def small_objects(text: bytes, *, behind_devices: bool = False) -> Iterator[bytes]:
    """A description of 8 MiB of tiny things."""
    yield BEGIN + START + struct.pack(">BI", 2, 1) + record(b"d", 0) + streams.EOS + streams.footer(1) + streams.end(1)
    if behind_devices:
        yield streams.start(9, "timer", bytes(24), kind=streams.FULL)
    body = b'{"devices":[' + b",".join([text] * (((8 << 20) - 32) // (len(text) + 1))) + b"]}"
    yield streams.EOF + streams.description(body)


def distinct_keys() -> Iterator[bytes]:
    """An object of a million keys."""
    yield BEGIN + START + streams.end(1) + streams.EOF
    yield streams.description(b"{" + b",".join(b'"%x":1' % number for number in range(800_000)) + b"}")


def section_ids() -> Iterator[bytes]:
    """One section under thousands of ids, and every command that there can be."""
    yield BEGIN
    for number in range(1, 30_000):
        yield streams.start(number, "block") + streams.command(number + 100)
    yield streams.end(29_999) + streams.EOF + streams.EMPTY_DESCRIPTION


def long_configuration() -> Iterator[bytes]:
    """As much as the configuration section may claim."""
    names = streams.capabilities(*("x" * 255 for _ in range(256)))
    yield streams.HEADER + streams.configuration("m" * 4096, names) + START + streams.end(1)
    yield streams.EOF + streams.EMPTY_DESCRIPTION


def empty_sections() -> Iterator[bytes]:
    """Hundreds of thousands of sections with nothing in them."""
    yield BEGIN + START
    piece = streams.part(1) * 1000
    for _ in range(150):
        yield piece
    yield streams.end(1) + streams.EOF + streams.EMPTY_DESCRIPTION


STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {
    "disks": lambda: many_disks(blocks=5),
    "far": far_blocks,
    "second": lambda: every_second_block(1 << 18),
    "objects": lambda: small_objects(b"{}"),
    "pairs": lambda: small_objects(b'{"a":1}'),
    "lists": lambda: small_objects(b"[]"),
    "strings": lambda: small_objects(b'"ab"'),
    "devices": lambda: small_objects(b"{}", behind_devices=True),
    "fields": lambda: small_objects(b'{"name":"a","size":1}', behind_devices=True),
    "keys": distinct_keys,
    "ids": section_ids,
    "configuration": long_configuration,
    "sections": empty_sections,
}


@pytest.mark.parametrize("what", ["receive", "inspect"])
@pytest.mark.parametrize("name", STREAMS)
def test_memory_is_bounded_whatever_the_stream_says(name: str, what: str) -> None:
    """C4."""
    resident, outcome = fed(what, STREAMS[name]())
    assert resident < LIMIT, f"{resident >> 20} MiB; {outcome}"


@pytest.mark.parametrize("what", ["receive", "inspect"])
def test_every_second_block_of_two_tebibytes(what: str, is_long: bool) -> None:
    """C4, as it was found; it takes its time."""
    if not is_long:
        pytest.skip("takes long: --long")
    resident, outcome = fed(what, every_second_block(1 << 21))
    assert resident < LIMIT, f"{resident >> 20} MiB; {outcome}"


def test_missing_blocks_are_listed_up_to_a_number() -> None:
    """C4: of a huge disk half of which is missing, ranges are listed to a bound, and blocks counted."""
    bits = coverage.BlockCoverage("d", coverage.MAX_INFERRED_BYTES)
    for block in range(0, 1 << 15, 2):
        bits.add(bits.check(block * 2048, 1, 0), 1)
    assert len(bits.missing(1 << 35)) == coverage.MAX_RANGES
    assert bits.count_missing(1 << 35) == 1 << 14
    assert bits.count_missing(1 << 36) == (1 << 14) + (1 << 15)


def test_the_marks_of_too_many_disks_are_refused() -> None:
    """A stream says in ten bits how many disks it has."""
    assert wire.description_marks(3, 1) == wire.IS_DESCRIBED | 3 << wire.COUNT_SHIFT | 1 << wire.EMPTY_SHIFT
    with pytest.raises(ValueError, match="1023 disks"):
        wire.description_marks(1024, 0)
    assert _core.BLOCK_SIZE == MIB
