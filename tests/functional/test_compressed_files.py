# SPDX-License-Identifier: GPL-2.0-or-later
"""A file whose payloads are compressed: looked at by its heads alone, cut anywhere, received from any offset."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import command
import lab
import pytest

import blkmig
from blkmig import channel, errors, migration
from blkmig.block import extras

MIB = lab.MIB
ZSTD = struct.pack(">QI", extras.ExtraKind.ZSTD << 9 | 0x100, 4)


def disk_of(seed: int, nblocks: int, rest: int = 0) -> blkmig.MemoryBackend:
    """Return a disk of blocks of text, of noise, and of zeros."""
    rng = random.Random(seed)
    kinds = (rng.randbytes(MIB // 2).hex().encode(), rng.randbytes(MIB), bytes(MIB), b"abc " * (MIB // 4))
    content = b"".join(rng.choice(kinds) for _ in range(nblocks)) + rng.randbytes(rest)
    return blkmig.MemoryBackend(bytearray(content), name="d")


def recorded(folder: Path, disk: blkmig.MemoryBackend, **chosen: Any) -> bytes:
    """Return a compressed stream with a dirty round, which is also in the file "recorded"."""
    rng = random.Random(1)

    def drive(outgoing: blkmig.OutgoingMigration) -> None:
        outgoing.iterate()
        for _ in range(20):
            disk.pwrite(rng.randbytes(2048).hex().encode(), rng.randrange(disk.size - 4096))
        outgoing.complete()

    return lab.record(folder, [disk], drive, format="blkmig", compress="zstd", **chosen)


def looked_at(uri: str) -> migration.Inspection:
    with channel.listen(uri) as listener:
        f = listener.accept(timeout=None)
    try:
        return migration.inspect(f)
    finally:
        f.abort()


def nbytes_read() -> int:
    """Return how much this process has read so far, from anything."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])


@pytest.mark.parametrize("compress", ["zstd", "off"])
def test_payloads_are_not_read(tmp_path: Path, compress: str) -> None:
    """Of a block little more than its head, whether it is compressed or not."""
    disk = blkmig.MemoryBackend(bytearray(random.Random(1).randbytes(16 * MIB).hex().encode()), name="d")
    data = lab.record(tmp_path, [disk], format="blkmig", compress=compress)
    assert (ZSTD in data) == (compress == "zstd")
    looked_at(f"file:{tmp_path}/recorded")  # what is loaded for it is loaded now
    before = nbytes_read()
    found = looked_at(f"file:{tmp_path}/recorded")
    assert nbytes_read() - before < len(data) // 6
    assert found.verdict == "complete"
    assert found.disks[0].statistics.blocks == 32


@pytest.mark.parametrize("seed", range(4))
def test_a_file_says_what_a_pipe_does(tmp_path: Path, seed: int) -> None:
    disk = disk_of(seed, 6, 1536)
    data = recorded(tmp_path, disk, digests=bool(seed % 2))
    said = [
        command.run("inspect", "--json", f"{tmp_path}/recorded"),
        command.run("inspect", "--json", f"exec:cat {tmp_path}/recorded"),
    ]
    assert [each.exit_code for each in said] == [0, 0], said
    of_file, of_pipe = (json.loads(each.stdout) for each in said)
    assert of_file == of_pipe
    assert of_file["container"]["nbytes"] == len(data)
    assert of_file["disks"][0]["saved_by_compression"] > 0


def test_in_the_middle_of_a_file(tmp_path: Path) -> None:
    disk = disk_of(3, 5, 512)
    data = recorded(tmp_path, disk)
    (tmp_path / "behind").write_bytes(bytes(4096) + data)
    uri = f"file:{tmp_path}/behind,offset=4096"
    assert looked_at(uri).verdict == "complete"
    blkmig.receive(uri, {"d": tmp_path / "t.raw"})
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)


@pytest.mark.parametrize("seed", range(3))
def test_cut_anywhere(tmp_path: Path, seed: int) -> None:
    """At, and around, each frame's begin and end, and anywhere: never complete for who looks, or who receives."""
    rng = random.Random(seed)
    data = recorded(tmp_path, disk_of(seed, 4, 512))
    places = {rng.randrange(len(data)) for _ in range(20)} | {0, len(data) - 1}
    at = data.find(ZSTD)
    assert at > 0
    while at >= 0:
        (nbytes,) = struct.unpack_from(">I", data, at + len(ZSTD))
        end = at + len(ZSTD) + 4 + 10 + nbytes
        places |= {at, at + len(ZSTD) + 4, end - nbytes, end - nbytes + 18, end - 1, end}
        at = data.find(ZSTD, at + 1)
    for place in rng.sample(sorted(place for place in places if place < len(data)), min(len(places), 40)):
        (tmp_path / "cut").write_bytes(data[:place])
        found = looked_at(f"file:{tmp_path}/cut")
        assert found.verdict in ("truncated", "cancelled"), f"seed {seed}, cut at {place} of {len(data)}"
        with pytest.raises(errors.MigrationError):
            blkmig.receive(f"file:{tmp_path}/cut", {"d": tmp_path / "t.raw"})
        assert not (tmp_path / "t.raw").exists()


def test_a_frame_whose_head_is_wrong(tmp_path: Path) -> None:
    """Who looks sees that without a library; what is wrong inside, only who receives does."""
    disk = disk_of(5, 3)
    data = bytearray(recorded(tmp_path, disk))
    start = data.index(ZSTD) + len(ZSTD) + 4 + 10
    for at, verdict in ((0, "error"), (4, "error"), (6, "error"), (200, "complete")):
        damaged = bytearray(data)
        damaged[start + at] ^= 3
        (tmp_path / "damaged").write_bytes(damaged)
        assert looked_at(f"file:{tmp_path}/damaged").verdict == verdict, at
        with pytest.raises(errors.StreamError, match="compressed payload cannot be used"):
            blkmig.receive(f"file:{tmp_path}/damaged", {"d": tmp_path / "t.raw"})
        assert not (tmp_path / "t.raw").exists()
