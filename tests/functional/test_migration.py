# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations of disks that rest: every channel, backend and size, against the model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lab
import model
import pytest

import blkmig
from blkmig import errors

MIB = lab.MIB


@pytest.mark.parametrize("kind", lab.CHANNELS)
@pytest.mark.parametrize("size", [512, 2 * MIB + 1000, 5 * MIB + 1536])
def test_round_trip_over_every_channel(tmp_path: Path, kind: str, size: int) -> None:
    content = lab.random_disk(random.Random(size), size)
    source = lab.sparse_file(tmp_path / "source.raw", content)
    with blkmig.FileBackend(source, name="drive0") as disk:
        sent, received = lab.migrate(tmp_path, kind, [disk], {"drive0": tmp_path / "target.raw"})
    assert (tmp_path / "target.raw").read_bytes() == content
    assert sent.status == received.status == "completed"
    assert received.disks["drive0"].size == size
    assert received.disks["drive0"].size_source == "stream"
    assert received.percent == 100
    assert sent.transferred == received.transferred


@pytest.mark.parametrize("size", lab.SIZES)
@pytest.mark.parametrize("source_kind", ["file", "memory"])
@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("zero_blocks", [True, False])
def test_round_trip_of_every_size(
    tmp_path: Path, size: int, source_kind: str, reading: str, zero_blocks: bool
) -> None:
    content = lab.random_disk(random.Random(size + 1), size)
    source: blkmig.BlockBackend
    if source_kind == "file":
        source = blkmig.FileBackend(lab.sparse_file(tmp_path / "source.raw", content), name="d")
    else:
        source = blkmig.MemoryBackend(bytearray(content), name="d")
    target = bytearray(b"\xff" * size)
    with source, blkmig.MemoryBackend(target, name="d") as destination:
        lab.migrate(tmp_path, "unix", [source], {"d": destination}, reading=reading, zero_blocks=zero_blocks)
    assert target == content


