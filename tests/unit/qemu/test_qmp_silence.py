# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP monitors that are not there, greet wrongly or fall silent; cancels, forks and logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
from pauses import inside
from qmp_monitor import GREETING, Answer, Monitor, echo, event
from qmp_monitor import connect as connect

from blkmig import errors
from blkmig.qemu import patience, qmp


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
        connection = connect(slow_or_late)
        connection.listen(("STOP",), complain)
        with pytest.raises(qmp.QmpTimeout):
            connection.execute("slow", wait=0.05)
        connection.execute("quick")
        connection.close()
    finally:
        logging.getLogger().removeHandler(handler)
    assert [record.getMessage() for record in heard if record.levelno >= logging.WARNING] == []


def slow_or_late(request: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Say nothing, or an answer that nobody waits for any more, and an event, before the answer."""
    return [] if request["execute"] == "slow" else [{"return": {}, "id": "nobody"}, event("STOP"), *echo(request)]


def complain(_: qmp.Event) -> None:
    """Say to the loop what asyncio says of a task that nobody waits for any more."""
    asyncio.get_running_loop().call_exception_handler({"message": "Task exception was never retrieved"})


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
    asked = types.SimpleNamespace(look=lambda: "it is there")
    with inside(asked, "look", lambda: connection.wait_for(lambda: asked.look(), "something")):
        for call in (
            lambda: connection.execute("x"),
            command.result,
            lambda: connection.wait_event("E", bool),
            lambda: connection.listen(("E",), print),
            lambda: connection.drop_events("E", lambda _: True),
            lambda: connection.is_gone,
        ):
            said = forks.in_a_child(call)
            assert "the connection is the parent process's: open the disk after the fork" in said, said
        assert forks.in_a_child(connection.cancel) == ""
        assert forks.in_a_child(connection.close) == ""
    assert connection.execute("x", {"a": 1}) == {"a": 1}


def test_a_forked_child_does_not_keep_the_monitor_busy(tmp_path: Path) -> None:
    """A monitor serves one client at a time, and shall see that ours has gone although a child lives on."""
    with contextlib.closing(Monitor(tmp_path / "qmp", echo)) as monitor:
        connection = qmp.QmpConnection(tmp_path / "qmp")
        with forks.living_child():
            connection.close()
            assert monitor.ended.wait(20)
