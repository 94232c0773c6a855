# SPDX-License-Identifier: GPL-2.0-or-later
"""The block handlers driven through the registry alone, as a program with sections of its own would do it."""

from __future__ import annotations

import contextlib
import errno
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import model
import pytest
import sim

import blkmig
from blkmig import block, channel, errors, params, savevm

MIB = lab.MIB


@contextlib.contextmanager
def channel_to(path: Path) -> Iterator[channel.OutputQEMUFile]:
    """Give a channel into a file."""
    with channel.connect(f"file:{path}", timeout=5) as f:
        yield f


def registered(*disks: blkmig.BlockBackend, **parameters: Any) -> tuple[savevm.SaveState, block.BlockSaveHandlers]:
    """Return a registry that holds the block handlers alone."""
    state, handlers = savevm.SaveState(), block.BlockSaveHandlers(disks, params.MigrationParameters(**parameters))
    state.register_savevm_live("block", 0, 1, handlers)
    return state, handlers


def test_a_migration_by_hand(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(lab.random_disk(random.Random(1), 5 * MIB + 512)), name="d")
    state, handlers = registered(disk)
    assert handlers.is_active()
    with channel_to(tmp_path / "stream") as f:
        state.state_header(f)
        state.state_setup(f)
        assert state.state_pending() == disk.size
        assert state.state_iterate(f), "everything fits a section: 1, done for now"
        assert state.state_pending() == 0
        disk.pwrite(b"again", 3 * MIB)
        assert state.state_pending() == MIB
        assert state.state_iterate(f)
        disk.hold_writers()
        state.state_complete_precopy(f)
        state.state_end(f)
        disk.release_writers()
        assert handlers.blk_mig.bytes_transferred() == handlers.blk_mig.bytes_total() == disk.size
        state.state_cleanup()
        state.state_cleanup()
    stream = model.parse((tmp_path / "stream").read_bytes())
    assert stream.disk("d", disk.size) == disk.pread(0, disk.size)
    assert stream.sections == ["START", "PART", "PART", "END"]
    assert not disk.trackers


def test_iterate_says_0_while_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block.save, "SECTION_SECONDS", -1.0)
    disk, wire = sim.LayeredDisk(b"x" * 3 * MIB), sim.Wire({b"d": bytearray(3 * MIB)})
    handlers = block.BlockSaveHandlers([disk], params.MigrationParameters())
    f: Any = wire
    handlers.save_setup(f)
    seen = []
    while True:
        state = handlers.blk_mig
        counters = (state.bytes_transferred(), state.bytes_remaining(), state.bytes_total())
        assert counters == (len(seen) * MIB, (3 - len(seen)) * MIB, 3 * MIB)
        assert handlers.save_live_pending() == (3 - len(seen)) * MIB
        seen.append(handlers.save_live_iterate(f))
        if seen[-1]:
            break
    assert seen == [0, 0, 1]
    handlers.save_cleanup()


def test_a_negative_result_of_any_section_fails_the_migration(tmp_path: Path) -> None:
    class Broken(savevm.SaveVMHandlers):
        def save_live_iterate(self, f: channel.OutputQEMUFile) -> int:
            return -errno.EIO

    disk = blkmig.MemoryBackend(bytearray(MIB), name="d")
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream")
    migration.savevm.register_savevm_live("broken", 0, 1, Broken())
    with pytest.raises(errors.MigrationError, match="'broken' failed while iterating: Input/output error"), migration:
        migration.run()
    assert migration.status == "failed"
    assert not disk.trackers


@pytest.mark.parametrize(
    ("blk_enable", "shared_base", "active"),
    [(True, False, True), (False, False, False), (False, True, True), (True, True, True)],
)
def test_set_params(tmp_path: Path, blk_enable: bool, shared_base: bool, active: bool) -> None:
    base = b"b" * 2 * MIB
    disk = sim.LayeredDisk(base, base=base)
    state, handlers = registered(disk)
    handlers.set_params(blk_enable=blk_enable, shared_base=shared_base)
    assert handlers.is_active() == active
    with channel_to(tmp_path / "stream") as f:
        state.state_header(f)
        state.state_setup(f)
        if active:
            with pytest.raises(errors.StateError):
                handlers.set_params(blk_enable=True, shared_base=False)
        state.state_iterate(f)
        state.state_complete_precopy(f)
        state.state_end(f)
        state.state_cleanup()
    stream = model.parse((tmp_path / "stream").read_bytes())
    assert bool(stream.sections) == active
    assert len(stream.records) == (2 if active and not shared_base else 0)
    handlers.set_params(blk_enable=True, shared_base=False)