@pytest.mark.parametrize("size", lab.SIZES)
def test_stream_is_what_the_model_reads(tmp_path: Path, size: int) -> None:
    content = lab.random_disk(random.Random(size + 2), size)
    with blkmig.FileBackend(lab.sparse_file(tmp_path / "s.raw", content), name="d") as disk:
        stream = model.parse(lab.record(tmp_path, [disk]))
    assert stream.disk("d", size) == content
    assert stream.sections[0] == "START"
    assert stream.sections[-1] == "END"
    assert stream.progress == sorted(set(stream.progress[:-1])) + stream.progress[-1:]
    assert stream.progress[-1] == 100
    blocks = stream.blocks("d")
    assert len(blocks) == len(set(blocks)) == -(-size // MIB)
    total_sectors = -(-size // 512)
    if total_sectors >= 2048:
        assert max(blocks) == total_sectors - 2048, "the last block ends where the disk ends"
    for record in stream.records:
        assert record.payload is None or record.payload.strip(b"\0"), "a zero block has no payload"
    assert stream.vmdescription is not None
    assert stream.vmdescription["blkmig"]["disks"] == [{"name": "d", "size": size, "resent": [0, 0]}]


def test_several_disks(tmp_path: Path) -> None:
    rng = random.Random(3)
    contents = {f"d{number}": lab.random_disk(rng, size) for number, size in enumerate(lab.SIZES)}
    disks: list[blkmig.BlockBackend] = [
        blkmig.MemoryBackend(bytearray(content), name=name) for name, content in contents.items()
    ]
    _, received = lab.migrate(tmp_path, "tcp", disks, {}, receive={"into": tmp_path / "into"})
    for name, content in contents.items():
        assert (tmp_path / "into" / f"{name}.raw").read_bytes() == content, name
    assert list(received.disks) == list(contents)


@pytest.mark.parametrize("content", [b"", b"x"], ids=["all zero", "one byte"])
def test_huge_sparse_disk_costs_nothing(tmp_path: Path, content: bytes) -> None:
    size = 1 << 40
    with blkmig.FileBackend(tmp_path / "s.raw", create_size=size, name="d") as disk:
        disk.pwrite(content, 123 * MIB + 7)
        sent, _ = lab.migrate(tmp_path, "unix", [disk], {"d": tmp_path / "t.raw"})
    target = tmp_path / "t.raw"
    assert target.stat().st_size == size
    assert target.stat().st_blocks * 512 <= 1 << 17
    assert sent.zero_blocks == size // MIB  # a block with a hole goes as zeros, and its data as a pack
    assert sent.packs == len(content)
    with target.open("rb") as file:
        file.seek(123 * MIB)
        assert file.read(16) == bytes(7) + content.ljust(9, b"\0")


def test_read_only_and_empty_disks_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "cd.raw").write_bytes(b"cd" * MIB)
    (tmp_path / "empty.raw").write_bytes(b"")
    data = bytearray(b"d" * MIB)
    with (
        blkmig.FileBackend(tmp_path / "cd.raw", read_only=True) as cd,
        blkmig.FileBackend(tmp_path / "empty.raw") as empty,
        blkmig.MemoryBackend(data, name="d") as disk,
    ):
        skipped: list[str] = []

        def drive(migration: blkmig.OutgoingMigration) -> None:
            skipped.extend(migration.skipped)
            migration.run()

        _, received = lab.migrate(tmp_path, "tcp", [cd, disk, empty], {"d": tmp_path / "t.raw"}, drive=drive)
    assert skipped == ["cd"], "C17: the description tells of the empty one, to those who want it"
    assert list(received.disks) == ["d"]


@pytest.mark.parametrize("machine_compat", [None, "2.2"])
def test_a_migration_of_no_disk_is_refused(tmp_path: Path, machine_compat: Any) -> None:
    """It ended as "completed", and nothing had moved. Where the stream can say so, a disk without bytes is one."""
    parameters = blkmig.MigrationParameters(machine_compat=machine_compat)
    disks = [lab.left_out()]
    if machine_compat:
        disks.append(blkmig.MemoryBackend(bytearray(), name="e"))
    for call in (
        lambda: blkmig.outgoing(disks, f"file:{tmp_path}/st", parameters).__enter__(),
        lambda: blkmig.migration.forecast(disks, parameters, seconds=0, bandwidth=1),
    ):
        with pytest.raises(errors.ParameterError, match="there is nothing to send: disk 'cd': it is read-only") as no:
            call()
        assert ("disk 'e': it has no bytes" in str(no.value)) == bool(machine_compat)
    assert not (tmp_path / "st").exists()
    blkmig.send([lab.left_out(), blkmig.MemoryBackend(bytearray(), name="e")], f"file:{tmp_path}/st")


@pytest.mark.parametrize("options", [{}, {"verify": True}, {"incremental": True}])
def test_a_stream_without_a_disk_is_no_success(tmp_path: Path, options: dict[str, Any]) -> None:
    """A7: nothing received is not success, whatever was asked for; it is said at the stream's start."""
    stream = lab.record_without_disks(tmp_path, digests=True)
    for data in (stream, stream.replace(b"\0\0\0\0\0\0\4\2", b"\0\0\0\0\0\0\0\2", 1)):  # without the mark, too
        (tmp_path / "stream").write_bytes(data)
        with pytest.raises(errors.IncompleteMigration, match="holds no disk") as caught:
            blkmig.receive(f"file:{tmp_path}/stream", into=tmp_path / "into", **options)
        assert caught.value.exit_code == 3
        assert not (tmp_path / "into").exists()


def test_an_empty_disk_arrives_as_one(tmp_path: Path) -> None:
    """C17: the description names it, with no bytes; where nobody wants it, that is said."""
    (tmp_path / "e.raw").touch()
    with blkmig.FileBackend(tmp_path / "e.raw") as empty, blkmig.MemoryBackend(bytearray(b"a" * MIB), name="a") as disk:
        stream = lab.record(tmp_path, [empty, disk], digests=True)
    (tmp_path / "stream").write_bytes(stream)
    for options in ({"verify": True}, {}):
        targets = {"e": tmp_path / f"t{len(options)}.raw", "a": tmp_path / f"u{len(options)}.raw"}
        received = blkmig.receive(f"file:{tmp_path}/stream", targets, **options)
        assert [disk.size for disk in received.disks.values()] == [MIB, 0]
        assert targets["e"].read_bytes() == b""
        assert targets["a"].read_bytes() == b"a" * MIB
    received = blkmig.receive(f"file:{tmp_path}/stream", {"a": tmp_path / "v.raw"})
    assert "disk 'e' has no bytes" in received.notes[0]


def test_stepwise_as_in_the_readme(tmp_path: Path) -> None:
    content = lab.random_disk(random.Random(4), 9 * MIB)
    steps = []

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while migration.pending() > migration.threshold_size():
            steps.append(migration.pending())
            migration.iterate()
        migration.complete()

    with blkmig.MemoryBackend(bytearray(content), name="d") as disk:
        lab.migrate(tmp_path, "tcp", [disk], {"d": tmp_path / "t.raw"}, drive=drive)
    assert (tmp_path / "t.raw").read_bytes() == content
    assert steps[0] >= 9 * MIB


def test_digests_verify(tmp_path: Path) -> None:
    content = lab.random_disk(random.Random(5), 5 * MIB + 1000)
    with blkmig.FileBackend(lab.sparse_file(tmp_path / "s.raw", content), name="d") as disk:
        _, received = lab.migrate(
            tmp_path, "tcp", [disk], {"d": tmp_path / "t.raw"}, receive={"verify": True}, digests=True
        )
        assert received.disks["d"].verified
        with pytest.raises(errors.MigrationError, match="said, when everything was sent, that it has failed"):
            lab.migrate(tmp_path, "tcp", [disk], {"d": tmp_path / "u.raw"}, receive={"verify": True})


def test_digest_catches_a_wrong_byte(tmp_path: Path) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"abc" * MIB), name="d")], digests=True)
    stream = stream.replace(b"abcabc", b"abXabc", 1)
    (tmp_path / "stream").write_bytes(stream)
    with pytest.raises(errors.ContentMismatch) as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"}, verify=True)
    assert caught.value.device == "d"
    assert caught.value.exit_code == 3


