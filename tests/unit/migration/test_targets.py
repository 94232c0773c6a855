# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver must not call complete: targets that are too small, lack their base, or never got a disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import channel, errors, savevm, stats

MIB = lab.MIB


def received_from(
    tmp_path: Path, stream: bytes, targets: dict[str, object], **options: object
) -> stats.IncomingStatistics:
    """Receive a recorded stream."""
    path = tmp_path / "stream"
    path.write_bytes(stream)
    return blkmig.receive(f"file:{path}", targets, **options)  # type: ignore[arg-type]


def empty_stream(tmp_path: Path) -> bytes:
    """Return a stream of a guest's migration without its disks."""
    state = savevm.SaveState()
    path = tmp_path / "empty"
    f = channel.connect(f"file:{path}", timeout=1)
    state.state_header(f)
    state.state_end(f)
    f.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("size", "target_size"),
    [(3 * MIB, 3 * MIB - 1), (3 * MIB, 2 * MIB + 512), (600 << 10, 500 << 10), (3 * MIB + 1000, 3 * MIB + 512)],
)
def test_target_that_ends_within_the_last_block(tmp_path: Path, size: int, target_size: int) -> None:
    """All blocks begin inside the target, so each looks as if it had slack behind its end."""
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * size), name="d")])
    (tmp_path / "t.raw").write_bytes(bytes(target_size))
    with pytest.raises(errors.MigrationError):
        received_from(tmp_path, stream, {"d": tmp_path / "t.raw"})


@pytest.mark.parametrize("size", [1000, 2 * MIB, 2 * MIB + 1000])
def test_larger_targets_are_taken(tmp_path: Path, size: int) -> None:
    content = b"y" * size
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(content), name="d")])
    for extra in (0, 1, 511, 512, MIB):
        target = bytearray(size + extra)
        received_from(tmp_path, stream, {"d": blkmig.MemoryBackend(target, name="t")})
        assert target == content + bytes(extra), extra


def overlay(tmp_path: Path) -> blkmig.FileBackend:
    (tmp_path / "base.raw").write_bytes(b"b" * 3 * MIB)
    (tmp_path / "top.raw").touch()
    os.truncate(tmp_path / "top.raw", 3 * MIB)
    return blkmig.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw", name="d")


@pytest.mark.parametrize("exists", [True, False])
def test_incremental_needs_the_base(tmp_path: Path, exists: bool) -> None:
    """A new target would hold the top layer alone, with zeros where the base belongs."""
    with overlay(tmp_path) as disk:
        disk.pwrite(b"new", MIB)
        stream = lab.record(tmp_path, [disk], shared_base=True)
    target = tmp_path / "t.raw"
    if exists:
        target.touch()
    with pytest.raises(errors.DeviceError, match="base"):
        received_from(tmp_path, stream, {"d": target}, incremental=True)
    assert target.exists() == exists


def test_incremental_stream_without_a_block_of_the_disk(tmp_path: Path) -> None:
    with overlay(tmp_path) as disk:
        stream = lab.record(tmp_path, [disk], shared_base=True)
    target = tmp_path / "t.raw"
    target.write_bytes(b"b" * 3 * MIB)
    result = received_from(tmp_path, stream, {"d": target}, incremental=True)
    assert result.disks["d"].blocks == 0
    with pytest.raises(errors.MigrationError):
        received_from(tmp_path, stream, {"d": target, "other": tmp_path / "u.raw"}, incremental=True)


@pytest.mark.parametrize("where", ["name", "index", "folder"])
def test_a_stream_without_disks_is_not_complete(tmp_path: Path, where: str) -> None:
    """A guest that was migrated without its disks must not look like a copy of them."""
    for stream in (lab.record_without_disks(tmp_path), empty_stream(tmp_path)):
        if where == "folder" and b"block" in stream:
            continue  # it says that there are none: then none is what was asked for
        with pytest.raises(errors.IncompleteMigration) as caught:
            received_from(
                tmp_path,
                stream,
                {"d": tmp_path / "t.raw"} if where == "name" else {},
                into=tmp_path / "into" if where == "folder" else None,
                by_index={0: tmp_path / "t.raw"} if where == "index" else None,
            )
        assert caught.value.exit_code == 3


