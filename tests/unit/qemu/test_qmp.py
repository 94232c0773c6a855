# SPDX-License-Identifier: GPL-2.0-or-later
"""The synchronous QMP connection, against a monitor that does exactly what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forks
import pytest

from blkmig import errors
from blkmig.qemu import patience, qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}

Answer = Callable[[dict[str, Any]], list[dict[str, Any] | None]]
"""What the monitor says to a command: messages, None closes the connection."""


class Monitor:
    """A QMP server for one client, in a thread."""

    def __init__(self, path: Path, answer: Answer, before_first: Sequence[dict[str, Any]] = ()) -> None:
        self.path = path
        self._answer = answer
        self._to_capabilities: list[dict[str, Any] | None] = [*before_first, {"return": {}}]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._client: socket.socket | None = None
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()  # what is there of a command that has not ended
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            self._client, _ = self._listener.accept()
            self.say(GREETING)
            for request in self._requests(self._client):
                is_first = request["execute"] == "qmp_capabilities"
                replies = self._to_capabilities if is_first else self._answer(request)
                for reply in replies:
                    if reply is None:
                        self._client.shutdown(socket.SHUT_RDWR)
                        return
                    self.say(reply if "event" in reply or reply is GREETING else {"id": request.get("id")} | reply)
        except OSError:
            return
        finally:
            self.ended.set()

    def _requests(self, client: socket.socket) -> Iterator[dict[str, Any]]:
        """Yield one JSON object after the other; nothing separates them."""
        text = ""
        while data := client.recv(65536):
            text += data.decode()
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except json.JSONDecodeError:
                    self.begun.put(text)
                    break
                text = text[end:].lstrip()
                yield request

    def say(self, message: dict[str, Any]) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b"\r\n")

    def close(self) -> None:
        self._listener.close()
        if self._client is not None:
            self._client.close()


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[Answer], qmp.QmpConnection]]:
    opened: list[Any] = []

    def do_connect(answer: Answer) -> qmp.QmpConnection:
        opened.append(Monitor(tmp_path / "qmp", answer))
        opened.append(qmp.QmpConnection(tmp_path / "qmp", timeout=20))
        return opened[-1]  # type: ignore[no-any-return]

    yield do_connect
    for one in reversed(opened):
        one.close()


def echo(request: dict[str, Any]) -> list[dict[str, Any] | None]:
    return [{"return": request.get("arguments", {})}]


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
    connection.drop_events("MIGRATION")
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
    connection = connect(echo)
    connection.close()
    connection.close()
    with pytest.raises(qmp.QmpGone):
        connection.execute("anything")
    assert not connection._thread.is_alive()


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


# -- commands that are withheld --------------------------------------------------------------------------------------


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


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceError, match="No such file"):
        qmp.QmpConnection(tmp_path / "missing")


def test_no_greeting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()
        with pytest.raises(qmp.QmpTimeout, match="one client at a time"):
            qmp.QmpConnection(tmp_path / "qmp", connect_timeout=0.1)


def test_something_else_behind_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            client.sendall(b"NBDMAGIC\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(errors.DeviceError, match="connect to its QMP socket"):
            qmp.QmpConnection(tmp_path / "qmp")


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with pytest.raises(errors.DeviceError, match=r"pip install 'blkmig\[qemu\]'"):
        qmp.QmpConnection("/nonexistent")


def test_the_library_is_imported_when_it_is_needed() -> None:
    code = "import sys, blkmig, blkmig.qemu; sys.exit('qemu.qmp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_abandoned_connection_ends_quietly(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "qmp", echo)
    code = f"from blkmig.qemu import qmp; kept = qmp.QmpConnection({str(tmp_path / 'qmp')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    monitor.close()
    assert (done.returncode, done.stderr) == (0, "")
    logging.getLogger("qemu.qmp").handlers.clear()


# -- what ends a wait ------------------------------------------------------------------------------------------------


def silent_after(names: set[str]) -> Answer:
    """Return a monitor's manners: it answers nothing from the first of these commands on, as one that is stopped."""
    heard: list[str] = []

    def answer(request: dict[str, Any]) -> list[dict[str, Any] | None]:
        heard.append(request["execute"])
        return [] if names & set(heard) else echo(request)

    return answer


@pytest.mark.parametrize("wait", ["command", "event"])
def test_a_cancel_ends_a_wait_for_qemu(connect: Callable[[Answer], qmp.QmpConnection], wait: str) -> None:
    """B8: from another thread, and from a signal handler that interrupts the wait itself."""
    connection = connect(silent_after({"slow"}))
    waits: dict[str, Callable[[], object]] = {
        "command": lambda: connection.execute("slow"),
        "event": lambda: connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: True),
    }
    threading.Timer(0.1, connection.cancel).start()
    with pytest.raises(errors.Cancelled):
        waits[wait]()
    with pytest.raises(errors.Cancelled):
        connection.execute("later")
    connection.renew()
    with pytest.raises(qmp.QmpTimeout):
        connection.execute("slow", wait=0.01)


