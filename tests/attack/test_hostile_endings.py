# SPDX-License-Identifier: GPL-2.0-or-later
"""The end in four messages with a peer that says other things, and with storage that fails: never two owners."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import savevm_streams as streams
import scripted
from handing_over import ASKING, WHOLE, ZERO, commit, done, end, part, ready, start
from pauses import Call, disk_of
from receivers import connected

import blkmig
from blkmig import block, errors
from blkmig.block import ExtraKind, extra
from blkmig.files import folder, partial, sessionfile
from blkmig.migration import made
from blkmig.savevm import commands, words

MIB = lab.MIB
COMMIT = struct.pack(">Q", ExtraKind.COMMIT << 9 | 0x100)
END = struct.pack(">Q", ExtraKind.END << 9 | 0x100)
TAKEN = scripted.message(words.MIG_RP_MSG_REPLY, words.Reply().encode())


# -- targets ---------------------------------------------------------------------------------------------------------


class Target(scripted.Target):
    """A blkmig with the ability, that says READY to each FLUSH and END, and `answer` to COMMIT."""

    def __init__(self, folder: Path, answer: bytes | None, *, abilities: int = words.Ability.COMMIT) -> None:
        self._last_answer = answer
        self._numbers = 0
        hello = scripted.message(words.MIG_RP_MSG_HELLO, words.Hello(abilities=abilities).encode())
        super().__init__(
            folder,
            lambda target, value: target.say(hello if value == words.ASK else scripted.message(2, value)),
            on_start=TAKEN,
        )

    def _take(self) -> None:
        assert self.connection is not None
        original = self.connection

        class Heard:
            """The connection, with a look at what it takes."""

            def __init__(self, target: Target) -> None:
                self._target, self._seen, self._is_over = target, 0, False

            def __getattr__(self, name: str) -> Any:
                return getattr(original, name)

            def recv(self, nbytes: int) -> bytes:
                piece = original.recv(nbytes)
                self._target.look(bytes(self._target.received[-64:]) + piece)
                return piece

        self.connection = Heard(self)  # type: ignore[assignment]
        super()._take()

    def look(self, data: bytes) -> None:
        """Answer what is asked for in the last piece; each comes in a piece of its own, because the source waits."""
        asks = [struct.pack(">Q", (self._numbers + 1) << 9 | 0x40), END]
        if COMMIT in data:
            if self._last_answer is None:
                self.hang_up()
            else:
                self.say(self._last_answer)
        elif any(each in data for each in asks):
            self._numbers += 1
            self.say(ready(self._numbers))


def move_to(target: scripted.Target) -> tuple[BaseException | None, str]:
    """Move a disk there; return what the source raises, and what becomes of a write then."""
    disk = disk_of(2)
    error: BaseException | None = None
    try:
        Call(lambda: blkmig.send([disk], target.uri, writers_after="refuse", downtime_limit=30)).result()
    except errors.MigrationError as caught:
        error = caught
    writing = Call(lambda: disk.pwrite(b"mine", 0))
    if not writing.is_over(0.1):
        disk.release_writers()
        return error, "held"
    try:
        writing.result()
    except errors.MigrationError:
        return error, "refused"
    return error, "done"


ANSWERS: dict[str, tuple[bytes | None, type[BaseException] | None, str]] = {
    "DONE": (done(2), None, "refused"),
    "signs of life, then DONE": (scripted.message(2, 5) * 3 + done(2), None, "refused"),
    "an old DONE": (done(1) + done(2), None, "refused"),
    "nothing, and the link is closed": (None, errors.InDoubt, "held"),
    "an old DONE alone": (done(1) + scripted.message(1, 0), errors.InDoubt, "held"),
    "a word of success": (scripted.message(1, 0), errors.InDoubt, "held"),
    "garbage": (b"GET / HTTP/1.1\r\n\r\n", errors.InDoubt, "held"),
    "not taken": (scripted.message(1, 28), errors.TargetFailed, "done"),
    "not taken, and why": (
        scripted.message(words.MIG_RP_MSG_ERROR, words.Failure("no name").encode()), errors.TargetFailed, "done"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "expected", "writes"), ANSWERS.values(), ids=ANSWERS.keys())
def test_what_a_target_says_to_commit(
    tmp_path: Path, answer: bytes | None, expected: type[BaseException] | None, writes: str
) -> None:
    error, found = move_to(Target(tmp_path, answer))
    assert (type(error) if error else None, found) == (expected, writes)


def test_a_target_of_the_first_edition_ends_as_before(tmp_path: Path) -> None:
    target = Target(tmp_path, None, abilities=0)
    assert move_to(target) == (None, "refused")
    assert COMMIT not in target.received
    assert END not in target.received
    assert target.received.endswith(b"}")


# -- sources ---------------------------------------------------------------------------------------------------------


def heard(folder: Path, said: bytes) -> tuple[bytes, BaseException | None]:
    """Return what a receiver says to a source that says this and no more, and what it raises."""
    receiver = lab.Receiver(f"unix:{folder}/s", {"d": folder / "d.raw"})
    answer = b""
    with connected(receiver.uri) as source:
        source.settimeout(30)
        source.sendall(ASKING + start() + said)
        source.shutdown(1)
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                answer += piece
    return answer, error_of(receiver)


def error_of(receiver: lab.Receiver) -> BaseException | None:
    try:
        receiver.result()
    except errors.MigrationError as error:
        return error
    return None


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*d.raw*")}


REFUSED: dict[str, bytes] = {
    "COMMIT without END": part(ZERO) + commit(1),
    "COMMIT 2 behind END 1": part(ZERO) + end(1) + commit(2),
    "COMMIT 0": part(ZERO) + end(1) + commit(0),
    "COMMIT of what is no kind": part(ZERO) + end(1) + commit(1, 3),
    "half a COMMIT": part(ZERO) + end(1) + part(extra(ExtraKind.COMMIT, bytes(4))),
    "a block between": part(ZERO) + end(1) + part(ZERO) + commit(1),
    "an old COMMIT": part(ZERO) + end(1) + end(2) + commit(1),
    "END 2 first": part(ZERO) + end(2) + commit(2),
    "END 1 twice": part(ZERO) + end(1) + end(1) + commit(1),
    "END 1 behind FLUSH 1": part(ZERO) + streams.part(1, block.flush_records(1)) + end(1) + commit(1),
    "END of nothing": end(1) + commit(1),
    "END of another size": part(ZERO) + end(1, {**WHOLE, "blkmig": {**WHOLE["blkmig"], "disks": []}}),
    "END without a seal": part(ZERO) + part(extra(ExtraKind.END, struct.pack(">I", 1) + b"{}")) + commit(1),
    "no END, and the stream's end": part(ZERO) + streams.end(1) + streams.EOF,
    "END, and the stream's end without a description": part(ZERO) + end(1) + streams.end(1) + streams.EOF,
    "END alone": part(ZERO) + end(1),
    "half of END": part(ZERO) + end(1)[:40],
    "half of COMMIT": part(ZERO) + end(1) + commit(1)[:15],
}


@pytest.mark.parametrize("said", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_hand_the_disks_over(tmp_path: Path, said: bytes) -> None:
    """Nothing is taken, and nothing is left."""
    answer, error = heard(tmp_path, said)
    assert isinstance(error, errors.MigrationError)
    assert not isinstance(error, errors.InDoubt)
    assert struct.pack(">HH", words.MIG_RP_MSG_DONE, 6) not in answer
    assert left(tmp_path) == set()


TAKING: dict[str, bytes] = {
    "the stream goes on to its end": streams.end(1) + streams.EOF,
    "nothing": b"",
    "half a record": part(ZERO)[:9],
    "a block": part(ZERO),
    "COMMIT again": commit(1),
    "END again": end(2),
    "garbage": b"\xff" * 20,
}


@pytest.mark.parametrize("then", TAKING.values(), ids=TAKING.keys())
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_nothing_gives_back_what_was_taken(tmp_path: Path, then: bytes, kind: int) -> None:
    answer, error = heard(tmp_path, part(ZERO) + end(1) + commit(1, kind) + then)
    assert error is None
    assert answer.endswith(done(1))
    assert (tmp_path / "d.raw").read_bytes() == bytes(MIB)
    is_clean = kind == 0
    assert left(tmp_path) <= {"d.raw", ".d.raw.blkmig"}
    assert not is_clean or left(tmp_path) == {"d.raw"}


def test_blocks_between_two_ends(tmp_path: Path) -> None:
    """A pause that was given up: the READY of its END counts for nothing, and the next one is as good."""
    about = {"name": "d", "size": MIB, "resent": [1, 3]}
    resent = {**WHOLE, "blkmig": {**WHOLE["blkmig"], "disks": [about]}}
    said = part(ZERO) + end(1) + part(ZERO) + end(2, resent) + commit(2) + streams.end(1) + streams.EOF
    answer, error = heard(tmp_path, said)
    assert error is None
    assert answer.endswith(ready(1) + ready(2) + done(2))


# -- storage that fails ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(owner: Any, name: str, when: Callable[..., bool]) -> Iterator[None]:
    """Have a call fail with EIO where `when` says so, of its arguments."""
    original = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            raise OSError(5, os.strerror(5))
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, call)
        yield


def moved(folder: Path) -> tuple[Any, Any, blkmig.FileBackend]:
    """Move a file; return what source and target raise, None for success, and the source's disk."""
    (folder / "s.raw").write_bytes(b"x" * MIB)
    receiver = lab.Receiver(f"unix:{folder}/s", {"d": folder / "d.raw"})
    disk = blkmig.FileBackend(folder / "s.raw", name="d")
    error: BaseException | None = None
    try:
        blkmig.send([disk], receiver.uri, writers_after="refuse", downtime_limit=30, reconnect=1)
    except errors.MigrationError as caught:
        error = caught
    return error, error_of(receiver), disk