def test_fewer_disks_than_targets(tmp_path: Path) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(MIB), name="d")])
    with pytest.raises(errors.IncompleteMigration, match="number 1"):
        received_from(tmp_path, stream, {}, by_index={0: tmp_path / "t.raw", 1: tmp_path / "u.raw"})


class Incoming:
    """Runs a receiver whose callback raises in one state."""

    def __init__(self, uri: str, target: object, status: str) -> None:
        self.status = status
        self.seen: list[str] = []
        self.migration = blkmig.incoming(uri, {"d": target}, on_progress=self.on_progress)  # type: ignore[dict-item]

    def on_progress(self, event: stats.Event) -> None:
        if isinstance(event, stats.StatusChanged):
            self.seen.append(event.status)
            if event.status == self.status:
                raise ZeroDivisionError(self.status)


@pytest.mark.parametrize("status", ["setup", "active", "failed", "completed"])
def test_callback_of_the_receiver_that_raises(tmp_path: Path, status: str) -> None:
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")])
    (tmp_path / "stream").write_bytes(stream[:-20] if status == "failed" else stream)
    target = blkmig.MemoryBackend(bytearray(MIB), name="t")
    incoming = Incoming(f"file:{tmp_path}/stream", target, status)
    expected = errors.TruncatedStream if status == "failed" else ZeroDivisionError
    with pytest.raises(expected), incoming.migration:
        incoming.migration.run()
    with target.block_use("a test"):
        pass


class CancellingDisk(blkmig.MemoryBackend):
    """A target during whose flush the receiver is cancelled."""

    def __init__(self) -> None:
        super().__init__(bytearray(MIB), name="t")
        self.migration: blkmig.IncomingMigration | None = None

    def flush(self) -> None:
        assert self.migration is not None
        self.migration.cancel()


def test_cancel_while_the_target_is_flushed(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(MIB), name="d")]))
    disk = CancellingDisk()
    with blkmig.incoming(f"file:{tmp_path}/stream", {"d": disk}) as migration:
        disk.migration = migration
        with pytest.raises(errors.Cancelled):
            migration.run()
    assert migration.stats.status == "cancelled"


def test_a_name_wins_over_a_number(tmp_path: Path) -> None:
    """``receive URI d=t.raw u.raw``: the disk d goes where its name says, and nothing is left over unnoticed."""
    disks: list[blkmig.BlockBackend] = [blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")]
    stream = lab.record(tmp_path, disks)
    with pytest.raises(errors.IncompleteMigration, match="number 0"):
        received_from(tmp_path, stream, {"d": tmp_path / "t.raw"}, by_index={0: tmp_path / "u.raw"})
    assert not (tmp_path / "t.raw").exists(), "E13: the stream says at its start how many disks it holds"
    assert not (tmp_path / "u.raw").exists()
    disks.append(blkmig.MemoryBackend(bytearray(b"y" * MIB), name="e"))
    stream = lab.record(tmp_path, disks)
    received_from(tmp_path, stream, {"d": tmp_path / "v.raw"}, by_index={1: tmp_path / "w.raw"})
    assert (tmp_path / "w.raw").read_bytes() == b"y" * MIB


@pytest.mark.parametrize("says_sizes", [True, False])
def test_a_disk_with_a_target_by_name_and_one_by_number(tmp_path: Path, says_sizes: bool) -> None:
    """One of the two would get nothing: it is told before anything is written, where the names are known by then.

    Of a QEMU's stream they are not, and the first block of the disk tells. It was told at the end.
    """
    contents = {name: name.encode() * MIB for name in "abc"}
    disks: list[blkmig.BlockBackend] = [
        blkmig.MemoryBackend(bytearray(data), name=name) for name, data in contents.items()
    ]
    stream = lab.record(tmp_path, disks, qemu=not says_sizes)
    memories = {name: bytearray(MIB) for name in "abc"}
    targets = {name: blkmig.MemoryBackend(memory, name=name) for name, memory in memories.items()}
    taken = {"into": tmp_path / "d", "by_index": {1: targets["c"]}}
    with pytest.raises(errors.IncompleteMigration, match="disk 'b' is number 1 of the stream, and a target was given"):
        received_from(tmp_path, stream, {"a": targets["a"], "b": targets["b"]}, **taken)
    assert memories == {"a": bytearray(MIB) if says_sizes else contents["a"], "b": bytearray(MIB), "c": bytearray(MIB)}
    received_from(tmp_path, stream, {"a": targets["a"], "c": targets["b"]}, **taken)
    assert memories == {"a": contents["a"], "b": contents["c"], "c": contents["b"]}


def test_a_number_that_no_disk_can_have(tmp_path: Path) -> None:
    """It is told before anything is written."""
    stream = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")])
    with pytest.raises(errors.IncompleteMigration, match="holds 1 disk, numbered from 0, so there is no number 1"):
        received_from(tmp_path, stream, {}, into=tmp_path / "d", by_index={1: tmp_path / "t.raw"})
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "t.raw").exists()


