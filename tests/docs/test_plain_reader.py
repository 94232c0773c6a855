# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader that knows docs/wire and nothing of the package sees in each stream what ``blkmig inspect --json`` does."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import golden_streams
import lab
import model
import pytest

import blkmig
from blkmig import block, cli

ENDED = golden_streams.with_verdict("complete", "incremental", "lossy")


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    cli.main(["inspect", "--json", str(path)])
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def container_of(stream: model.Stream, nbytes: int) -> dict[str, Any]:
    """Return what an inspection says of the container."""
    numbers = {1: "OPEN_RETURN_PATH", 2: "PING", 3: "POSTCOPY_ADVISE"}
    names = [numbers[number] for number in stream.commands]
    return {
        "nbytes": nbytes,
        "version": 3,
        "machine": stream.machine,
        "capabilities": stream.capabilities,
        "page_size": 4096,
        "footers": stream.has_footers,
        "commands": {name: names.count(name) for name in names},
        "reached_eof": stream.reached_eof,
        "vmdescription": stream.vmdescription is not None,
        "device_state_nbytes": stream.device_state,
        "behind": None,
        "sections": [vars(section) for section in stream.live],
    }


def disks_of(stream: model.Stream) -> dict[str, dict[str, Any]]:
    """Return what an inspection says of each disk that came, but for what it thinks of it."""
    about = (stream.vmdescription or {}).get("blkmig", {"disks": []})
    sizes = {entry["name"]: entry["size"] for entry in about["disks"]}
    found = {}
    for name in dict.fromkeys(record.name for record in stream.records):
        records = [record for record in stream.records if record.name == name]
        came = {record.block for record in records}
        size = sizes.get(name, 512 * (max(record.sector for record in records) + 2048))
        found[name] = {
            "size": size,
            "size_source": "stream" if name in sizes else "inferred",
            "blocks": len(records),
            "zero_blocks": sum(record.payload is None for record in records),
            "resent_blocks": len(records) - len(came),
            "missing_blocks": -(-size // model.MIB) - len(came),
        }
    return found


def check_agreement(data: bytes, found: dict[str, Any]) -> model.Stream:
    """Compare what the plain reader sees with an inspection."""
    stream, nbytes = model.read(data)
    assert found["container"] == container_of(stream, nbytes)
    assert found["percent"] == (stream.progress or [0])[-1]
    disks = disks_of(stream)
    assert [disk["name"] for disk in found["disks"]] == list(disks)
    assert [{key: disk[key] for key in disks[disk["name"]]} for disk in found["disks"]] == list(disks.values())
    return stream


@pytest.mark.parametrize("name", ENDED)
def test_golden_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    found = inspected(path, capsys)
    stream = check_agreement(golden.stream, found)
    assert not stream.marks
    assert not stream.is_sealed
    if golden.verdict == "complete" and not golden.entry.get("guest_writes"):
        for disk in golden.disks:
            if disk.seed is not None:
                assert stream.disk(disk.name, disk.size) == disk.contents


@pytest.mark.parametrize(("name", "error"), [("cancelled", model.CutShort), ("read-error", AssertionError)])
def test_golden_streams_that_were_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, error: type[Exception]
) -> None:
    golden = golden_streams.manifest()[name]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    assert inspected(path, capsys)["verdict"] == golden.verdict
    with pytest.raises(error):
        model.read(golden.stream)


@pytest.mark.parametrize("granularity", [4096, 65536, model.MIB])
@pytest.mark.parametrize("size", [3 * model.MIB + 1000, model.MIB - 100])
def test_a_fresh_stream_of_the_section_blkmig(tmp_path: Path, size: int, granularity: int) -> None:
    """What the reader makes of table, blocks and packs is what the disks hold."""
    rng = random.Random(8)
    contents = {"a": lab.random_disk(rng, size), "b": b"", "c": rng.randbytes(2 * model.MIB)}
    disks = [blkmig.MemoryBackend(bytearray(content), name=name) for name, content in contents.items()]
    parameters = blkmig.MigrationParameters(format="blkmig", granularity=granularity)
    with blkmig.outgoing(disks, f"file:{tmp_path}/stream", parameters) as migration:
        while not lab.sent(migration).bulk_completed:
            migration.iterate()
        for _ in range(3):
            for disk in (disks[0], disks[2]):
                disk.pwrite(rng.randbytes(700), rng.randrange(disk.size - 700))
                disk.pwrite(b"the end", disk.size - 7)
            migration.iterate()
        migration.run()
    stream = model.parse((tmp_path / "stream").read_bytes())
    after = {disk.name: disk.pread(0, disk.size) for disk in disks}
    assert {name: stream.disk(name, len(disk)) for name, disk in after.items()} == after
    sizes = [("a", size, granularity, 0), ("c", 2 * model.MIB, granularity, 0), ("b", 0, model.MIB, 0)]
    assert stream.table == sizes
    assert any(record.extents for record in stream.records) == (granularity < model.MIB)
    assert (stream.flushes, stream.said_sizes(), stream.marks & ~1) == ([], {}, 0)
    assert stream.is_sealed


@pytest.mark.parametrize("digests", [False, True])
def test_a_fresh_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str], digests: bool) -> None:
    rng = random.Random(7)
    contents = {"a": lab.random_disk(rng, 3 * model.MIB + 1000), "b": rng.randbytes(1000), "c": bytes(2 * model.MIB)}
    disks = [blkmig.MemoryBackend(bytearray(content), name=name) for name, content in contents.items()]
    with blkmig.outgoing(disks, f"file:{tmp_path}/stream", blkmig.MigrationParameters(digests=digests)) as migration:
        migration.iterate()
        disks[0].pwrite(b"again", 0)
        disks[2].pwrite_zeroes(model.MIB, 5)
        migration.run()
    data = (tmp_path / "stream").read_bytes()
    stream = check_agreement(data, inspected(tmp_path / "stream", capsys))
    assert stream.is_sealed
    assert stream.marks & 2
    assert (stream.marks >> 2 & 0x3FF, stream.marks >> 12 & 0x3FF) == (3, 0)
    assert stream.said_sizes() == {zlib.crc32(name.encode()): len(content) for name, content in contents.items()}
    after = {disk.name: disk.pread(0, disk.size) for disk in disks}
    assert {name: stream.disk(name, len(disk)) for name, disk in after.items()} == after
    assert stream.vmdescription is not None
    about = stream.vmdescription["blkmig"]
    assert {entry["name"]: entry["size"] for entry in about["disks"]} == {name: len(after[name]) for name in after}
    assert {entry["name"]: entry["resent"] for entry in about["disks"]} == {
        name: resent(stream, name) for name in after
    }
    if digests:
        assert about["digest"] == model.digest_of_all(after)
        assert {entry["name"]: entry["digest"] for entry in about["disks"]} == {
            name: model.digest(disk) for name, disk in after.items()
        }


@pytest.mark.parametrize("nblocks", [0, 1, 2, 256, 257, 65536, 65537])
def test_trees(nblocks: int) -> None:
    leaves = random.Random(nblocks).randbytes(16 * nblocks)
    pieces = [leaves[start : start + 16] for start in range(0, len(leaves), 16)]
    assert block.tree_of(leaves) == model.tree_digest(pieces)


def resent(stream: model.Stream, name: str) -> list[int]:
    """Return how many blocks of a disk came again, and the sum of what they add."""
    seen: set[int] = set()
    terms = []
    for record in stream.records:
        if record.name == name:
            if record.block in seen:
                terms.append(2 * record.block + 2 + (record.payload is None))
            seen.add(record.block)
    return [len(terms), sum(terms)]