def test_shared_base_sends_the_top_layer_only(tmp_path: Path) -> None:
    size = 6 * MIB + 512
    base = lab.random_disk(random.Random(6), size)
    (tmp_path / "base.raw").write_bytes(base)
    with (tmp_path / "top.raw").open("wb") as file:
        file.truncate(size)
        for offset, data in ((MIB + 4096, b"x" * 4096), (size - 512, b"y" * 512)):
            file.seek(offset)
            file.write(data)
    expected = bytearray(base)
    expected[MIB + 4096 : MIB + 8192] = b"x" * 4096
    expected[size - 512 :] = b"y" * 512
    (tmp_path / "t.raw").write_bytes(base)
    with blkmig.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw", name="d") as disk:
        sent, _ = lab.migrate(
            tmp_path, "tcp", [disk], {"d": tmp_path / "t.raw"}, receive={"incremental": True}, shared_base=True
        )
        assert sent.blocks == 2
        assert (tmp_path / "t.raw").read_bytes() == expected
        (tmp_path / "stream").write_bytes(lab.record(tmp_path, [disk], shared_base=True))
        with pytest.raises(errors.IncompleteMigration, match="--incremental"):
            blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "new.raw"})


def test_two_migrations_at_once(tmp_path: Path) -> None:
    contents = [lab.random_disk(random.Random(seed), 8 * MIB) for seed in (7, 8)]
    disks = [blkmig.MemoryBackend(bytearray(content), name="d") for content in contents]
    receivers = [lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / f"{n}.raw"}) for n in range(2)]
    with (
        blkmig.outgoing([disks[0]], receivers[0].uri) as one,
        blkmig.outgoing([disks[1]], receivers[1].uri) as other,
    ):
        one.iterate()
        other.iterate()
        one.run()
        other.run()
    for number, receiver in enumerate(receivers):
        receiver.result()
        assert (tmp_path / f"{number}.raw").read_bytes() == contents[number]


def test_one_disk_in_two_migrations_is_refused(tmp_path: Path) -> None:
    with blkmig.MemoryBackend(bytearray(MIB), name="d") as disk:
        with blkmig.outgoing([disk], f"file:{tmp_path}/one"):
            with pytest.raises(errors.DeviceBusy) as caught, blkmig.outgoing([disk], f"file:{tmp_path}/two"):
                pass
            assert caught.value.exit_code == 6
        lab.record(tmp_path, [disk])


def test_two_disks_of_one_name_are_refused(tmp_path: Path) -> None:
    disks: list[blkmig.BlockBackend] = [blkmig.MemoryBackend(bytearray(512), name="d") for _ in range(2)]
    with pytest.raises(errors.ParameterError, match="two disks are called 'd'"):
        lab.record(tmp_path, disks)
    for disk in disks:
        lab.record(tmp_path, [disk])  # both are free again


def test_both_ends_tell_the_sizes_of_disks_that_are_no_whole_sectors(tmp_path: Path) -> None:
    """The sender said 1.0 KiB of a disk of 700 bytes, which its forecast and the receiver did not."""
    disks = [blkmig.MemoryBackend(bytearray(b"x" * size), name=f"d{size}") for size in (0, 1, 700, 1 << 20)]
    sent = blkmig.send(disks, f"file:{tmp_path}/stream")
    targets = {disk.name: blkmig.MemoryBackend(bytearray(disk.size), name=disk.name) for disk in disks}
    received = blkmig.receive(f"file:{tmp_path}/stream", targets)
    assert sent.disk_bytes == sum(disk.size or 0 for disk in received.disks.values()) == 701 + (1 << 20)