@pytest.mark.parametrize(("count", "expected"), [(2, errors.StreamError), (0, errors.IncompleteMigration)])
def test_the_number_of_disks_is_judged_before_the_first(tmp_path: Path, count: int, expected: type[Exception]) -> None:
    """E13: what the stream will not have, and what nobody expects, is told at its start; nothing is touched by then."""
    disks: list[blkmig.BlockBackend] = [
        blkmig.MemoryBackend(bytearray(b"x" * MIB), name=f"d{number}") for number in range(count)
    ]
    stream = lab.record(tmp_path, disks) if disks else lab.record_without_disks(tmp_path)
    target = bytearray(b"old" * MIB)
    with pytest.raises(expected, match=r"the stream holds (2|no) disks, and targets were given for 1: 'd0'"):
        received_from(tmp_path, stream[: len(stream) - 100], {"d0": blkmig.MemoryBackend(target, name="t")})
    assert target == b"old" * MIB


@pytest.mark.parametrize(
    ("others", "into", "sizes", "expected"),
    [
        ([], True, {"x": 6}, errors.ParameterError),
        ([], True, {"": 6, "v": 2 * MIB}, errors.ParameterError),
        (["q"], True, {}, errors.IncompleteMigration),
        (["q"], False, {}, errors.IncompleteMigration),
    ],
    ids=["a size", "a size for all others", "a target and a folder", "a target"],
)
def test_a_run_that_must_fail_overwrites_nothing(
    tmp_path: Path, others: list[str], into: bool, sizes: dict[str, int], expected: type[Exception]
) -> None:
    """A blkmig says first which sizes its disks have: whatever contradicts that is told before a block is written."""
    content = b"x" * 2 * MIB
    source = [blkmig.MemoryBackend(bytearray(data), name=name) for name, data in (("v", content), ("x", b"y" * 5))]
    stream = lab.record(tmp_path, [*source])
    target = tmp_path / "p1"
    target.write_bytes(b"k" * len(content))
    targets: dict[str, object] = {"v": target, **{name: tmp_path / name for name in others}}
    with pytest.raises(expected) as caught:
        received_from(tmp_path, stream, targets, into=tmp_path / "d" if into else None, sizes=sizes)
    assert target.read_bytes() == b"k" * len(content), caught.value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1", "recorded", "stream"]
    received_from(tmp_path, stream, {"v": target}, into=tmp_path / "d", sizes={"": len(content), "x": 5})
    assert target.read_bytes() == content


def test_a_disk_that_cannot_be_closed_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of it that was put off fails, too, where the file system is full: what became of the targets is told."""
    sources = [blkmig.MemoryBackend(bytearray(b"x" * 2 * MIB), name=name) for name in "ab"]
    stream = lab.record(tmp_path, list(sources))
    full = OSError(errno.ENOSPC, "full")

    def fail_to_write(self: blkmig.FileBackend, *_: object) -> None:
        if self.name == "b":
            raise self.failed("cannot write", full)

    def fail_to_close(self: blkmig.FileBackend) -> None:
        close(self)
        if self.name == "a":
            raise errors.DeviceError("cannot write late", device="a", cause=full)

    close = blkmig.FileBackend.close
    monkeypatch.setattr(blkmig.FileBackend, "write_block", fail_to_write)
    monkeypatch.setattr(blkmig.FileBackend, "close", fail_to_close)
    targets: dict[str, object] = {name: tmp_path / name for name in "ab"}
    with pytest.raises(errors.DeviceError, match="disk 'b': cannot write:") as caught:
        received_from(tmp_path, stream, targets)
    told = "\n".join(caught.value.__notes__)
    for name in targets:
        assert f"{str(targets[name])!r} was not made: what had come of it is removed" in told
    assert "and then: disk 'a': cannot write late: full; make room there" in told
    assert not any(Path(str(path)).exists() for path in targets.values())
