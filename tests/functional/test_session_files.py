# SPDX-License-Identifier: GPL-2.0-or-later
"""Where session files are while a migration runs, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Any

import lab
import pytest
import session_states

import blkmig
from blkmig import errors
from blkmig.files import sessionfile
from blkmig.migration import convergence, ending, pause, questions, rounds, sessions

MIB = lab.MIB


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*d.raw*")}


def receive(folder: Path, **options: Any) -> lab.Receiver:
    return lab.Receiver(f"unix:{folder}/s", {"d": folder / "d.raw"}, **options)


def test_a_folder_for_session_files(tmp_path: Path) -> None:
    """They are there while the migration runs, and nowhere else, and gone afterwards."""
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    seen: list[set[str]] = []

    def on_progress(event: object) -> None:
        seen.append({path.name.partition("-")[0] for path in state.iterdir()} | left(tmp_path))

    receiver = receive(tmp_path, state_dir=state)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        blkmig.send(
            [disk], receiver.uri, writers_after="refuse", downtime_limit=30, state_dir=state, on_progress=on_progress
        )
    receiver.result()
    assert {".s.raw", ".d.raw"} <= set().union(*seen)
    assert ".d.raw.blkmig" not in set().union(*seen)
    assert list(state.iterdir()) == []
    assert left(tmp_path) == {"d.raw"}


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_folder_for_session_files_that_is_not_there(tmp_path: Path, side: str) -> None:
    """Who said it wants to know before anything is sent."""
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    missing = {"state_dir": tmp_path / "missing"}
    if side == "target":
        with pytest.raises(errors.ParameterError, match="session files cannot be in"):
            receive(tmp_path, **missing)
        assert left(tmp_path) == set()
        return
    listening = receive(tmp_path)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        for after in ("refuse", "release"):
            with pytest.raises(errors.ParameterError, match="session files cannot be in"):
                blkmig.send([disk], listening.uri, writers_after=after, **missing)
        disk.pwrite(b"mine", 0)
    assert not listening.is_over
    listening.migration.cancel()
    listening.join()
    assert left(tmp_path) == set()


def test_a_folder_for_session_files_within_one_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C7: the present folder of a shell may have been removed."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for kind in (blkmig.MigrationParameters, blkmig.IncomingParameters):
        with pytest.raises(errors.ParameterError, match="the folder for session files, 'state', is not found"):
            kind(state_dir="state")
        with pytest.raises(errors.ParameterError, match="NUL"):
            kind(state_dir="a\0b")


@pytest.mark.parametrize("section", ["block", "blkmig"])
def test_a_disk_that_may_have_moved_moves_nowhere(tmp_path: Path, section: str) -> None:
    """In whatever section, as to a QEMU; nobody is connected to, and a copy is free to go."""
    source = tmp_path / "d.raw"
    source.write_bytes(b"x" * MIB)
    with contextlib.closing(sessionfile.folder.Folder(tmp_path)) as place:
        note = sessionfile.SessionFile(place, source.name, device="d")
        note.begin({"id": "1", "side": "source", "state": "noted", "disks": [{"path": str(source)}]})
        note.close()
    with blkmig.FileBackend(source, name="d") as disk:
        with pytest.raises(errors.InDoubt, match="may have moved"):
            blkmig.send([disk], f"unix:{tmp_path}/nobody", writers_after="refuse", format=section, connect_timeout=20)
        disk.pwrite(b"mine", 0)
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})
        blkmig.send([disk], receiver.uri, format=section)
        receiver.result()
    assert left(tmp_path) == {"d.raw", ".d.raw.blkmig"}


def test_without_a_place_it_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def no_file(*args: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sessionfile.SessionFile, "__init__", no_file)
        receiver = receive(tmp_path)
        (tmp_path / "s.raw").write_bytes(b"x" * MIB)
        with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
            blkmig.send([disk], receiver.uri, writers_after="refuse", downtime_limit=30)
        receiver.result()
    assert caplog.text.count("no session file can be made (Read-only file system)") == 2


def test_what_came_and_may_be_this_hosts_is_told_by_its_hidden_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store that decides it has failed: no target has its name, and none is said to be complete there."""

    def full(self: sessions.SessionFiles, state: str, number: int) -> None:
        if state == "committing":
            raise errors.DeviceError("cannot store the session file", device="d", cause=OSError(errno.ENOSPC, "full"))

    monkeypatch.setattr(sessions.SessionFiles, "store", full)
    receiver = receive(tmp_path)
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    with pytest.raises(errors.InDoubt):
        blkmig.send([disk], receiver.uri, writers_after="refuse", reconnect=0)
    with pytest.raises(errors.InDoubt, match="full; make room there") as caught:
        receiver.result()
    path = tmp_path / "d.raw"
    told = f"all of {str(path)!r} has come, and is there under a hidden name; the source may not know"
    assert caught.value.__notes__ == [told]
    assert not path.exists()
    assert path.with_name(".d.raw.blkmig-partial").read_bytes() == b"x" * MIB
    disk.release_writers()


