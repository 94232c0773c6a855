# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that was told to end, and does not: what is taken for hanging, what is said, and with which exit code."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
from pauses import LONG

from blkmig import errors, hanging
from blkmig.cli import outcome, output, overdue

CALL = hanging.Call(threading.get_native_id(), "7", "0 0x3", "read", "/d.raw")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "SECONDS", 0.01)


class Ended:
    """A command whose end is noted."""

    def __init__(self, number: int | None = None) -> None:
        self.code: int | None = None
        self.is_over = threading.Event()
        self.overdue = overdue.Overdue(lambda: number, self._leave)
        self.overdue.say = lambda error, hung: outcome.say_overdue(error, hung, number)

    def _leave(self, code: int) -> None:
        self.code = code
        self.is_over.set()


@pytest.mark.parametrize(
    ("number", "error", "code", "said"),
    [
        (2, errors.Cancelled("x"), 130, "cancelled by SIGINT"),
        (15, errors.InDoubt("in doubt: x"), 7, "in doubt: x"),
        (None, errors.MigrationError("x"), 1, "x"),
        (15, None, 0, "the migration is complete, but a call"),
    ],
)
def test_how_it_ends(number: int | None, error: errors.MigrationError | None, code: int, said: str,
                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(hanging, "calls", lambda: frozenset([CALL]))
    output.set_up(progress="none", is_verbose=False)
    ended = Ended(number)
    told: list[hanging.Call] = []

    def abandon(hung: hanging.Call) -> errors.MigrationError | None:
        told.append(hung)
        if error is not None:
            error.add_note(f"disk 'd': {hung}")
        return error

    ended.overdue.abandon = abandon
    ended.overdue.wish()
    assert ended.is_over.wait(LONG)
    assert (told, ended.code) == ([CALL], code)
    shown = capsys.readouterr().err
    assert shown.startswith(f"blkmig: {said}")
    assert "a call that is to read a file, '/d.raw', does not return" in shown


def test_who_would_leave_it_in_doubt_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush of several seconds, while the disks are taken, is no hang; one that does not end is."""
    looks = itertools.count()

    def calls() -> frozenset[hanging.Call]:
        next(looks)
        return frozenset([CALL])

    monkeypatch.setattr(hanging, "calls", calls)
    ended = Ended(15)
    ended.overdue.is_in_doubt = lambda: True
    ended.overdue.wish()
    assert ended.is_over.wait(LONG)
    assert next(looks) == overdue.IN_DOUBT_LOOKS + 1


def test_where_nothing_is_migrated_yet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hanging, "calls", lambda: frozenset([CALL]))
    output.set_up(progress="none", is_verbose=False)
    ended = Ended(15)
    ended.overdue.wish()
    assert ended.is_over.wait(LONG)
    assert ended.code == 143
    assert "does not return" in capsys.readouterr().err


def test_who_moves_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sleep is no hang; nor is one of a thread that nobody waits for."""
    looks, done, sleeps = threading.Semaphore(0), threading.Event(), itertools.count()
    log = threading.Thread(target=done.wait, name="blkmig-log", daemon=True)
    log.start()

    def calls() -> frozenset[hanging.Call]:
        looks.release()
        moving = dataclasses.replace(CALL, sleep=str(next(sleeps)))
        return frozenset([moving, dataclasses.replace(CALL, thread=log.native_id or 0)])

    monkeypatch.setattr(hanging, "calls", calls)
    ended = Ended(15)
    ended.overdue.wish()
    for _ in range(5):
        assert looks.acquire(timeout=LONG)
    ended.overdue.ended()
    done.set()
    assert ended.code is None
