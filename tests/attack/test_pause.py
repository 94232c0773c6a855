# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on the pause: targets that freeze, writers that hang, cancels and lost links at each moment of the end.

No writer waits for longer than the bound of the pause: seen by writers that go on while the target is still frozen.
Nothing is lost by a pause that is given up, and no disk has two owners.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import valve

import blkmig
from blkmig import errors, params, savevm
from blkmig.migration import connection, pause

MIB = lab.MIB
LONG = 30  # seconds that nothing here takes
NBLOCKS = 24
TOO_MUCH = 16 * MIB
"""More than the buffers of a socket hold."""


@pytest.fixture(autouse=True)
def _short_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MIN_DOWNTIME_BOUND", 0.1)


def disk_of(nblocks: int = NBLOCKS) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(b"x" * nblocks * MIB), name="d")


class Call:
    """A function that runs in a thread of its own; `result` waits for it and returns or raises what it did."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def is_over(self, seconds: float = 0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Any:
        assert self.is_over(LONG), "it hangs"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    for _ in range(LONG * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never is")


class Frozen:
    """A migration whose bulk phase is over, and whose target takes nothing any more."""

    def __init__(self, folder: Path, disk: blkmig.MemoryBackend, dirty: int, **parameters: Any) -> None:
        self.disk = disk
        self.target = bytearray(disk.size)
        destination = blkmig.MemoryBackend(self.target, name="d")
        self.receiver = lab.Receiver(f"unix:{folder}/s", {"d": destination})
        self.valve = valve.Valve(folder, self.receiver.uri)
        chosen = blkmig.MigrationParameters(**{"downtime_limit": 0.0, **parameters})
        self.migration = blkmig.outgoing([disk], self.valve.uri, chosen)
        self.migration.__enter__()
        while not self.migration._block.blk_mig.bulk_completed:
            self.migration.iterate()
        until(lambda: self.valve.passed == self.migration._connection.f.transferred)
        self.valve.shut()
        disk.pwrite(b"dirty" * (dirty // 5), 0)

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the ``with`` of the migration, and let the receiver come to its end."""
        self.migration.__exit__(type(error) if error else None, error, None)
        self.valve.open()

    def is_same(self) -> bool:
        """Return whether the target has what the disk has."""
        return self.target == self.disk.pread(0, self.disk.size)


# -- B1: the pause has a bound of its own ------------------------------------------------------------------------------


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
@pytest.mark.parametrize("dirty", [TOO_MUCH, 5])
def test_writers_go_on_while_the_target_is_frozen(tmp_path: Path, writers_after: str, dirty: int) -> None:
    """B1: blocked in a send with much to send; with little, in a move, in the wait for a sign of the target."""
    frozen = Frozen(tmp_path, disk_of(), dirty, writers_after=writers_after)
    completing = Call(frozen.migration.complete)
    until(lambda: frozen.disk._held or frozen.migration.stats.downtime is not None)
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
    assert stats.downtime_given_up >= frozen.migration.parameters.downtime_bound
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


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_target_that_stays_frozen_ends_with_not_converged(tmp_path: Path, writers_after: str) -> None:
    """B1, B3: the time-out ends what waits in the channel; the source is in use, the target never complete."""
    frozen = Frozen(tmp_path, disk_of(), TOO_MUCH, writers_after=writers_after, timeout=0.6, idle_timeout=0)
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
    with pytest.raises(errors.MigrationError):
        frozen.receiver.result()