def test_calls_at_the_wrong_moment() -> None:
    handlers = block.BlockSaveHandlers([sim.LayeredDisk(bytes(MIB))], params.MigrationParameters())
    f: Any = sim.Wire({b"d": bytearray(MIB)})
    handlers.save_cleanup()
    for call in (handlers.save_live_pending, lambda: handlers.save_live_iterate(f), handlers.description):
        with pytest.raises(errors.StateError):
            call()
    handlers.save_setup(f)
    with pytest.raises(errors.StateError):
        handlers.save_setup(f)
    handlers.save_cleanup()
    handlers.save_setup(f)
    handlers.save_cleanup()


@pytest.mark.parametrize("fails", ["use", "track", "stream"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_setup_is_all_or_nothing(tmp_path: Path, fails: str, which: int) -> None:
    disks = [blkmig.MemoryBackend(bytearray(MIB), name=f"d{number}") for number in range(3)]
    others = disks[which].create_dirty_bitmap(MIB)  # somebody else's: it must stay
    state, handlers = registered(*disks)
    with contextlib.ExitStack() as stack:
        f = stack.enter_context(channel.connect(f"file:{tmp_path}/stream", timeout=5))
        expected: type[errors.MigrationError] = errors.DeviceError
        if fails == "use":
            stack.enter_context(disks[which].block_use("something else"))
        elif fails == "track":
            disks[which].create_dirty_bitmap = failing  # type: ignore[method-assign]
        else:
            f.abort()
            expected = errors.StateError
        with pytest.raises(expected):
            handlers.save_setup(f)
        f.abort()
    for disk in disks:
        with disk.block_use("a test"):
            disk.pwrite(b"x", 0)
        assert disk.trackers == ((others,) if disk is disks[which] else ())
    assert others.is_dirty(0)
    state.state_cleanup()
    handlers.save_cleanup()


def failing(granularity: int) -> None:
    raise errors.DeviceError("cannot track", device="d", cause=OSError(errno.ENOMEM, "no memory"))


def test_other_trackers_are_not_disturbed(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(3 * MIB), name="d")
    backup = disk.create_dirty_bitmap(1 << 16)
    disk.pwrite(b"x", MIB)
    lab.record(tmp_path, [disk])
    disk.pwrite(b"y", 2 * MIB)
    assert [backup.is_dirty(block_number) for block_number in range(3)] == [False, True, True]
    assert disk.trackers == (backup,)


class Counter(savevm.SaveVMHandlers):
    """A section of another package: numbers, in every section as many as are due."""

    def __init__(self, total: int = 0) -> None:
        self.left = total
        self.got: list[int] = []
        self.calls: list[str] = []

    def save_setup(self, f: channel.OutputQEMUFile) -> None:
        self._put(f, 1)

    def save_live_iterate(self, f: channel.OutputQEMUFile) -> int:
        self._put(f, min(self.left, 2))
        return int(not self.left)

    def save_live_pending(self) -> int:
        return self.left << 40  # far more than any downtime allows

    def save_live_complete_precopy(self, f: channel.OutputQEMUFile) -> None:
        self._put(f, self.left)

    def save_cleanup(self) -> None:
        self.calls.append("save_cleanup")

    def _put(self, f: channel.OutputQEMUFile, count: int) -> None:
        self.left -= count
        f.put_buffer(struct.pack(f">H{count}I", count, *range(self.left, self.left + count)))

    def load_setup(self) -> None:
        self.calls.append("load_setup")

    def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
        assert version_id == 3
        count = f.get_be16()
        self.got += [f.get_be32() for _ in range(count)]

    def load_cleanup(self) -> None:
        self.calls.append("load_cleanup")


def test_a_section_of_another_package_travels_along(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")
    target = bytearray(3 * MIB)
    there, here = Counter(), Counter(9)
    incoming = blkmig.incoming("tcp:127.0.0.1:0", {"d": blkmig.MemoryBackend(target, name="d")})
    incoming.savevm.register_savevm_live("acme/counter", 7, 4, there)
    with incoming:
        thread = threading.Thread(target=incoming.run)
        thread.start()
        outgoing = blkmig.outgoing([disk], incoming.uri)
        outgoing.savevm.register_savevm_live("acme/counter", 7, 3, here)
        with outgoing:
            assert outgoing.pending() == 3 * MIB + (8 << 40)
            outgoing.run()
        thread.join(20)
    assert incoming.stats.status == outgoing.status == "completed"
    assert target == disk.pread(0, disk.size)
    assert sorted(there.got) == list(range(9))
    assert here.calls == ["save_cleanup"]
    assert there.calls == ["load_setup", "load_cleanup"]
