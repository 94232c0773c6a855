# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail on purpose: which call it happens to, what it does, and that nothing of the contract goes past it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import lab
import pauses
import pytest

import blkmig
from blkmig import _core, errors, testing

MIB = lab.MIB
CONTENT = os.urandom(3 * MIB)
NO_FAULTS = {"read_extents", "write_extents", "sync_together"}
"""Verbs whose default calls others of the disk."""


def memory(content: bytes = CONTENT) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(content), name="d")


def read(disk: blkmig.BlockBackend, offset: int = 0, nbytes: int = MIB) -> bytes:
    blk = _core.BlockBuffer("own")
    disk.read_block(blk, offset, nbytes)
    return bytes(blk.payload[:nbytes])


def test_every_verb_of_the_contract_is_passed_on() -> None:
    verbs = {
        name
        for name, value in vars(blkmig.BlockBackend).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, classmethod))
    }
    assert verbs - NO_FAULTS <= set(vars(testing.FaultyDisk))


def test_every_attribute_of_the_contract_is_taken_over() -> None:
    """But the two by which payloads would go past the faults."""
    inner = memory()
    inner.is_read_only = inner.reads_in_parallel = inner.awaits_switchover = inner.is_growable = True
    inner.min_granularity = 1 << 16
    disk = testing.FaultyDisk(inner)
    names = {name for name in blkmig.BlockBackend.__annotations__ if not name.startswith("_")}
    for name in names - {"mapping", "takes_pages"}:
        assert getattr(disk, name) == getattr(inner, name), name
    assert disk.mapping is None
    assert not disk.takes_pages


@pytest.mark.parametrize(("nth", "times", "fails"), [(1, 1, {1}), (3, 1, {3}), (2, 2, {2, 3}), (4, None, {4, 5, 6})])
def test_which_calls_fail(nth: int, times: int | None, fails: set[int]) -> None:
    disk = testing.FaultyDisk(memory(), testing.Fault(verb="flush", nth=nth, times=times, error=errno.EDQUOT))
    failed = set()
    for number in range(1, 7):
        try:
            disk.flush()
        except errors.DeviceError as error:
            failed.add((number, error.device, error.errno))
    assert failed == {(number, "d", errno.EDQUOT) for number in fails}
    assert disk.calls["flush"] == 6


def test_only_calls_that_touch_a_place_count() -> None:
    disk = testing.FaultyDisk(memory(), testing.Fault(verb="read", nth=2, offset=MIB + 5, error=errno.EIO))
    for offset in (0, MIB, 0, 2 * MIB):
        read(disk, offset)
    with pytest.raises(errors.DeviceError) as caught:
        read(disk, MIB)
    assert (caught.value.offset, caught.value.nbytes, caught.value.errno) == (MIB, MIB, errno.EIO)
    disk.heal()
    assert read(disk, MIB) == CONTENT[MIB : 2 * MIB]


@pytest.mark.parametrize("verb", ["read", "write", "zeroes", "flush", "hold"])
def test_every_verb_fails(verb: Any) -> None:
    disk = testing.FaultyDisk(memory(), testing.Fault(verb=verb, error=errno.EIO))
    blk = _core.BlockBuffer("own")
    calls = {
        "read": lambda: disk.read_extents(blk, [(0, 512)]),
        "write": lambda: disk.write_extents(blk, [(0, 512)]),
        "zeroes": lambda: disk.write_zeroes(0, 512),
        "flush": disk.flush_drained,
        "hold": disk.hold_writers,
    }
    blk.filled(512)
    for other, call in calls.items():
        if other != verb:
            call()
            disk.release_writers()
    with pytest.raises(errors.DeviceError):
        calls[verb]()


def test_short_writes_are_torn() -> None:
    disk = testing.FaultyDisk(memory(bytes(MIB)), testing.Fault(verb="write", short=700, error=errno.ENOSPC))
    blk = _core.BlockBuffer("own")
    blk.data[:1024] = CONTENT[:1024]
    blk.filled(1024)
    with pytest.raises(errors.DeviceError, match="No space"):
        disk.write_block(blk, 4096, 1024)
    assert disk.pread(4096, 1024) == CONTENT[:700] + bytes(324)


def test_short_reads_fail() -> None:
    with pytest.raises(errors.DeviceError, match="Input/output"):
        read(testing.FaultyDisk(memory(), testing.Fault(verb="read", short=512)))


@pytest.mark.parametrize("verb", ["read", "write"])
def test_damage_is_found_by_verification(tmp_path: Path, verb: Any) -> None:
    """Whichever end it happens at; that is what the digests are for."""
    fault = testing.Fault(verb=verb, nth=2, corrupt=77)
    source, target = memory(), memory(bytes(3 * MIB))
    sent = testing.FaultyDisk(source, fault) if verb == "read" else source
    got = testing.FaultyDisk(target, fault) if verb == "write" else target
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": got}, verify=True)
    with pytest.raises(errors.MigrationError):
        blkmig.send([sent], receiver.uri, digests=True)
    with pytest.raises(errors.ContentMismatch):
        receiver.result()


