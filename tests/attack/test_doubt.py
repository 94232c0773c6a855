# SPDX-License-Identifier: GPL-2.0-or-later
"""A word of the target that does not come, or comes at the wrong time, at the end of a move."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import valve
from pauses import MIB, NBLOCKS, Call, disk_of, outcome_of_write, until
from return_paths import PONG, READY, RESUME_ACK, SHUT, linked, message, no_blocks

import blkmig
from blkmig import errors, params, savevm, stats
from blkmig.migration import questions


@pytest.fixture(autouse=True)
def _short_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MIN_DOWNTIME_BOUND", 0.1)


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
                ping = self.received.rfind(b"\x08\x00\x02\x00\x04")
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


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_ctrl_c_while_the_writers_are_refused(tmp_path: Path, section: str) -> None:
    """The target has said that the disks are its own: an interrupt before the last one is refused frees none of them.
    """
    disks = [blkmig.MemoryBackend(bytearray(b"x" * MIB), name=name) for name in ("one", "two")]
    for disk in disks:
        original, calls = disk.release_writers, iter([True])

        def interrupted(*, refuse: bool = False, original: Any = original, calls: Iterator[bool] = calls) -> None:
            if next(calls, False):
                raise KeyboardInterrupt
            original(refuse=refuse)

        disk.release_writers = interrupted  # type: ignore[method-assign]
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {disk.name: tmp_path / f"{disk.name}.raw" for disk in disks})
    with pytest.raises(KeyboardInterrupt):
        blkmig.send(disks, receiver.uri, writers_after="refuse", format=section)
    receiver.join()
    assert [outcome_of_write(disk) for disk in disks] == ["refused", "refused"]


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_ctrl_c_while_the_caller_is_told_that_the_disks_have_moved(tmp_path: Path, section: str) -> None:
    def interrupted(event: stats.Event) -> None:
        if isinstance(event, stats.DisksComplete):
            raise KeyboardInterrupt

    disk, receiver = disk_of(2), lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})
    with pytest.raises(KeyboardInterrupt):
        blkmig.send([disk], receiver.uri, writers_after="refuse", format=section, on_progress=interrupted)
    assert receiver.result().status == "completed"
    assert outcome_of_write(disk) == "refused"


def test_what_the_writers_write_after_a_cancel_is_in_no_complete_image(tmp_path: Path) -> None:
    """A2: pages of the file are in the channel, the sender is cancelled before the end: the receiver fails."""
    (tmp_path / "s.raw").write_bytes(b"x" * NBLOCKS * MIB)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
    relay = valve.Valve(tmp_path, receiver.uri)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        migration = blkmig.outgoing(
            [disk], relay.uri, blkmig.MigrationParameters(writers_after="refuse", reconnect=0)
        )
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


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_an_old_answer_is_not_taken_for_the_new_one(section: str) -> None:
    """A target that thaws answers the questions of all the pauses that were given up."""
    state: Any = savevm.SaveState()
    state.register_savevm_live(section, 0, 1, savevm.SaveVMHandlers())
    old, new = (
        message(PONG, questions.BARRIER_PING + number) if section == "block" else message(READY, number)
        for number in (1, 2)
    )
    for said, has_failed in ((old + message(RESUME_ACK, 0) + new, False), (old + message(SHUT, 1), True)):
        with linked(section) as (link, target):
            asked = questions.Questions(link, no_blocks(section))
            for _ in range(2):
                asked.begin_barrier(state)
            target.sendall(said)
            with pytest.raises(errors.MigrationError) if has_failed else contextlib.nullcontext():
                asked.end_barrier()
            assert link.has_target_failed is has_failed
