# SPDX-License-Identifier: GPL-2.0-or-later
"""The outgoing side when something raises where nobody expects it: the first error stays, and all is released."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core, channel, errors, migration, stats

MIB = lab.MIB


class Disk(blkmig.MemoryBackend):
    """A disk that fails in the verbs named in `bad`, and does what `during_read` says in the middle of each read."""

    def __init__(self, nblocks: int = 3, *, name: str = "d") -> None:
        super().__init__(bytearray(b"x" * nblocks * MIB), name=name)
        self.bad: set[str] = set()
        self.during_read: Callable[[], object] = lambda: None

    def _fail(self, verb: str) -> None:
        if verb in self.bad:
            raise errors.DeviceError(f"cannot {verb}", device=self.name, cause=OSError(errno.EIO, "broken"))

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self._fail("read")
        self.during_read()
        return super().read_block(blk, offset, nbytes)

    def create_dirty_bitmap(self, granularity: int) -> blkmig.disk.DirtyBitmap:
        self._fail("track")
        return super().create_dirty_bitmap(granularity)

    def release_dirty_bitmap(self, bitmap: blkmig.disk.DirtyBitmap) -> None:
        super().release_dirty_bitmap(bitmap)
        self._fail("untrack")

    def hold_writers(self) -> None:
        super().hold_writers()
        self._fail("hold")

    def release_writers(self, *, refuse: bool = False) -> None:
        super().release_writers(refuse=refuse)
        self._fail("release")

    def is_free(self) -> bool:
        """Return whether nothing of a migration is left on the disk."""
        with self.block_use("a test"):
            self.pwrite(b"free", 0)
        return not self.trackers


def migration_of(
    disks: list[Disk], path: Path, on_progress: Callable[[stats.Event], None] | None = None, **parameters: Any
) -> blkmig.OutgoingMigration:
    """Return a migration of `disks` into a file."""
    chosen = blkmig.MigrationParameters(**parameters)
    return blkmig.outgoing(disks, f"file:{path}/stream", chosen, on_progress=on_progress)


@pytest.mark.parametrize("status", ["setup", "active", "device", "completed", "cancelling", "cancelled", "failed"])
def test_callback_that_raises_in_a_state(tmp_path: Path, status: str) -> None:
    disk = Disk()
    migration: blkmig.OutgoingMigration

    def on_progress(event: stats.Event) -> None:
        if isinstance(event, stats.StatusChanged) and event.status == status:
            raise ZeroDivisionError(status)

    def run() -> None:
        with migration:
            if status in ("cancelling", "cancelled"):
                migration.cancel()
            if status == "failed":
                disk.bad.add("read")
            migration.run()

    migration = migration_of([disk], tmp_path, on_progress)
    ends = {"cancelling": errors.Cancelled, "cancelled": errors.Cancelled, "failed": errors.DeviceError}
    expected: type[Exception] = ends.get(status, ZeroDivisionError)
    with pytest.raises(expected) as caught:
        run()
    assert disk.is_free()
    last = {"cancelling": "cancelled", "cancelled": "cancelled", "completed": "completed"}
    assert migration.status == last.get(status, "failed")
    if expected is not ZeroDivisionError:
        assert f"and then: {status}" in caught.value.__notes__
    disk.bad.clear()
    lab.record(tmp_path, [disk])


@pytest.mark.parametrize("kind", [stats.Progressed, stats.RoundEnded])
def test_callback_that_raises_once_leaves_a_whole_migration(tmp_path: Path, kind: type[stats.Event]) -> None:
    """Events are told between sections: who catches what a callback raised may go on."""
    disk, raised = Disk(), []

    def on_progress(event: stats.Event) -> None:
        if isinstance(event, kind) and not raised:
            raised.append(event)
            raise ZeroDivisionError

    target = Disk()
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    with blkmig.outgoing([disk], receiver.uri, on_progress=on_progress) as migration:
        with pytest.raises(ZeroDivisionError):
            migration.iterate()
        disk.pwrite(b"later", MIB)
        migration.run()
    receiver.result()
    assert target.pread(0, target.size) == disk.pread(0, disk.size)


class Interrupt(BaseException):
    """What a signal handler may raise anywhere."""


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("where", ["read", "send"])
def test_nothing_follows_an_interrupted_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: str, where: str
) -> None:
    """Who catches an interrupt must not be able to go on: the block that was under way would be lost."""
    disk = Disk()

    def interrupt(*_: object) -> None:
        raise Interrupt

    migration = migration_of([disk], tmp_path, reading=reading)
    with migration:
        if where == "read":
            disk.during_read = interrupt
        else:
            monkeypatch.setattr(channel.OutputQEMUFile, "put_block", interrupt)
        with pytest.raises(Interrupt):
            migration.iterate()
        disk.during_read = lambda: None
        monkeypatch.undo()
        with pytest.raises(errors.StateError):
            migration.iterate()
        with pytest.raises(errors.StateError):
            migration.complete()
    assert migration.status == "cancelled"
    assert disk.is_free()


@pytest.mark.parametrize("verb", ["hold", "release"])
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_holding_or_releasing_fails(tmp_path: Path, verb: str, writers_after: str) -> None:
    disks = [Disk(name="one"), Disk(name="two")]
    disks[1].bad = {verb}
    migration = migration_of(disks, tmp_path, writers_after=writers_after)
    with pytest.raises(errors.DeviceError, match=verb), migration:
        migration.run()
    assert migration.status == "failed"
    if writers_after == "release" or verb == "hold":
        assert disks[0].is_free()


def test_first_error_stays_through_every_clean_up(tmp_path: Path) -> None:
    """The last pass meets a read error, and then neither writers nor trackers can be released."""
    disk = Disk()
    migration = migration_of([disk], tmp_path)
    with pytest.raises(errors.DeviceError, match="cannot read") as caught, migration:  # noqa: PT012
        migration.iterate()
        disk.pwrite(b"dirty", 0)
        disk.bad = {"read", "release", "untrack"}
        migration.complete()
    assert [note.split(": ")[2] for note in caught.value.__notes__] == ["cannot release", "cannot untrack"]
    assert disk.is_free()


def test_a_clean_up_that_fails_without_an_error_before_is_told(tmp_path: Path) -> None:
    disk = Disk()
    disk.bad = {"untrack"}
    with pytest.raises(errors.Cancelled) as caught, migration_of([disk], tmp_path):
        pass
    assert "cannot untrack" in caught.value.__notes__[0]
    with pytest.raises(errors.DeviceError, match="untrack"), migration_of([disk], tmp_path) as migration:
        migration.run()
    assert migration.status == "failed"


def test_setup_of_the_second_disk_fails(tmp_path: Path) -> None:
    """Tracking is on for all disks or for none; the first error stays when undoing fails, too."""
    disks = [Disk(name="one"), Disk(name="two")]
    disks[0].bad, disks[1].bad = {"untrack"}, {"track"}
    with pytest.raises(errors.DeviceError, match="'two': cannot track") as caught, migration_of(disks, tmp_path):
        pass
    assert "'one': cannot untrack" in caught.value.__notes__[0]
    assert disks[0].is_free()
    assert disks[1].is_free()


def test_a_disk_that_is_written_while_it_is_held(tmp_path: Path) -> None:
    """Its copy would be torn, so the stream must not have an end."""
    disk = Disk()

    def write_past_the_gate() -> None:
        for tracker in disk.trackers:
            tracker.mark(0, 1)

    migration = migration_of([disk], tmp_path)
    with pytest.raises(errors.DeviceError, match="written in the last pass") as caught, migration:  # noqa: PT012
        migration.iterate()
        disk.pwrite(b"w", 2 * MIB)
        disk.during_read = write_past_the_gate
        migration.complete()
    assert caught.value.offset == 0
    with pytest.raises(errors.MigrationError):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"})


def test_a_file_that_is_cut_in_the_last_pass(tmp_path: Path) -> None:
    (tmp_path / "s.raw").write_bytes(b"x" * 3 * MIB)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        hold = disk.hold_writers

        def hold_and_cut() -> None:
            hold()
            with (tmp_path / "s.raw").open("r+b") as file:
                file.truncate(MIB)

        disk.hold_writers = hold_and_cut  # type: ignore[method-assign]
        with pytest.raises(errors.DeviceError, match="cut"):
            lab.record(tmp_path, [disk])


def test_progress_is_monotone_and_ends_at_100(tmp_path: Path) -> None:
    disk, events = Disk(24), []

    def on_progress(event: stats.Event) -> None:
        if isinstance(event, stats.Progressed):
            events.append(event)

    with migration_of([disk], tmp_path, on_progress, max_bandwidth=80 * MIB) as migration:
        migration.run()
    assert [event.percent for event in events] == sorted(event.percent for event in events)
    assert (events[-1].phase, events[-1].percent, events[-1].remaining) == ("waiting", 100.0, 0)
    assert len(events) >= 2


def test_rounds_say_what_was_written_meanwhile(tmp_path: Path) -> None:
    disk = Disk(8)
    with migration_of([disk], tmp_path, switchover="manual") as migration:
        while migration.stats.rounds[-1].number == 0:
            migration.iterate()
        disk.mark_dirty(0, 3 * MIB)
        migration.iterate()  # the round that was under way was over when the blocks were marked, or sends them
        disk.mark_dirty(MIB, MIB)
        migration.complete()
    total = sum(entry.redirtied_bytes for entry in migration.stats.rounds)
    assert total == 4 * MIB
    assert sum(entry.transferred for entry in migration.stats.rounds) <= migration.stats.transferred
    assert migration.stats.blocks == 8 + 4
    assert [entry.number for entry in migration.stats.rounds] == list(range(len(migration.stats.rounds)))


def test_a_cancel_is_told_to_every_disk(tmp_path: Path) -> None:
    """B8: a disk that waits for somebody must hear of it; a disk that is not sent, too."""
    told: list[str] = []

    class Waiting(Disk):
        def cancel(self) -> None:
            told.append(self.name)

    disks = [Waiting(name="a"), Waiting(name="b")]
    disks[1].is_read_only = True
    with migration_of([*disks], tmp_path) as migration:
        migration.cancel()
        with pytest.raises(errors.Cancelled):
            migration.run()
    assert told == ["a", "b"]


def test_what_happens_to_a_source_is_noticed_in_bulk(tmp_path: Path) -> None:
    """E18: between two sections, not when bulk has ended."""

    class Changing(Disk):
        def check_source(self) -> None:
            self._fail("send any more")

    changing = Changing(nblocks=8)
    with migration_of([changing], tmp_path, max_bandwidth=MIB) as migration:
        migration.iterate()
        changing.bad.add("send any more")
        with pytest.raises(errors.DeviceError, match="cannot send any more"):
            migration.iterate()
    assert changing.is_free()


@pytest.mark.parametrize("disks", [[], (), {}, "", "d.raw", {"d": "d.raw"}, 5, None], ids=repr)
def test_a_migration_has_disks(tmp_path: Path, disks: Any) -> None:
    """A7: a stream without a disk was called complete."""
    calls: list[Callable[[], object]] = [
        lambda: blkmig.send(disks, f"file:{tmp_path}/s"),
        lambda: blkmig.outgoing(disks, f"file:{tmp_path}/s"),
        lambda: migration.forecast(disks, blkmig.MigrationParameters(), seconds=0, bandwidth=1.0),
    ]
    for call in calls:
        with pytest.raises(errors.ParameterError, match="disk"):
            call()
    assert not list(tmp_path.iterdir())
