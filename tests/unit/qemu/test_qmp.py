# SPDX-License-Identifier: GPL-2.0-or-later
"""The synchronous QMP connection, against a monitor that does exactly what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qmp_monitor import GREETING, Answer, Monitor, echo, event
from qmp_monitor import connect as connect

from blkmig.qemu import qmp


def deleted(name: str) -> dict[str, Any]:
    return event("BLOCK_EXPORT_DELETED", id=name)


def test_commands_return_what_qemu_returns(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(echo)
    assert connection.version == (7, 2, 22)
    assert connection.execute("anything", {"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
    assert connection.execute("nothing") == {}


LATE = {"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation"}, "id": "__qmp#00007"}


@pytest.mark.parametrize("before", [[deleted("before"), deleted("too")], [GREETING], [deleted("e"), GREETING], [LATE]])
def test_what_may_come_before_the_first_answer(tmp_path: Path, before: list[dict[str, Any]]) -> None:
    """A QEMU may tell of an export that went a moment ago before it answers to qmp_capabilities, or greet twice, as
    7.2 did after a client that had just gone; an answer to that client would be no less in the way."""
    monitor = Monitor(tmp_path / "qmp", echo, before_first=before)
    connection = qmp.QmpConnection(tmp_path / "qmp", timeout=20)
    assert connection.execute("anything", {"a": 1}) == {"a": 1}
    monitor.say(deleted("e"))
    assert connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: True) == deleted("e")
    connection.close()
    monitor.close()


def test_an_error_keeps_what_qemu_said(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [{"error": {"class": "GenericError", "desc": "no such thing"}}])
    with pytest.raises(qmp.QmpError, match="QMP frob: no such thing") as caught:
        connection.execute("frob")
    assert (caught.value.command, caught.value.error_class, caught.value.text) == (
        "frob",
        "GenericError",
        "no such thing",
    )
    assert caught.value.device == connection.device


def test_a_command_without_an_answer_times_out(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [] if request["execute"] == "slow" else echo(request))
    with pytest.raises(qmp.QmpTimeout, match=r"no answer within 0\.05 s"):
        connection.execute("slow", wait=0.05)
    assert connection.execute("quick") == {}


def test_events_are_kept_until_somebody_waits(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [deleted("a"), event("RTC_CHANGE", offset=1), deleted("b"), *echo(request)])
    connection.execute("delete")
    assert connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: data["id"] == "b")["data"] == {"id": "b"}
    assert connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: data["id"] == "a")["data"] == {"id": "a"}
    with pytest.raises(qmp.QmpTimeout, match="waiting for BLOCK_EXPORT_DELETED"):
        connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: True, wait=0.05)


def test_an_event_that_comes_later_is_waited_for(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [*echo(request), deleted("a")])
    waiting = threading.Timer(0.05, connection.execute, ("delete",))
    waiting.start()
    assert connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: data["id"] == "a")
    waiting.join(20)


def test_events_of_before_can_be_dropped(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [event("MIGRATION", status="failed"), deleted("a"), *echo(request)])
    connection.execute("anything")
    connection.drop_events("MIGRATION", lambda data: True)
    with pytest.raises(qmp.QmpTimeout):
        connection.wait_event("MIGRATION", lambda data: True, wait=0.05)
    assert connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: True)


def test_a_monitor_that_goes_away(
    connect: Callable[[Answer], qmp.QmpConnection], capfd: pytest.CaptureFixture[str]
) -> None:
    connection = connect(lambda request: [None])
    with pytest.raises(qmp.QmpGone, match="has QEMU ended"):
        connection.execute("quit")
    with pytest.raises(qmp.QmpGone):
        connection.wait_event("MIGRATION", lambda data: True)
    with pytest.raises(qmp.QmpGone):
        connection.execute("more")
    assert connection.is_gone
    connection.close()
    assert capfd.readouterr().err == ""


def test_a_closed_connection(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    others = set(threading.enumerate())
    connection = connect(echo)
    [thread] = (each for each in set(threading.enumerate()) - others if each.name == "blkmig-qmp")
    connection.close()
    connection.close()
    with pytest.raises(qmp.QmpGone):
        connection.execute("anything")
    assert not thread.is_alive()


def test_many_threads_share_a_connection(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(echo)
    wrong: list[object] = []

    def ask(number: int) -> None:
        for step in range(50):
            if connection.execute("echo", {"n": number * 1000 + step}) != {"n": number * 1000 + step}:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_it_works_inside_a_running_loop(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    async def ask() -> object:
        return connect(echo).execute("echo", {"n": 1})

    assert asyncio.run(ask()) == {"n": 1}


@pytest.fixture
def withholding(tmp_path: Path) -> Iterator[tuple[Monitor, qmp.QmpConnection, queue.SimpleQueue[str]]]:
    """Yield a monitor that answers at once, a connection to it, and the names of the commands that were run."""
    ran: queue.SimpleQueue[str] = queue.SimpleQueue()

    def answer(request: dict[str, Any]) -> list[dict[str, Any] | None]:
        ran.put(request["execute"])
        return echo(request)

    monitor = Monitor(tmp_path / "qmp", answer)
    connection = qmp.QmpConnection(tmp_path / "qmp", timeout=20)
    yield monitor, connection, ran
    connection.close()
    monitor.close()


def await_all_but_the_end(monitor: Monitor, name: str) -> None:
    """Return when the monitor has everything of a command but its last byte."""
    while True:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(monitor.begun.get(timeout=20) + "}").get("execute") == name:
                return


def started_and_withheld(withholding: Any, name: str) -> tuple[qmp.Command, qmp.Gate]:
    """Shut the gate and start a command; return both when the monitor has read it."""
    monitor, connection, _ran = withholding
    gate = connection.withhold()
    command = connection.start(name)
    await_all_but_the_end(monitor, name)
    assert gate.is_shut
    return command, gate


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_what_is_withheld_is_read_and_runs_when_asked_for(withholding: Any, asked: int) -> None:
    """In order, whichever is asked for, also one that was started meanwhile by somebody who knows of nothing."""
    monitor, connection, ran = withholding
    gate = connection.withhold()
    commands = [connection.start(name, {"n": n}) for n, name in enumerate(("first", "second", "third"))]
    await_all_but_the_end(monitor, "first")
    assert gate.is_shut
    assert ran.empty()
    assert commands[asked].result() == {"n": asked}
    assert not gate.is_shut
    assert [command.result()["n"] for command in commands] == [0, 1, 2]
    assert [ran.get(timeout=20) for _ in range(3)] == ["first", "second", "third"]


def test_what_was_started_before_is_not_withheld(withholding: Any) -> None:
    _monitor, connection, ran = withholding
    before = connection.start("before")
    after, gate = started_and_withheld(withholding, "after")
    assert before.result() == {}
    assert gate.is_shut
    assert ran.get(timeout=20) == "before"
    assert ran.empty()
    assert after.result() == {}


def test_one_gate_after_the_other(withholding: Any) -> None:
    _monitor, connection, ran = withholding
    assert connection.withhold() is connection.withhold()
    first, _ = started_and_withheld(withholding, "first")
    connection.let_run()
    second, gate = started_and_withheld(withholding, "second")
    assert first.result() == {}
    assert gate.is_shut
    assert ran.get(timeout=20) == "first"
    assert ran.empty()
    assert second.result() == {}


def test_a_connection_that_is_closed_withholds_nothing(withholding: Any) -> None:
    """The library would wait for the command to leave."""
    _monitor, connection, ran = withholding
    started_and_withheld(withholding, "first")
    connection.close()
    assert ran.get(timeout=20) == "first"
