# SPDX-License-Identifier: GPL-2.0-or-later
"""What passes where the target holds old copies, read by who knows docs/wire/blkmig.md and nothing of the package."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lab
import pytest
import section_reader
import tapped

import blkmig
from blkmig.block import askwords, extras

MIB = lab.MIB
PAGE = Path(__file__).parents[2] / "docs" / "wire" / "blkmig.md"


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("seed", range(12))
def test_streams_and_answers(tmp_path: Path, seed: int, reading: str) -> None:
    rng = random.Random(seed)
    disks: list[blkmig.MemoryBackend] = []
    old: dict[str, bytes] = {}
    for number in range(rng.choice((1, 2))):
        contents = lab.random_disk(rng, rng.choice((*lab.SIZES, 9 * MIB)))
        disks.append(blkmig.MemoryBackend(bytearray(contents), name=f"d{number}"))
        before = bytearray(contents[: rng.choice((len(contents), rng.randrange(len(contents) + 1)))])
        for _ in range(rng.randrange(5)):
            at, nbytes = rng.randrange(len(before) + 1), rng.choice((1, 5000, 300_000))
            before[at : at + nbytes] = rng.randbytes(len(before[at : at + nbytes]))
        (tmp_path / f"d{number}").write_bytes(before)
        old[f"d{number}"] = bytes(before)
    targets = {name: tmp_path / name for name in old}
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", targets, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri)
    parameters = blkmig.MigrationParameters(reading="inline" if reading == "inline" else "parallel")
    with blkmig.outgoing([*disks], tap.uri, parameters) as migration:
        for _ in range(3):
            migration.iterate()
            for _ in range(rng.randrange(20)):
                disk = rng.choice(disks)
                data = rng.randbytes(min(disk.size, rng.choice((1, 4096, 300_000))))
                disk.pwrite(data, rng.randrange(disk.size - len(data) + 1))
        migration.complete()
    tap.join()
    receiver.result()
    stream = section_reader.SectionReader(bytes(tap.stream), old=old, answers=tap.digests()).read()
    stream.check_description()
    assert stream.asks == len(tap.digests())
    for disk in disks:
        assert stream.disks[disk.name].image == disk.pread(0, disk.size) == targets[disk.name].read_bytes()


def test_the_example() -> None:
    text = PAGE.read_text().partition("<!-- example: same -->")[2].partition("```text\n")[2].partition("```")[0]
    wanted = b"".join(bytes.fromhex(row[:23]) for row in text.splitlines())
    ask = extras.extra(extras.ExtraKind.ASK, askwords.Ask(1, 0, 20, ((0, 3),)).encode())
    assert ask + extras.extra(extras.ExtraKind.SAME, askwords.encode_same(0, [(0, 2 * MIB)])) == wanted
    assert struct.unpack_from(">Q", wanted) == (3 << 9 | 0x100,)