def test_a_stop_is_where_a_migration_stands(tmp_path: Path) -> None:
    stop = testing.Stop()
    disk = testing.FaultyDisk(memory(), testing.Fault(verb="read", nth=2, stop=stop))
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream")

    def run() -> None:
        with migration:
            migration.run()

    sending = pauses.Call(run)
    stop.wait_until_reached()
    assert not sending.is_over()
    stop.go_on()
    sending.result()
    assert migration.status == "completed"


def test_a_cancel_ends_a_stop(tmp_path: Path) -> None:
    stop = testing.Stop()
    disk = testing.FaultyDisk(memory(), testing.Fault(verb="hold", stop=stop))
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream")

    def run() -> None:
        with migration:
            migration.run()

    sending = pauses.Call(run)
    stop.wait_until_reached()
    migration.cancel()
    with pytest.raises(errors.Cancelled):
        sending.result()
    disk.heal()
    blkmig.send([disk], f"file:{tmp_path}/stream")  # a later use is not cancelled


def test_a_disk_inside_is_in_use_too(tmp_path: Path) -> None:
    inner = memory()
    with testing.FaultyDisk(inner).block_use("a test"), pytest.raises(errors.DeviceBusy):
        blkmig.send([inner], f"file:{tmp_path}/stream")


def test_files_are_read_through_it(tmp_path: Path) -> None:
    """Although a file's pages could be sent without."""
    (tmp_path / "d.raw").write_bytes(CONTENT)
    with (
        testing.FaultyDisk(blkmig.FileBackend(tmp_path / "d.raw", name="d")) as disk,
        testing.FaultyDisk(blkmig.FileBackend.create(tmp_path / "t.raw", 3 * MIB, name="d")) as target,
    ):
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
        blkmig.send([disk], receiver.uri)
        receiver.result()
        assert disk.calls["read"] >= 3
        assert target.calls["write"] >= 3
        assert read(target, 0) == CONTENT[:MIB]


@pytest.mark.parametrize(
    "options",
    [
        {"verb": "read"},
        {"verb": "read", "nth": 0, "error": 5},
        {"verb": "read", "times": 0, "error": 5},
        {"verb": "flush", "short": 5},
        {"verb": "zeroes", "corrupt": 5},
        {"verb": "raed", "error": 5},
        {"verb": None, "error": 5},
        {"verb": "flush", "offset": 5, "error": 5},
        {"verb": "hold", "offset": 5, "error": 5},
        {"verb": "read", "stop": threading.Event()},
        *(
            {"verb": "read", "error": 5, name: value}
            for name in ("nth", "times", "offset", "short", "corrupt", "error")
            for value in (-1, 1.5, "1", True)
        ),
        {"verb": "read", "error": 0},
        {"verb": "read", "error": 5, "nth": None},
    ],
)
def test_faults_that_make_no_sense(options: dict[str, Any]) -> None:
    """Some never happened, so that a test passed that had tested nothing."""
    with pytest.raises(ValueError, match=r"must be|say what happens|only what is read|is no verb"):
        testing.Fault(**options)


def test_what_is_no_disk_and_no_fault() -> None:
    broken: Any = testing.FaultyDisk
    with pytest.raises(TypeError, match="no open disk"):
        broken("d.raw")
    with pytest.raises(TypeError, match="a fault must be a Fault"):
        broken(memory(), "read")


class Strange(blkmig.MemoryBackend):
    """A disk whose writes raise what no disk should."""

    def pwrite(self, data: Any, offset: Any) -> None:
        raise ZeroDivisionError("mine")


def test_step_writer_tells_what_the_disk_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ended, and after half a minute the writers were said to be held."""
    with testing.StepWriter(Strange(bytearray(8192), name="d")) as guest:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="mine"):
                guest.write()
    with pytest.raises(ZeroDivisionError), testing.StepWriter(Strange(bytearray(8192), name="d")) as guest:
        guest.start()
    with pytest.raises(errors.ParameterError, match="nbytes must be"):
        testing.StepWriter(memory(), nbytes=-5)
    with pytest.raises(RuntimeError, match="within its with"):
        testing.StepWriter(memory()).write()


def test_step_writer() -> None:
    """A held writer stands in its write, and one that is turned away says so."""
    with memory() as disk, testing.StepWriter(disk, seed=3) as writer:
        writer.write(2)
        disk.hold_writers()
        standing = writer.start()
        assert not standing.wait(0.05)
        disk.release_writers()
        assert standing.wait(testing.SECONDS)
        model = bytearray(CONTENT)
        for offset, data in writer.written:
            model[offset : offset + len(data)] = data
        assert (disk.pread(0, disk.size), len(writer.written)) == (model, 3)
        disk.hold_writers()
        disk.release_writers(refuse=True)
        writer.write()
        assert isinstance(writer.error, errors.DeviceError)
    assert not [each for each in threading.enumerate() if each.name == "blkmig-step-writer"]