def test_three_pauses_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: a target that is too slow each time is not asked for ever."""
    frozen = Frozen(tmp_path, disk_of(), 0)
    frozen.valve.open()

    def send_and_wait(held: pause.Pause) -> None:
        until(lambda: held._state == "given up")
        held.check()

    monkeypatch.setattr(frozen.migration._ending, "send", send_and_wait)
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
    until(lambda: disk._held)
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
    send_eof = frozen.migration._ending._send_eof

    def fill_first() -> None:
        frozen.migration._connection.f.put_buffer(b"\x08\x00\x02\x00\x04ping" * (TOO_MUCH // 9))
        send_eof()

    monkeypatch.setattr(frozen.migration._ending, "_send_eof", fill_first)
    completing = Call(frozen.migration.complete)
    until(lambda: frozen.disk._held)
    Call(lambda: frozen.disk.pwrite(b"later", 0)).result()
    with pytest.raises(errors.NotConverged, match="before the bound of the pause") as caught:
        completing.result()
    frozen.leave(caught.value)
    with pytest.raises(errors.MigrationError):
        frozen.receiver.result()


# -- B9, A2: past the end of the stream of a move ----------------------------------------------------------------------


class Peer:
    """A target that takes the stream, and says on the return path what it was told to, when it was told to.

    `answers` that it gets PINGs are answered, as by any target.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = f"unix:{folder}/peer"
        self.received = bytearray()
        self.connection: socket.socket | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/peer")
        self._server.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._server, contextlib.suppress(OSError):
            self.connection = self._server.accept()[0]
            answered = 0
            while piece := self.connection.recv(1 << 20):
                self.received += piece
                ping = self.received.rfind(b"\x08\x00\x02\x00\x04end")
                if ping > answered and len(self.received) >= ping + 9:
                    answered = ping
                    self.connection.sendall(b"\x00\x02\x00\x04" + self.received[ping + 5 : ping + 9])

    def has_end(self) -> bool:
        """Return whether the whole stream has come: the description is its end."""
        return b'"blkmig"' in self.received[-4096:] and self.received.endswith(b"}")

    def say(self, status: int) -> None:
        assert self.connection is not None
        self.connection.sendall(struct.pack(">HHI", 1, 4, status))

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)


def moving(disk: blkmig.MemoryBackend, uri: str, **parameters: Any) -> blkmig.OutgoingMigration:
    return blkmig.outgoing([disk], uri, blkmig.MigrationParameters(writers_after="refuse", **parameters))


def run(migration: blkmig.OutgoingMigration) -> None:
    with migration:
        migration.run()


def check_doubt(disk: blkmig.MemoryBackend, error: errors.InDoubt) -> None:
    """The writers stay held until somebody says that they may go on, and the error says how."""
    assert error.exit_code == 7
    for word in ("'d'", "may own the disk", "on the target", "blkmig cleanup --force", "release_writers()"):
        assert word.lower() in str(error).lower()
    writing = Call(lambda: disk.pwrite(b"mine again", 0))
    assert not writing.is_over(0.05)
    disk.release_writers()
    writing.result()


@pytest.mark.parametrize("how", ["cancel", "hang up", "timeout"])
def test_a_word_that_does_not_come_leaves_the_writers_held(tmp_path: Path, how: str) -> None:
    """B9, A2: the target may own the disk."""
    peer, disk = Peer(tmp_path), disk_of(2)
    migration = moving(disk, peer.uri, timeout=0.3 if how == "timeout" else None)
    running = Call(lambda: run(migration))
    until(peer.has_end)
    if how == "cancel":
        migration.cancel()
    if how == "hang up":
        peer.hang_up()
    with pytest.raises(errors.InDoubt) as caught:
        running.result()
    assert migration.status == "failed"
    check_doubt(disk, caught.value)


def test_a_target_that_says_that_it_failed_owns_nothing(tmp_path: Path) -> None:
    """B9: there is no doubt, and the writers go on."""
    peer, disk = Peer(tmp_path), disk_of(2)
    running = Call(lambda: run(moving(disk, peer.uri)))
    until(peer.has_end)
    peer.say(28)
    with pytest.raises(errors.MigrationError) as caught:
        running.result()
    assert not isinstance(caught.value, errors.InDoubt)
    disk.pwrite(b"mine", 0)


