# SPDX-License-Identifier: GPL-2.0-or-later
"""The receiver is killed when it has taken the disks, and the next one tells the source, which asks: nobody doubts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forks
import lab
import pytest
from pauses import Call, until

import blkmig
from blkmig import errors
from blkmig.channel import token
from blkmig.files import folder, sessionfile
from blkmig.migration import made, sessions, targets
from blkmig.savevm import commands

MIB = lab.MIB
CONTENT = bytes(range(1, 251)) * 20_000
POINTS: dict[str, tuple[type, str]] = {
    "names": (made.MadeTargets, "give_names"),
    "unlock": (targets.TargetSet, "close"),
    "DONE": (commands.Commands, "done"),
}
STORED = "stored"


def die(*args: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_stored(store: Callable[..., None]) -> Callable[..., None]:
    def struck(self: sessions.SessionFiles, state: Any, number: int) -> None:
        store(self, state, number)
        die()

    return struck


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def said_by(file: Path) -> Mapping[str, Any]:
    """Return what a session file says."""
    with contextlib.closing(folder.Folder(file.parent)) as place:
        found = sessionfile.SessionFile(place, "t.raw", device="t", create=False)
        with contextlib.closing(found):
            return dict(found.says)


class Case:
    """A move whose receiver is killed at a point of the end."""

    def __init__(self, folder: Path, point: str, *, reconnect: float = 20, by_token: bool = False) -> None:
        self.uri, self.target = f"tls:127.0.0.1:{free_port()}" if by_token else f"unix:{folder}/s", folder / "to/t.raw"
        self.target.parent.mkdir()
        self.disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
        reading, ready = os.pipe()
        self.pid = forks.start(lambda: self._receive(point, ready))
        os.close(ready)
        with open(reading) as file:  # noqa: PTH123
            self.token = file.readline()[1:]
        tls = blkmig.TlsParameters(token=self.token) if by_token else None
        parameters = blkmig.MigrationParameters(
            writers_after="refuse", reconnect=reconnect, downtime_limit=30, tls=tls
        )
        self.migration = blkmig.outgoing([self.disk], self.uri, parameters)
        self.sending = Call(self._send)
        os.waitpid(self.pid, 0)

    def _receive(self, point: str, ready: int) -> None:
        if point == STORED:
            sessions.SessionFiles.store = die_when_stored(sessions.SessionFiles.store)  # type: ignore[method-assign]
        else:
            setattr(*POINTS[point], die)
        with self.receiver() as receiver:
            os.write(ready, f"!{receiver.token}\n".encode())
            receiver.run()

    def _send(self) -> None:
        with self.migration:
            self.migration.run()

    def receiver(self) -> blkmig.IncomingMigration:
        return blkmig.IncomingMigration(self.uri, {"d": self.target}, blkmig.IncomingParameters(accept_timeout=20))

    def meet(self) -> errors.InDoubt:
        with pytest.raises(errors.InDoubt, match="they are here, and complete") as caught, self.receiver():
            pass
        return caught.value


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("point", [STORED, *POINTS])
def test_the_next_receiver_answers(tmp_path: Path, point: str, by_token: bool) -> None:
    """Also where the source trusts nobody but who has made its token."""
    case = Case(tmp_path, point, by_token=by_token)
    met = case.meet()
    assert "its source has asked, and knows" in met.__notes__
    assert "secret" not in met.taken
    case.sending.result()
    assert case.target.read_bytes() == CONTENT
    with pytest.raises(errors.DeviceError, match="moved"):
        case.disk.pwrite(b"mine", 0)
    with case.receiver():  # the second one receives anew
        pass
    assert case.target.read_bytes() == CONTENT


def test_a_source_that_has_given_up_is_not_waited_for(tmp_path: Path) -> None:
    """Its time is over, and its word of that reached nobody: the file says how long somebody may ask."""
    case = Case(tmp_path, STORED, reconnect=0.1)
    with pytest.raises(errors.InDoubt, match="did not come back"):
        case.sending.result()
    file = case.target.with_name(sessionfile.session_name(case.target.name))
    os.utime(file, (0, file.stat().st_mtime - 100))
    assert not hasattr(case.meet(), "__notes__")
    assert case.target.read_bytes() == CONTENT
    case.disk.release_writers()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_cancel_ends_the_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture, when: str) -> None:
    """Of a program that opens its receiver in one thread and cancels in another one; a source would have 50 s."""
    case = Case(tmp_path, STORED, reconnect=0.1)
    with pytest.raises(errors.InDoubt, match="did not come back"):
        case.sending.result()
    receiver = case.receiver()
    if when == "before":
        receiver.cancel()
    entering = Call(receiver.__enter__)
    until(lambda: "its source is waited for" in caplog.text)
    if when == "meanwhile":
        receiver.cancel()
    with pytest.raises(errors.InDoubt, match="they are here, and complete") as caught:
        entering.result()
    assert "its source has not asked" in caught.value.__notes__
    assert case.target.read_bytes() == CONTENT
    case.disk.release_writers()


def test_what_the_token_was_made_of_is_kept_while_somebody_may_ask(tmp_path: Path) -> None:
    """And is nobody's but this user's; whoever has another token is told nothing."""
    case = Case(tmp_path, STORED, by_token=True)
    file = case.target.with_name(sessionfile.session_name(case.target.name))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert case.token.encode() not in file.read_bytes()
    assert said_by(file)["secret"]
    meeting = Call(case.meet)
    stranger = blkmig.MemoryBackend(bytearray(MIB), name="x")
    other = blkmig.TlsParameters(token=token.Token(bytes(32), bytes(32)).text())
    with pytest.raises(errors.ChannelError):
        blkmig.send([stranger], case.uri, reconnect=0, connect_timeout=5, tls=other)
    case.sending.result()
    assert "its source has asked, and knows" in meeting.result().__notes__
    assert "secret" not in said_by(file)


def test_a_stranger_is_told_nothing(tmp_path: Path) -> None:
    """Whoever has not the key is closed, and the source is told all the same."""
    case = Case(tmp_path, STORED)
    meeting = Call(case.meet)
    stranger = blkmig.MemoryBackend(bytearray(MIB), name="x")
    with pytest.raises(errors.ChannelError):
        blkmig.send([stranger], case.uri, reconnect=0, connect_timeout=5)
    case.sending.result()
    assert "its source has asked, and knows" in meeting.result().__notes__


def test_what_is_kept_for_that_is_no_secret_of_others(tmp_path: Path) -> None:
    case = Case(tmp_path, STORED)
    file = case.target.with_name(sessionfile.session_name(case.target.name))
    assert file.stat().st_mode & 0o777 == 0o600
    assert b'"key"' in file.read_bytes()
    case.meet()
    case.sending.result()
    assert b'"seconds"' not in _newest(file)


def _newest(file: Path) -> bytes:
    data = file.read_bytes()
    slots = [data[: len(data) // 2], data[len(data) // 2 :]]
    newest = max(slots, key=lambda slot: slot[8:16])
    return json.dumps(json.loads(newest[24 : 24 + int.from_bytes(newest[16:20], "big")])).encode()
