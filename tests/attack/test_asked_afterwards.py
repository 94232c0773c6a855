# SPDX-License-Identifier: GPL-2.0-or-later
"""The receiver is killed when it has taken the disks, and the next one tells the source, which asks: nobody doubts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import lab
import pytest
from pauses import Call

import blkmig
from blkmig import errors
from blkmig.files import sessionfile
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


class Case:
    """A move whose receiver is killed at a point of the end."""

    def __init__(self, folder: Path, point: str, *, reconnect: float = 20) -> None:
        self.uri, self.target = f"unix:{folder}/s", folder / "to" / "t.raw"
        self.target.parent.mkdir()
        self.disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
        reading, ready = os.pipe()
        self.pid = forks.start(lambda: self._receive(point, ready))
        os.close(ready)
        assert os.read(reading, 1) == b"!"
        os.close(reading)
        parameters = blkmig.MigrationParameters(writers_after="refuse", reconnect=reconnect, downtime_limit=30)
        self.migration = blkmig.outgoing([self.disk], self.uri, parameters)
        self.sending = Call(self._send)
        os.waitpid(self.pid, 0)

    def _receive(self, point: str, ready: int) -> None:
        if point == STORED:
            sessions.SessionFiles.store = die_when_stored(sessions.SessionFiles.store)  # type: ignore[method-assign]
        else:
            setattr(*POINTS[point], die)
        with self.receiver() as receiver:
            os.write(ready, b"!")
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


@pytest.mark.parametrize("point", [STORED, *POINTS])
def test_the_next_receiver_answers(tmp_path: Path, point: str) -> None:
    case = Case(tmp_path, point)
    assert "its source has asked, and knows" in case.meet().__notes__
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
