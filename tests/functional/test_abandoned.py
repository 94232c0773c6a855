# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration whose own thread hangs for good is ended by another one: the writers go on, unless it is in doubt."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pauses
import pytest

import blkmig
from blkmig import errors, hanging
from blkmig.migration import farewell, questions, targets

SOON = 9.0
CALL = hanging.Call(1, "1", "0 0x3", "read", "/d.raw")


class Hung(blkmig.MemoryBackend):
    """A disk whose reads hang once its writers are held; it notes how they are let go."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__(bytearray(b"x" * pauses.MIB * 4), name="d")
        self._hangs = hangs
        self.is_hung, self.go_on = threading.Event(), threading.Event()
        self.released: list[bool] = []

    def hold_writers(self) -> None:
        self.mark_dirty(0, 4096)
        super().hold_writers()
        self._is_held = True

    _is_held = False

    def _wait(self) -> None:
        if self._hangs and self._is_held:
            self.is_hung.set()
            assert self.go_on.wait(2 * pauses.LONG)

    def read_block(self, *args: Any) -> bool:
        self._wait()
        return super().read_block(*args)

    def read_extents(self, *args: Any) -> None:
        self._wait()
        super().read_extents(*args)

    def release_writers(self, *, refuse: bool = False) -> None:
        self.released.append(refuse)
        super().release_writers(refuse=refuse)


@contextlib.contextmanager
def migrating(
    disk: Hung, folder: Path, **more: Any
) -> Iterator[tuple[blkmig.OutgoingMigration, Any, pauses.Call, pauses.Call]]:
    """Move the disk; give both ends, and the calls that run them."""
    incoming = blkmig.incoming(f"unix:{folder}/s", {"d": folder / "copy.raw"})
    parameters = blkmig.MigrationParameters(writers_after="refuse", downtime_factor=1000, **more)
    with incoming:
        outgoing = blkmig.outgoing([disk], incoming.uri, parameters)
        receiver = pauses.Call(incoming.run)

        def send() -> None:
            with outgoing:
                outgoing.run()

        sender = pauses.Call(send)
        try:
            yield outgoing, incoming, sender, receiver
        finally:
            disk.go_on.set()
            assert sender.is_over(pauses.LONG)


def test_a_read_that_hangs_in_the_pause(tmp_path: Path) -> None:
    disk = Hung(hangs=True)
    with migrating(disk, tmp_path) as (outgoing, _, _, receiver):
        assert disk.is_hung.wait(pauses.LONG)
        outgoing.cancel()
        error = outgoing.abandon(CALL)
        assert isinstance(error, errors.Cancelled)
        assert error.__notes__[0].startswith("a call that is to read a file, '/d.raw',")
        assert disk.released
        assert not any(disk.released)
        assert receiver.is_over(SOON), "it waits for a source that has given up"
        with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
            receiver.result()


def test_who_hangs_behind_the_handover_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, original = Hung(hangs=False), questions.Questions.await_done

    def await_done(self: questions.Questions) -> Any:
        disk.is_hung.set()
        assert disk.go_on.wait(2 * pauses.LONG)
        return original(self)

    monkeypatch.setattr(questions.Questions, "await_done", await_done)
    with migrating(disk, tmp_path) as (outgoing, _, _, _):
        assert disk.is_hung.wait(pauses.LONG)
        outgoing.cancel()
        error = outgoing.abandon(CALL)
        assert isinstance(error, errors.InDoubt)
        assert disk.released == []


def test_a_target_that_is_complete_stays_so(tmp_path: Path) -> None:
    disk = Hung(hangs=False)
    with migrating(disk, tmp_path) as (outgoing, incoming, sender, receiver):
        sender.result()
        receiver.result()
        assert outgoing.abandon(CALL) is None
        assert incoming.abandon(CALL) is None
        assert not incoming.is_in_doubt
    assert disk.released == [True]


def test_a_target_that_hangs_while_it_takes_the_disks_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Hung(hangs=False)
    is_inside = threading.Event()

    def take(*_: Any) -> Any:
        is_inside.set()
        assert disk.go_on.wait(2 * pauses.LONG)
        raise errors.MigrationError("it is over")

    monkeypatch.setattr(targets.TargetSet, "take", take)
    with migrating(disk, tmp_path) as (outgoing, incoming, _, receiver):
        assert is_inside.wait(pauses.LONG)
        assert incoming.is_in_doubt, "it is worth to wait longer"
        incoming.cancel()
        assert isinstance(incoming.abandon(CALL), errors.InDoubt)
        outgoing.cancel()
        disk.go_on.set()
        assert receiver.is_over(SOON)


def test_what_has_ended_it_before_is_what_has_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its disks hang when they are closed."""
    disk = Hung(hangs=False)

    def fail(*_: Any) -> None:
        raise errors.StreamError("a defect", position=1)

    monkeypatch.setattr(questions.Questions, "begin_end", fail)
    with migrating(disk, tmp_path) as (outgoing, incoming, sender, receiver):
        for end, migration in ((sender, outgoing), (receiver, incoming)):
            with pytest.raises(errors.MigrationError) as caught:
                end.result()
            assert migration.abandon(CALL) is caught.value
            assert "does not return" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("owner", "name", "kind"), [(farewell, "give_word", errors.InDoubt), (targets.TargetSet, "confirm", type(None))]
)
def test_a_target_that_hangs_about_its_word(
    owner: Any, name: str, kind: type[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a source that waits for no more, as a QEMU: what it may have been told is not taken back."""
    disk, is_inside = Hung(hangs=False), threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        is_inside.set()
        assert disk.go_on.wait(2 * pauses.LONG)

    monkeypatch.setattr(owner, name, hang)
    with migrating(disk, tmp_path, qemu=True) as (outgoing, incoming, _, receiver):
        assert is_inside.wait(pauses.LONG)
        incoming.cancel()
        assert isinstance(incoming.abandon(CALL), kind)
        assert incoming.is_in_doubt == (kind is errors.InDoubt)
        outgoing.cancel()
        disk.go_on.set()
        assert receiver.is_over(SOON)
