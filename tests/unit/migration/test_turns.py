# SPDX-License-Identifier: GPL-2.0-or-later
"""One call at a time drives a migration, whoever makes it; two at once made one stream of two, and both said done."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pauses
import pytest

import blkmig
from blkmig import errors, stats, testing
from blkmig.migration import turns

MIB = lab.MIB
CONTENT = os.urandom(6 * MIB)


def stopped(path: Path, nth: int = 3) -> tuple[blkmig.OutgoingMigration, testing.FaultyDisk, testing.Stop]:
    """Return a migration into a file whose disk stands still in its third read."""
    stop = testing.Stop()
    inner = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    disk = testing.FaultyDisk(inner, testing.Fault(verb="read", nth=nth, stop=stop))
    return blkmig.outgoing([disk], f"file:{path}/stream"), disk, stop


@pytest.mark.parametrize("name", ["run", "iterate", "complete"])
def test_a_second_thread_is_refused(tmp_path: Path, name: str) -> None:
    """A3 and C14: the stream was damaged, and `run` returned as if it were whole."""
    migration, disk, stop = stopped(tmp_path)
    with migration:
        running = pauses.Call(migration.run)
        stop.wait_until_reached()
        with pytest.raises(errors.StateError, match="one call at a time"):
            getattr(migration, name)()
        stop.go_on()
        running.result()
    assert migration.status == "completed"
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "copy"})
    assert (tmp_path / "copy").read_bytes() == CONTENT
    disk.close()


@pytest.mark.parametrize("name", ["run", "iterate", "complete"])
def test_the_callers_function_does_not_drive(tmp_path: Path, name: str) -> None:
    """It is called from within, in the middle of things."""
    disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    refused: list[str] = []

    def on_progress(event: stats.Event) -> None:
        if isinstance(event, stats.RoundEnded) and not refused:
            with pytest.raises(errors.StateError, match="one call at a time") as raised:
                getattr(migration, name)()
            refused.append(str(raised.value))

    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream", on_progress=on_progress)
    with migration:
        migration.run()
    assert refused
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "copy"})
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_leaving_waits_for_another_thread(tmp_path: Path) -> None:
    """It closed what that thread used, whose error then was that of a closed channel."""
    migration, disk, stop = stopped(tmp_path)
    with migration:
        running = pauses.Call(migration.run)
        stop.wait_until_reached()
    assert migration.status == "cancelled"
    with pytest.raises(errors.Cancelled):
        running.result()
    with disk.block_use("a test"):
        disk.pwrite(b"free", 0)


def test_entering_in_two_threads(tmp_path: Path) -> None:
    migration, disk, _ = stopped(tmp_path)
    stop = testing.Stop()
    make = disk.create_dirty_bitmap

    def create_dirty_bitmap(granularity: int) -> Any:
        stop.stand(lambda: False)
        return make(granularity)

    disk.create_dirty_bitmap = create_dirty_bitmap  # type: ignore[method-assign]
    entering = pauses.Call(migration.__enter__)
    stop.wait_until_reached()
    with pytest.raises(errors.StateError):
        migration.__enter__()
    stop.go_on()
    entering.result()
    migration.__exit__(None, None, None)
    assert migration.status == "cancelled"


def incoming(path: Path, target: Any) -> blkmig.IncomingMigration:
    return blkmig.incoming(f"unix:{path}/s", {"d": target})


def test_a_receiver_is_left_while_another_thread_runs_it(tmp_path: Path) -> None:
    """Nothing is written any more once it is left: the target was closed under that thread."""
    stop = testing.Stop()
    inner = blkmig.MemoryBackend(bytearray(len(CONTENT)), name="d")
    target = testing.FaultyDisk(inner, testing.Fault(verb="write", nth=2, stop=stop))
    source = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    with incoming(tmp_path, target) as receiver:
        receiving = pauses.Call(receiver.run)
        sending = pauses.Call(lambda: blkmig.send([source], receiver.uri, reconnect=0))
        stop.wait_until_reached()
    with target.block_use("a test"):
        assert target.calls["write"] == 2
    with pytest.raises(errors.Cancelled):
        receiving.result()
    with pytest.raises(errors.MigrationError):
        sending.result()


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_call_that_comes_while_its_with_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Between the look for others and the end it began, and what it used was closed: a bare ValueError at a target."""
    disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    source = blkmig.outgoing([disk], f"file:{tmp_path}/stream")
    receiver = incoming(tmp_path, tmp_path / "copy")
    late: list[pauses.Call] = []
    end_others = turns.Turn.end_others

    def and_another_comes(turn: turns.Turn, cancel: Callable[[], None]) -> None:
        end_others(turn, cancel)
        late.append(pauses.Call(source.iterate if end == "source" else receiver.run))
        with pytest.raises(errors.StateError, match="with"):
            late[0].result()

    monkeypatch.setattr(turns.Turn, "end_others", and_another_comes)
    with source if end == "source" else receiver:
        pass
    assert late


def of_a_receiver_that_was_not_entered(receiver: blkmig.IncomingMigration) -> None:
    receiver.run()


def of_one_that_was_left(receiver: blkmig.IncomingMigration) -> None:
    with receiver:
        pass
    receiver.run()


def of_one_that_is_entered_again(receiver: blkmig.IncomingMigration) -> None:
    with receiver:
        receiver.__enter__()


def of_one_that_is_entered_later(receiver: blkmig.IncomingMigration) -> None:
    with receiver:
        pass
    receiver.__enter__()


@pytest.mark.parametrize(
    "calls",
    [of_a_receiver_that_was_not_entered, of_one_that_was_left, of_one_that_is_entered_again,
     of_one_that_is_entered_later],
)  # fmt: skip
def test_calls_out_of_order(tmp_path: Path, calls: Callable[[blkmig.IncomingMigration], None]) -> None:
    """One was an AssertionError, one listened with nobody who would ever stop that."""
    with pytest.raises(errors.StateError, match="with"):
        calls(incoming(tmp_path, tmp_path / "copy"))
    assert not list(tmp_path.iterdir())


def interrupted(turn: turns.Turn, count: int) -> bool:
    """Take the turn, and be interrupted before the bytecode `count` of what takes and leaves it; False if none is left.
    """
    left, before = iter(range(count)), sys.gettrace()
    code = inspect.unwrap(turns.Turn.taken).__code__

    def trace(frame: types.FrameType, event: str, _arg: object) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left, None) is None:
            sys.settrace(before)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with turn.taken(lambda: "none", "none"):
            pass
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_between_any_two_bytecodes() -> None:
    """Who leaves the with then waited for a minute for itself, and cancelled itself: nobody else had the turn."""
    cancelled: list[int] = []
    for count in itertools.count():
        turn = turns.Turn()
        if not interrupted(turn, count):
            break
        turn.end_others(functools.partial(cancelled.append, count))
    assert count > 20
    assert cancelled == []