def test_a_whole_vm_does_not_move_without_its_rest(tmp_path: Path) -> None:
    """B9: where the target needs more than the disk, a lost word leaves no doubt."""
    peer, disk = Peer(tmp_path), disk_of(2)
    disk.about_to_move = lambda: False  # type: ignore[method-assign]
    running = Call(lambda: run(moving(disk, peer.uri)))
    until(peer.has_end)
    peer.hang_up()
    with pytest.raises(errors.ChannelError):
        running.result()
    disk.pwrite(b"mine", 0)


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, whatever the test was started with."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("again_in", ["nothing", "leave_in_doubt", "release_dirty_bitmap"])
def test_ctrl_c_while_the_word_is_waited_for(tmp_path: Path, again_in: str) -> None:
    """B9: exit code 7, and a second Ctrl-C does not let the writers go."""
    peer, disk = Peer(tmp_path), disk_of(2)
    if again_in != "nothing":
        original = getattr(disk, again_in)

        def interrupted(*arguments: object) -> None:
            original(*arguments)
            signal.raise_signal(signal.SIGINT)

        setattr(disk, again_in, interrupted)

    def interrupt() -> None:
        until(peer.has_end)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with interrupts():
        interrupting = Call(interrupt)
        with pytest.raises((errors.InDoubt, KeyboardInterrupt)) as caught:
            run(moving(disk, peer.uri))
        interrupting.result()
    assert (caught.type is errors.InDoubt) == (again_in == "nothing")
    writing = Call(lambda: disk.pwrite(b"mine again", 0))
    assert not writing.is_over(0.05)
    disk.release_writers()
    writing.result()


def test_what_the_writers_write_after_a_cancel_is_in_no_complete_image(tmp_path: Path) -> None:
    """A2: pages of the file are in the channel, the sender is cancelled before the end: the receiver fails."""
    (tmp_path / "s.raw").write_bytes(b"x" * NBLOCKS * MIB)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    relay = valve.Valve(tmp_path, receiver.uri)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        migration = blkmig.outgoing([disk], relay.uri, blkmig.MigrationParameters(writers_after="refuse"))
        running = Call(lambda: run(migration))
        until(lambda: relay.passed)
        relay.shut()
        migration.cancel()
        with pytest.raises(errors.Cancelled):
            running.result()
        disk.pwrite(b"after", 20 * MIB)
    relay.open()
    with pytest.raises(errors.MigrationError):
        receiver.result()


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_caller_who_takes_his_time_does_not_end_the_pause(tmp_path: Path, writers_after: str) -> None:
    """B9: the caller is told that the word is waited for, and does not come back before the bound has passed."""
    disk, phases = disk_of(2), []

    def on_progress(event: blkmig.stats.Event) -> None:
        if isinstance(event, blkmig.stats.Progressed):
            phases.append(event.phase)
            threading.Event().wait(0.3 if event.phase == "waiting" else 0)

    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    parameters = blkmig.MigrationParameters(downtime_limit=0.0, writers_after=writers_after)
    run(blkmig.outgoing([disk], receiver.uri, parameters, on_progress=on_progress))
    receiver.result()
    assert "waiting" in phases


# -- A9: the target's word counts after the end ------------------------------------------------------------------------


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_word_before_the_end_is_no_success(tmp_path: Path, writers_after: str) -> None:
    """A9: "done" from a peer that cannot know."""
    peer, disk = Peer(tmp_path), disk_of(2)
    migration = blkmig.outgoing([disk], peer.uri, blkmig.MigrationParameters(writers_after=writers_after))
    with migration:
        until(lambda: peer.connection)
        peer.say(0)
        with pytest.raises(errors.MigrationError, match=r"before the stream's end"):
            migration.run()
    assert not peer.has_end()
    disk.pwrite(b"mine", 0)


def test_an_old_answer_is_not_taken_for_the_new_one() -> None:
    """A target that thaws answers the PINGs of all the pauses that were given up."""
    link: Any = connection.Connection.__new__(connection.Connection)
    link._barriers, link._uri = 2, "test:"
    link._return_path = path = object()
    values = iter([connection.BARRIER_PING + 1, None, connection.BARRIER_PING + 2])
    link._read_before_end = lambda given: next(values) if given is path else None
    link.end_barrier()
    assert next(values, "all read") == "all read"
    assert savevm.MIG_RP_MSG_PONG == 2