def test_a_cancel_in_a_signal_handler(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    """B8: it interrupts the thread that waits, wherever that is."""
    connection = connect(silent_after({"slow"}))
    before = signal.signal(signal.SIGALRM, lambda *_: connection.cancel())
    try:
        for wait in (lambda: connection.execute("slow"), lambda: connection.wait_for(lambda: None, "nothing")):
            connection.renew()
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(errors.Cancelled):
                wait()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_cleans_up_runs_after_a_cancel(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(echo)
    connection.cancel()
    with connection.leaving():
        assert connection.execute("anything", {"a": 1}) == {"a": 1}
    assert not connection.is_silent


def test_a_monitor_that_is_silent_is_waited_for_once(
    connect: Callable[[Answer], qmp.QmpConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8: all that cleans up after the first command without an answer is sent, and nobody waits for it."""
    monkeypatch.setattr(patience, "HURRY_SECONDS", 0.2)
    connection = connect(silent_after({"first"}))
    connection.cancel()
    with connection.leaving():
        for name in ("first", *"many"):
            with pytest.raises(qmp.QmpTimeout, match="blkmig cleanup qemu:"):
                connection.execute(name)
        with pytest.raises(qmp.QmpTimeout):
            connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: True)
    assert connection.is_silent


def test_a_listener_hears_events_that_nobody_keeps(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    connection = connect(lambda request: [event("STOP"), event("RTC_CHANGE", offset=1), *echo(request)])
    heard: list[str] = []
    connection.listen(("STOP", "RESUME"), lambda found: heard.append(found["event"]))
    connection.execute("stop")
    connection.wait_for(lambda: heard or None, "STOP")
    assert heard == ["STOP"]


def test_the_librarys_log_is_nobodys_business(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    """E15: not even where everything of the root logger's goes to stderr, as a program may have it."""
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        connection = connect(lambda request: [] if request["execute"] == "slow" else echo(request))
        with pytest.raises(qmp.QmpTimeout):
            connection.execute("slow", wait=0.05)
        monitor_says_late(connection)
        connection._loop.call_exception_handler({"message": "Task exception was never retrieved"})
        connection.close()
    finally:
        logging.getLogger().removeHandler(handler)
    assert [record.getMessage() for record in heard if record.levelno >= logging.WARNING] == []


def monitor_says_late(connection: qmp.QmpConnection) -> None:
    """Have an answer come that nobody waits for any more, which is what the library complains of."""
    from qemu.qmp import Message

    late = Message(b'{"return": {}, "id": "nobody"}', eager=True)
    connection._submit(connection._client._on_message(late)).result(20)


def test_a_socket_that_greets_and_says_nothing_more(tmp_path: Path) -> None:
    """B8: the time to connect covers the handshake as well."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()

        def greet() -> None:
            client, _ = listener.accept()
            client.sendall(json.dumps(GREETING).encode() + b"\r\n")
            client.recv(65536)
            client.recv(65536)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(qmp.QmpTimeout, match="connect"):
            qmp.QmpConnection(tmp_path / "qmp", connect_timeout=0.2)


def test_a_forked_child_is_refused_at_once(connect: Callable[[Answer], qmp.QmpConnection]) -> None:
    """The thread that serves the connection is its parent's; nobody would wake who waits, or free a lock."""
    connection = connect(echo)
    command = connection.start("x")
    for call in (
        lambda: connection.execute("x"),
        command.result,
        lambda: connection.wait_event("E", bool),
        lambda: connection.listen(("E",), print),
        lambda: connection.drop_events("E"),
        lambda: connection.is_gone,
    ):
        with connection._events._changed:
            said = forks.in_a_child(call)
            assert "the connection is the parent process's: open the disk after the fork" in said, said
    with connection._events._changed:
        assert forks.in_a_child(connection.cancel) == ""
        assert forks.in_a_child(connection.close) == ""
    assert connection.execute("x", {"a": 1}) == {"a": 1}


def test_a_forked_child_does_not_keep_the_monitor_busy(tmp_path: Path) -> None:
    """A monitor serves one client at a time, and shall see that ours has gone although a child lives on."""
    reader, writer = os.pipe()
    with contextlib.closing(Monitor(tmp_path / "qmp", echo)) as monitor:
        connection = qmp.QmpConnection(tmp_path / "qmp")
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        connection.close()
        assert monitor.ended.wait(20)
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0