def test_the_target_cannot_store_that_it_takes_the_disks(tmp_path: Path) -> None:
    """Nobody knows whether it is stored: both are in doubt, nothing is removed, and a restart settles it."""

    def is_taking(file: sessionfile.SessionFile, says: dict[str, Any], **options: Any) -> bool:
        return says.get("state") == "committing"

    with failing(sessionfile.SessionFile, "store", is_taking):
        source, target, disk = moved(tmp_path)
    assert (type(source), type(target)) == (errors.InDoubt, errors.InDoubt)
    writing = Call(lambda: disk.pwrite(b"mine", 0))
    assert not writing.is_over(0.05)
    disk.release_writers()
    writing.result()
    disk.close()
    assert left(tmp_path) == {".d.raw.blkmig-partial", ".d.raw.blkmig"}
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as again:
        with pytest.raises(errors.InDoubt, match="may have moved"):  # before anybody is connected to
            blkmig.send([again], f"unix:{tmp_path}/nobody", writers_after="refuse")
        other = lab.Receiver(f"unix:{tmp_path}/s3", {"d": tmp_path / "e.raw"})
        blkmig.send([again], other.uri)  # a copy takes it from nobody
        other.result()


def test_the_source_cannot_store_its_note(tmp_path: Path) -> None:
    """COMMIT does not leave, and the writers go on."""

    def is_note(file: sessionfile.SessionFile, says: dict[str, Any], **options: Any) -> bool:
        return says.get("state") == "noted"

    with failing(sessionfile.SessionFile, "store", is_note):
        source, target, disk = moved(tmp_path)
    assert isinstance(source, errors.DeviceError)
    assert "session file" in str(source)
    assert isinstance(target, errors.MigrationError)
    disk.pwrite(b"mine", 0)
    disk.close()
    assert left(tmp_path) == {".d.raw.blkmig-partial", ".d.raw.blkmig"}  # for a source that resumes, and no more
    assert not (tmp_path / ".s.raw.blkmig").exists()
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as again:
        other = lab.Receiver(f"unix:{tmp_path}/s2", {"d": tmp_path / "d.raw"})
        blkmig.send([again], other.uri)
        other.result()
        assert (tmp_path / "d.raw").read_bytes() == again.pread(0, MIB)
    assert left(tmp_path) == {"d.raw"}