def test_the_note_of_a_move_is_there_before_its_writers_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To store it takes milliseconds that no writer waits for; a pause that is given up withdraws it."""
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    receiver = receive(tmp_path)
    seen: list[str | None] = []

    def given_up_once(self: pause.Pause) -> None:
        seen.append(session_states.state_of(tmp_path / "s.raw"))
        original(self)
        if len(seen) == 1:
            self._bound_passed()

    original = pause.Pause.hold
    monkeypatch.setattr(pause.Pause, "hold", given_up_once)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        parameters = blkmig.MigrationParameters(writers_after="refuse", downtime_limit=30)
        with blkmig.OutgoingMigration([disk], receiver.uri, parameters) as migration:
            with pytest.raises(errors.NotConverged):
                migration.complete()
            assert session_states.state_of(tmp_path / "s.raw") == "open"
            migration.complete()
    receiver.result()
    assert seen == ["noted", "noted"]
    assert left(tmp_path) == {"d.raw"}


@pytest.mark.parametrize("fails", ["flush", "store"])
def test_a_note_of_a_move_whose_pause_never_began_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """It was stored beside the flush ahead, and what failed then has left the disk to its source."""
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    receiver = receive(tmp_path)
    seen: list[str | None] = []

    def refused(self: questions.Questions, **options: bool) -> None:
        seen.append(session_states.state_of(tmp_path / "s.raw"))
        raise errors.TargetFailed("cannot flush")

    def full(self: sessionfile.SessionFile, *_: object, **options: object) -> None:
        seen.append("noted")
        raise OSError(errno.ENOSPC, "full")

    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        parameters = blkmig.MigrationParameters(writers_after="refuse", downtime_limit=30)
        with blkmig.OutgoingMigration([disk], receiver.uri, parameters) as migration:
            if fails == "flush":
                monkeypatch.setattr(questions.Questions, "end_barrier", refused)
            else:
                monkeypatch.setattr(sessionfile.SessionFile, "store", full)
            with pytest.raises(errors.MigrationError):
                migration.run()
        disk.pwrite(b"mine", 0)
    with pytest.raises(errors.MigrationError):
        receiver.result()
    assert seen == ["noted"]
    assert session_states.state_of(tmp_path / "s.raw") is None


@pytest.mark.parametrize("takes_its_time", [False, True])
def test_after_a_flush_that_takes_its_time_nobody_may_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes_its_time: bool
) -> None:
    """Whether somebody writes past the hold is asked beside the flush, and once more behind one that was long."""
    looks: list[str] = []
    ended = questions.Questions.end_barrier

    class Watched(blkmig.FileBackend):
        def sync_dirty(self) -> None:
            looks.append("look")

    def end_barrier(self: questions.Questions, *, all_is_sent: bool = False) -> None:
        ended(self, all_is_sent=all_is_sent)
        if all_is_sent:
            looks.append("READY")

    monkeypatch.setattr(questions.Questions, "end_barrier", end_barrier)
    if takes_its_time:
        monkeypatch.setattr(ending, "STALE_SECONDS", -1.0)
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    receiver = receive(tmp_path)
    with Watched(tmp_path / "s.raw", name="d") as disk:
        blkmig.send([disk], receiver.uri, writers_after="refuse", downtime_limit=30)
    receiver.result()
    ready = looks.index("READY")
    assert looks[ready - 1] == "look"
    assert ("look" in looks[ready:]) == takes_its_time


def test_a_note_does_not_stand_through_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not time for the pause after the flush ahead, a sender that is killed then leaves no doubt."""
    (tmp_path / "s.raw").write_bytes(b"x" * MIB)
    receiver = receive(tmp_path)
    seen: list[str | None] = []
    answers = iter([True, False, False, True])

    def is_ready(self: convergence.Convergence) -> bool:
        return next(answers, True)

    def iterate(self: rounds.Rounds) -> None:
        if flushed:
            seen.append(session_states.state_of(tmp_path / "s.raw"))
        iterated(self)

    def flush_ahead(self: ending.Ending) -> bool:
        is_flushed = flush(self)
        flushed.append(session_states.state_of(tmp_path / "s.raw"))
        return is_flushed

    flushed: list[str | None] = []
    iterated, flush = rounds.Rounds.iterate, ending.Ending.flush_ahead
    monkeypatch.setattr(convergence.Convergence, "is_ready", is_ready)
    monkeypatch.setattr(rounds.Rounds, "fetch_anew", lambda self: None)
    monkeypatch.setattr(rounds.Rounds, "iterate", iterate)
    monkeypatch.setattr(ending.Ending, "flush_ahead", flush_ahead)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        blkmig.send([disk], receiver.uri, writers_after="refuse", downtime_limit=30)
    receiver.result()
    assert (flushed, seen) == (["noted"], ["open", "open"])
    assert left(tmp_path) == {"d.raw"}
