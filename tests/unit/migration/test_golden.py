# SPDX-License-Identifier: GPL-2.0-or-later
"""Every stream that a real QEMU recorded: the right disks, the right verdict, without a QEMU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden_streams
import pytest
import real_qemu
from golden_streams import Golden, GuardedMemory
from real_qemu import MiB

import blkmig
from blkmig import errors


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Golden], str]:
    """Return a function that unpacks a stream and returns its URI."""

    def unpacked(golden: Golden) -> str:
        (tmp_path / "stream").write_bytes(golden.stream)
        return f"file:{tmp_path}/stream"

    return unpacked


def guarded(golden: Golden, contents: Mapping[str, bytes] | None = None) -> dict[str, GuardedMemory]:
    """Return a target in memory for each disk."""
    return {disk.name: GuardedMemory(disk.size, (contents or {}).get(disk.name)) for disk in golden.disks}


def receive(uri: str, memories: Mapping[str, GuardedMemory], **parameters: Any) -> blkmig.IncomingStatistics:
    """Receive into memory; what lies around it must be untouched."""
    targets = {name: blkmig.MemoryBackend(memory.view, name=name) for name, memory in memories.items()}
    try:
        return blkmig.receive(uri, targets, **parameters)
    finally:
        for memory in memories.values():
            memory.check_canaries()


def test_manifest_names_every_file() -> None:
    names = {path.name.removesuffix(".stream.xz") for path in golden_streams.FOLDER.glob("*.xz")}
    assert names == set(golden_streams.manifest())


@pytest.mark.parametrize("name", golden_streams.manifest())
def test_stream_is_what_was_recorded(name: str) -> None:
    golden = golden_streams.manifest()[name]
    stream = golden.stream
    assert len(stream) == golden.entry["stream"]["size"]
    assert hashlib.sha256(stream).hexdigest() == golden.entry["stream"]["sha256"]
    for disk in golden.disks:
        if disk.seed is not None:
            assert hashlib.sha256(disk.contents).hexdigest() == disk.sha256


NAMED = [name for name in golden_streams.with_verdict("complete") if name not in ("no-disk", "blockdev-inline")]


@pytest.mark.parametrize("name", NAMED)
def test_complete_stream(store: Callable[[Golden], str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    memories = guarded(golden)
    statistics = receive(store(golden), memories)
    assert statistics.status == "completed"
    assert statistics.percent == 100
    assert statistics.transferred == len(golden.stream)
    assert {disk.name: disk.sha256 for disk in golden.disks} == {n: memory.sha256 for n, memory in memories.items()}
    for disk in golden.disks:
        figures = statistics.disks[disk.name]
        assert (figures.size, figures.size_source, figures.missing) == (disk.size, "target", [])
        assert figures.blocks == disk.nblocks + figures.resent_blocks


def test_stream_without_disks(store: Callable[[Golden], str], tmp_path: Path) -> None:
    uri = store(golden_streams.manifest()["no-disk"])
    with pytest.raises(errors.IncompleteMigration, match="holds no disk"):  # A7
        blkmig.receive(uri, into=tmp_path / "disks")
    with pytest.raises(errors.IncompleteMigration, match="holds no disk"):
        blkmig.receive(uri, {"drive0": tmp_path / "drive0.raw"})


@pytest.mark.parametrize("name", ["running", "running-2.3", "xbzrle"])
def test_what_a_guest_wrote(store: Callable[[Golden], str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    memories = guarded(golden)
    statistics = receive(store(golden), memories)
    disk = golden.disks[0]
    assert real_qemu.Guest(disk.size).check(bytes(memories[disk.name].view)) == golden.entry["guest_writes"]
    if name != "xbzrle":
        assert statistics.disks[disk.name].resent_blocks > 0


def test_sizes_are_inferred_and_said_so(store: Callable[[Golden], str], tmp_path: Path) -> None:
    golden = golden_streams.manifest()["three-disks"]
    statistics = blkmig.receive(store(golden), into=tmp_path / "disks")
    for disk in golden.disks:
        figures = statistics.disks[disk.name]
        assert (figures.size, figures.size_source) == (disk.nblocks * MiB, "inferred")
        contents = (tmp_path / "disks" / f"{disk.name}.raw").read_bytes()
        assert contents[: disk.size] == disk.contents
        assert len(contents) == disk.nblocks * MiB
        assert any(disk.name in note for note in statistics.notes)


@pytest.mark.parametrize("name", ["unaligned", "unaligned-zero"])
def test_size_that_is_said_cuts_the_slack(store: Callable[[Golden], str], tmp_path: Path, name: str) -> None:
    golden = golden_streams.manifest()[name]
    (disk,) = golden.disks
    statistics = blkmig.receive(store(golden), {disk.name: tmp_path / "disk.raw"}, sizes={disk.name: disk.size})
    assert statistics.disks[disk.name].size_source == "option"
    assert (tmp_path / "disk.raw").read_bytes() == disk.contents


def test_nothing_is_written_behind_a_size_that_is_said(store: Callable[[Golden], str], tmp_path: Path) -> None:
    golden = golden_streams.manifest()["pc-7.2"]
    with pytest.raises(errors.OutOfRange):
        blkmig.receive(store(golden), {"drive0": tmp_path / "disk.raw"}, sizes={"drive0": MiB + 512})
    assert not (tmp_path / "disk.raw").exists()
    (tmp_path / "larger.raw").write_bytes(b"k" * 3 * MiB)
    with pytest.raises(errors.OutOfRange):
        blkmig.receive(
            store(golden), {"drive0": tmp_path / "larger.raw"}, sizes={"drive0": MiB + 512}, keep_tail=True
        )
    assert (tmp_path / "larger.raw").read_bytes()[MiB + 512 :] == b"k" * (2 * MiB - 512)


@pytest.mark.parametrize("name", ["lossy"])
def test_lost_blocks_are_named(store: Callable[[Golden], str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    (disk,) = golden.disks
    memories = guarded(golden)
    with pytest.raises(errors.IncompleteMigration, match="downtime-limit") as caught:
        receive(store(golden), memories)
    written = memories[disk.name].check_blocks(disk.contents)
    missing = {first + i for first, count in caught.value.missing[disk.name] for i in range(count)}
    assert missing == set(range(disk.nblocks)) - written
    assert missing
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["lossy"])
def test_lost_blocks_are_noticed_without_a_size(store: Callable[[Golden], str], tmp_path: Path, name: str) -> None:
    golden = golden_streams.manifest()[name]
    with pytest.raises(errors.IncompleteMigration, match="downtime-limit"):
        blkmig.receive(store(golden), into=tmp_path / "disks")


def test_lost_blocks_of_an_incremental_stream(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["lossy-incremental"]
    memories = guarded(golden)
    with pytest.raises(errors.IncompleteMigration, match="downtime-limit"):
        receive(store(golden), memories, incremental=True)
    assert memories["drive0"].sha256 != golden.disks[0].sha256


def test_cancelled_source_is_named(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["cancelled"]
    memories = guarded(golden)
    with pytest.raises(errors.TruncatedStream, match="cancelled") as caught:
        receive(store(golden), memories)
    assert caught.value.position == len(golden.stream)
    assert memories["drive0"].check_blocks(golden.disks[0].contents)


def test_read_error_of_the_source_is_named(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["read-error"]
    memories = guarded(golden)
    with pytest.raises(errors.SourceReadError, match="could not read"):
        receive(store(golden), memories)
    written = memories["drive0"].check_blocks(golden.disks[0].contents)
    assert written
    assert 20 not in written


def test_incremental_onto_the_base(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["incremental"]
    (disk,) = golden.disks
    base = real_qemu.pattern(disk.size, seed=golden.entry["base"]["seed"])
    assert hashlib.sha256(base).hexdigest() == golden.entry["base"]["sha256"]
    memories = guarded(golden, {disk.name: base})
    statistics = receive(store(golden), memories, incremental=True)
    assert memories[disk.name].sha256 == disk.sha256
    assert statistics.disks[disk.name].blocks == len(golden.entry["blocks"])


def test_incremental_taken_for_full_is_incomplete(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["incremental"]
    memories = guarded(golden)
    with pytest.raises(errors.IncompleteMigration) as caught:
        receive(store(golden), memories)
    assert caught.value.missing == {"drive0": [(0, 1), (2, 1), (4, 1)]}
    assert set(memories["drive0"].written_blocks()) == set(golden.entry["blocks"])


def test_nameless_disks_are_refused(store: Callable[[Golden], str], tmp_path: Path) -> None:
    golden = golden_streams.manifest()["blockdev"]
    with pytest.raises(errors.UnknownDevice, match=r"blockdev.*--map 0=PATH"):
        blkmig.receive(store(golden), {"drive0": tmp_path / "disk.raw"})
    assert not (tmp_path / "disk.raw").exists()


def test_nameless_disk_can_be_mapped(store: Callable[[Golden], str], tmp_path: Path) -> None:
    golden = golden_streams.manifest()["blockdev-inline"]
    statistics = blkmig.receive(store(golden), by_index={0: tmp_path / "disk.raw"})
    assert (tmp_path / "disk.raw").read_bytes() == golden.disks[0].contents
    assert statistics.disks[""].blocks == 2
    with pytest.raises(errors.UnsupportedStream, match="without a name"):
        blkmig.receive(store(golden), by_index={0: tmp_path / "disk.raw"}, incremental=True)


def test_nameless_disks_never_mix(store: Callable[[Golden], str], tmp_path: Path) -> None:
    """Both disks are called "", so nothing tells their blocks apart: not even a map helps."""
    golden = golden_streams.manifest()["blockdev"]
    by_index = {0: tmp_path / "guest.raw", 1: tmp_path / "image.raw"}
    with pytest.raises(errors.UnsupportedStream, match="cannot be told apart"):
        blkmig.receive(store(golden), by_index=by_index)


@pytest.mark.parametrize("name", ["pc-7.2", "three-disks", "devices"])
def test_unknown_disk_is_refused(store: Callable[[Golden], str], tmp_path: Path, name: str) -> None:
    golden = golden_streams.manifest()[name]
    with pytest.raises(errors.UnknownDevice) as caught:
        blkmig.receive(store(golden), {"other": tmp_path / "other.raw"})
    assert caught.value.device in {disk.name for disk in golden.disks}
    assert not list(tmp_path.glob("*.raw"))


@pytest.mark.parametrize("size", [MiB, 2 * MiB])
def test_smaller_target_is_refused(store: Callable[[Golden], str], size: int) -> None:
    golden = golden_streams.manifest()["pc-7.2"]
    memories = {"drive0": GuardedMemory(size)}
    with pytest.raises(errors.OutOfRange) as caught:
        receive(store(golden), memories)
    assert caught.value.sector == 2048 * (size // MiB) or caught.value.sector * 512 >= size
    memories["drive0"].check_blocks(golden.disks[0].contents[:size])


def test_larger_target_misses_blocks(store: Callable[[Golden], str]) -> None:
    golden = golden_streams.manifest()["pc-7.2"]
    with pytest.raises(errors.IncompleteMigration) as caught:
        receive(store(golden), {"drive0": GuardedMemory(5 * MiB)})
    assert caught.value.missing == {"drive0": [(3, 2)]}