def test_a_name_that_cannot_be_given(tmp_path: Path) -> None:
    """The target has the disk, says so, and says which name is missing; the next receiver gives it."""
    with failing(folder.Folder, "link", lambda place, old, new: new == "d.raw"):
        source, target, disk = moved(tmp_path)
    assert source is None
    with pytest.raises(errors.MigrationError):
        disk.pwrite(b"mine", 0)
    disk.close()
    assert isinstance(target, errors.DeviceError)
    assert any("hidden name" in note for note in target.__notes__)
    assert (tmp_path / partial.partial_name("d.raw")).read_bytes() == b"x" * MIB
    with (
        pytest.raises(errors.InDoubt, match="they are here, and complete"),
        blkmig.IncomingMigration(f"unix:{tmp_path}/s", {"d": str(tmp_path / "d.raw")}),
    ):
        pass
    assert (tmp_path / "d.raw").read_bytes() == b"x" * MIB


def test_a_folder_that_cannot_be_flushed_behind_done(tmp_path: Path) -> None:
    """The disk has moved; its session file stays, for the mark may be back when the power has failed."""

    def has_one_name(place: folder.Folder) -> bool:
        return place.stat("d.raw") is not None and place.stat(partial.partial_name("d.raw")) is None

    with failing(folder.Folder, "sync", has_one_name):
        source, target, disk = moved(tmp_path)
    disk.close()
    assert (source, target) == (None, None)
    assert left(tmp_path) == {"d.raw", ".d.raw.blkmig"}


def test_a_name_that_is_not_free_any_more(tmp_path: Path) -> None:
    """Before it is taken: not taken, and the source is the owner."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})

    ready_said = commands.Commands.ready

    def say(said: commands.Commands, number: int) -> None:
        (tmp_path / "d.raw").write_bytes(b"somebody else's")
        ready_said(said, number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(commands.Commands, "ready", say)
        with pytest.raises(errors.TargetFailed, match="somebody else has made"):
            blkmig.send([disk_of(2)], receiver.uri, downtime_limit=30)
        receiver.join()
    assert (tmp_path / "d.raw").read_bytes() == b"somebody else's"


def test_a_cancel_that_comes_too_late(tmp_path: Path) -> None:
    """It has no effect, and the source gets its DONE."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})
    original = made.MadeTargets.give_names

    def cancelling(targets: made.MadeTargets) -> Any:
        receiver.migration.cancel()
        return original(targets)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(made.MadeTargets, "give_names", cancelling)
        blkmig.send([disk_of(2)], receiver.uri, writers_after="refuse", downtime_limit=30)
        assert receiver.result().status == "completed"
