# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on the pause: targets that freeze, writers that hang, cancels and lost links at each moment of the end.

No writer waits for longer than the bound of the pause: seen by writers that go on while the target is still frozen.
Nothing is lost by a pause that is given up, and no disk has two owners.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lab
import pytest
import valve
from pauses import LONG, MIB, NBLOCKS, Call, disk_of, until

import blkmig
from blkmig import channel, errors, params
from blkmig.migration import ending, pause

TOO_MUCH = 16 * MIB
"""More than the buffers of a socket hold."""


@pytest.fixture(autouse=True)
def _short_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MIN_DOWNTIME_BOUND", 0.1)


class Frozen:
    """A migration whose bulk phase is over, and whose target takes nothing any more."""

    def __init__(self, folder: Path, disk: blkmig.MemoryBackend, dirty: int, **parameters: Any) -> None:
        self.disk = disk
        self.target = bytearray(disk.size)
        destination = blkmig.MemoryBackend(self.target, name="d")
        self.receiver = lab.Receiver(f"unix:{folder}/s", {"d": destination})
        self.valve = valve.Valve(folder, self.receiver.uri)
        chosen = blkmig.MigrationParameters(**{"downtime_limit": 0.0, "reconnect": 0, **parameters})
        self.migration = blkmig.outgoing([disk], self.valve.uri, chosen)
        self.migration.__enter__()
        while len(self.migration.stats.rounds) == 1:
            self.migration.iterate()
        until(lambda: self.valve.passed == self.migration.stats.transferred)
        self.valve.shut()
        disk.pwrite(b"dirty" * (dirty // 5), 0)

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the ``with`` of the migration, and let the receiver come to its end."""
        self.migration.__exit__(type(error) if error else None, error, None)
        self.valve.open()

    def is_same(self) -> bool:
        """Return whether the target has what the disk has."""
        return self.target == self.disk.pread(0, self.disk.size)


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
@pytest.mark.parametrize("dirty", [TOO_MUCH, 5])
def test_writers_go_on_while_the_target_is_frozen(tmp_path: Path, writers_after: str, dirty: int) -> None:
    """B1: blocked in a send with much to send; with little, in a move, in the wait for a sign of the target."""
    frozen = Frozen(tmp_path, disk_of(), dirty, writers_after=writers_after)
    completing = Call(frozen.migration.complete)
    until(lambda: frozen.disk.is_held or frozen.migration.stats.downtime is not None)
    Call(lambda: frozen.disk.pwrite(b"later", 20 * MIB)).result()  # the target is still frozen
    if (writers_after, dirty) == ("release", 5):  # what is to be sent fits the socket: the pause is over
        frozen.valve.open()
        completing.result()
        frozen.receiver.result()
        assert frozen.target[20 * MIB :][:5] == b"xxxxx"
        return
    assert not completing.is_over(), "the migration is still blocked by the target"
    frozen.valve.open()
    with pytest.raises(errors.NotConverged, match="in the pause"):
        completing.result()
    stats = frozen.migration.stats
    assert (stats.status, stats.pauses_given_up) == ("active", 1)
    # The bound counts from before the hold, the downtime from when the writers are held.
    assert stats.downtime_given_up >= frozen.migration.parameters.downtime_bound * 0.9
    frozen.migration.complete()  # their marks were kept
    frozen.receiver.result()
    assert frozen.is_same()


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_migration_whose_pause_is_given_up_goes_back_to_rounds(tmp_path: Path, writers_after: str) -> None:
    """B1: and when the target comes back it ends well, with all that was written meanwhile."""
    frozen = Frozen(tmp_path, disk_of(), 0, writers_after=writers_after, downtime_limit=0.02)
    hold, is_held = frozen.disk.hold_writers, threading.Event()

    def hold_first() -> None:
        hold()
        frozen.valve.shut()
        is_held.set()

    frozen.disk.hold_writers = hold_first  # type: ignore[method-assign]
    frozen.valve.open()
    frozen.disk.pwrite(b"dirty" * (TOO_MUCH // 5), 0)
    frozen.migration.switchover()
    running = Call(frozen.migration.run)
    assert is_held.wait(LONG)
    Call(lambda: frozen.disk.pwrite(b"later", 20 * MIB)).result()
    frozen.disk.hold_writers = hold  # type: ignore[method-assign]
    frozen.valve.open()
    running.result()
    frozen.receiver.result()
    assert frozen.is_same()
    assert frozen.migration.stats.pauses_given_up == 1
    assert frozen.migration.status == "completed"


@pytest.mark.parametrize(("writers_after", "section"), [("release", "blkmig"), ("refuse", "block")])
def test_a_target_that_stays_frozen_ends_with_not_converged(tmp_path: Path, writers_after: str, section: str) -> None:
    """B1, B3: the time-out ends what waits in the channel; the source is in use, the target never complete."""
    common = {"timeout": 0.6, "idle_timeout": 0, "format": section}
    frozen = Frozen(tmp_path, disk_of(), TOO_MUCH, writers_after=writers_after, **common)
    frozen.migration.switchover()
    running = Call(frozen.migration.run)
    with pytest.raises(errors.NotConverged, match="within 600 ms") as caught:
        running.result()
    assert caught.value.exit_code == 4
    assert "a pause was given up" in str(caught.value), "although the call that was blocked in it never returned"
    assert frozen.migration.stats.pauses_given_up == 1
    frozen.disk.pwrite(b"in use", 0)
    frozen.leave(caught.value)
    assert frozen.migration.status == "failed"


def test_a_move_to_a_target_that_stays_frozen_holds_nobody(tmp_path: Path) -> None:
    """B1: it is asked to flush before the pause, so its silence costs the writers nothing."""
    frozen = Frozen(tmp_path, disk_of(), 0, writers_after="refuse", timeout=0.6, idle_timeout=0, format="blkmig")
    frozen.migration.switchover()
    running = Call(frozen.migration.run)
    with pytest.raises(errors.NotConverged, match="within 600 ms") as caught:
        running.result()
    assert frozen.migration.stats.pauses_given_up == 0
    assert not frozen.disk.is_held
    frozen.leave(caught.value)
    with pytest.raises(errors.MigrationError):
        frozen.receiver.result()


def test_three_pauses_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: a target that is too slow each time is not asked for ever."""
    frozen = Frozen(tmp_path, disk_of(), 0)
    frozen.valve.open()

    def send_and_wait(_: ending.Ending, held: pause.Pause) -> None:
        until(lambda: held.is_given_up)
        held.check()

    monkeypatch.setattr(ending.Ending, "send", send_and_wait)
    with pytest.raises(errors.NotConverged, match=r"in 3 pauses.*3 pauses were given up after 100 ms") as caught:
        frozen.migration.run()
    frozen.disk.pwrite(b"in use", 0)
    frozen.leave(caught.value)
    with pytest.raises(errors.MigrationError):
        frozen.receiver.result()


class StuckDisk(blkmig.MemoryBackend):
    """A disk of which one write hangs."""

    def __init__(self) -> None:
        super().__init__(bytearray(NBLOCKS * MIB), name="d")
        self.is_in, self.go_on = threading.Event(), threading.Event()

    def _pwrite(self, view: memoryview, offset: int) -> None:
        if offset == 3 * MIB:
            self.is_in.set()
            assert self.go_on.wait(LONG)
        super()._pwrite(view, offset)


def test_a_writer_that_hangs_inside_the_gate_does_not_hold_the_others_up(tmp_path: Path) -> None:
    """B1: holding itself waits, and is ended by the bound."""
    disk = StuckDisk()
    frozen = Frozen(tmp_path, disk, 0)
    frozen.valve.open()
    stuck = Call(lambda: disk.pwrite(b"stuck", 3 * MIB))
    assert disk.is_in.wait(LONG)
    completing = Call(frozen.migration.complete)
    until(lambda: disk.is_held)
    Call(lambda: disk.pwrite(b"later", 0)).result()
    with pytest.raises(errors.NotConverged):
        completing.result()
    disk.go_on.set()
    stuck.result()
    frozen.migration.complete()
    frozen.receiver.result()
    assert frozen.is_same()


class RemoteDisk(blkmig.MemoryBackend):
    """A disk whose writers are held by a command that takes its time, and has the connection to itself meanwhile."""

    def __init__(self, name: str) -> None:
        super().__init__(bytearray(MIB), name=name)
        self.connection = threading.Lock()
        self.asked, self.answered = threading.Event(), threading.Event()

    def hold_writers(self) -> None:
        with self.connection:
            self.asked.set()
            assert self.answered.wait(LONG)
            super().hold_writers()

    def release_writers(self, *, refuse: bool = False) -> None:
        with self.connection:
            super().release_writers(refuse=refuse)


def test_a_hold_that_is_answered_after_the_bound(tmp_path: Path) -> None:
    """B1: those who are held already go on at once, the late ones as soon as it can be said to them."""
    one, late = blkmig.MemoryBackend(bytearray(MIB), name="one"), RemoteDisk("late")
    chosen = blkmig.MigrationParameters(downtime_limit=0.0)
    with blkmig.outgoing([one, late], f"file:{tmp_path}/stream", chosen) as migration:
        completing = Call(migration.complete)
        assert late.asked.wait(LONG)
        Call(lambda: one.pwrite(b"later", 0)).result()
        late.answered.set()
        with pytest.raises(errors.NotConverged):
            completing.result()
        Call(lambda: late.pwrite(b"later", 0)).result()
        migration.complete()
    blkmig.receive(f"file:{tmp_path}/stream", into=tmp_path)
    for disk in (one, late):
        assert (tmp_path / f"{disk.name}.raw").read_bytes() == disk.pread(0, MIB)


def test_a_bound_that_passes_while_end_is_being_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: END cannot be taken back, so the link is cut, and then the writers go on: EOF has not left."""
    frozen = Frozen(tmp_path, disk_of(), 0, writers_after="refuse", return_path=False)
    send_end = frozen.migration.savevm.state_complete_precopy

    def send_much(f: channel.OutputQEMUFile) -> None:
        send_end(f)
        f.put_buffer(b"\x08\x00\x02\x00\x04ping" * (TOO_MUCH // 9))

    monkeypatch.setattr(frozen.migration.savevm, "state_complete_precopy", send_much)
    completing = Call(frozen.migration.complete)
    until(lambda: frozen.disk.is_held)
    Call(lambda: frozen.disk.pwrite(b"later", 0)).result()
    with pytest.raises(errors.NotConverged, match="before the bound of the pause") as caught:
        completing.result()
    frozen.leave(caught.value)
    with pytest.raises(errors.MigrationError):
        frozen.receiver.result()
