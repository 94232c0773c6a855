# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP connection for callers that block: the official ``qemu.qmp`` library behind a few verbs with time-outs.

The library is asyncio. Its loop runs in a thread of its own, so that any thread may call, with or without a loop of
its own, and events are collected while nobody waits::

    caller   execute ──► loop thread ──► QEMU        wait_event ◄── events ◄── loop thread ◄── QEMU

``qemu.qmp`` is imported when the first connection is made; it comes with ``pip install 'blkmig[qemu]'``.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ... import errors

EVENTS = ("BLOCK_EXPORT_DELETED", "MIGRATION")
"""The events that are kept; the others are dropped unread, so that nothing grows."""

KEPT_EVENTS = 1024

NO_GREETING = (
    "no greeting within {:g} s: a QMP socket serves one client at a time, so another one (libvirt, a shell, a second "
    "blkmig) holds it; give QEMU a second one, with -qmp unix:PATH,server=on,wait=off"
)

Event = Mapping[str, Any]


class QmpError(errors.DeviceError):
    """QEMU answered a command with an error: `command`, `error_class` and `text` are what it was and what it said."""

    def __init__(self, command: str, *, device: str, error_class: str, text: str) -> None:
        super().__init__(f"QMP {command}", device=device, cause=text)
        self.command = command
        self.error_class = error_class
        self.text = text


class QmpTimeout(errors.DeviceError):
    """QEMU did not answer in time; whether the command was carried out is not known."""


class QmpGone(errors.DeviceError):
    """The QMP connection is closed: QEMU has ended, or it was closed from this side."""


class QmpConnection:
    """A connection to the QMP socket at `path`, ready for commands.

    Connects at once and waits at most `connect_timeout` seconds for the greeting. `timeout` is how many seconds a
    command may take. Every method may be called from any thread. Every failure is a
    :class:`~blkmig.errors.DeviceError` whose device is ``qemu:PATH``.
    """

    def __init__(self, path: str | os.PathLike[str], *, connect_timeout: float = 5.0, timeout: float = 60.0) -> None:
        self.path = os.fspath(path)
        self.device = f"qemu:{self.path}"
        self.timeout = timeout
        self.version = (0, 0, 0)
        self._events: collections.deque[Event] = collections.deque(maxlen=KEPT_EVENTS)
        self._changed = threading.Condition()  # guards _events and _gone
        self._gone = False
        self._tasks: list[asyncio.Task[None]] = []  # loop thread only
        self._gate: Gate | None = None  # the only one that is shut; callers' threads only
        library = _import_library(self.device)
        self._client: Any = _client_class(library)(f"blkmig-{os.getpid()}")
        self._client.events.names.update(EVENTS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blkmig-qmp", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._connect(library.ConnectError, connect_timeout)
        except BaseException:
            self.close()
            raise

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, wait: float | None = None) -> Any:
        """Run `command` and return what it returns; blocks at most `wait` seconds (default: the connection's time-out).

        Raises :class:`QmpError` for an error that QEMU answers, :class:`QmpTimeout`, :class:`QmpGone`.
        """
        return self.start(command, arguments).result(wait)

    def start(self, command: str, arguments: Mapping[str, object] | None = None) -> Command:
        """Have QEMU run `command` and do not wait for it; several that are started together save time.

        QEMU runs commands in the order in which they are started, also after one that fails.
        """
        gate = self._gate
        return Command(self, command, self._submit(self._execute(command, arguments, gate)), gate)

    def withhold(self) -> Gate:
        """Have QEMU read the next command now, and run it, and those behind it, when the result of one is asked for.

        QEMU takes a command off its socket byte by byte, 3 to 4 us for each: most of the time that a command takes.
        The last byte of the next command, and what comes behind it, waits at the gate that is returned.
        """
        if self._gate is None:
            self._gate = Gate()
        return self._gate

    def let_run(self) -> None:
        """Have QEMU run what is withheld, if anything is."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.is_shut = False
            if self._loop.is_running():
                self._loop.call_soon_threadsafe(gate.opened.set)

    def wait_event(self, name: str, matches: Callable[[Event], bool], *, wait: float | None = None) -> Event:
        """Return the first event `name` whose data `matches`, and forget it; it may have come before this call.

        Blocks at most `wait` seconds (default: the connection's time-out), then raises :class:`QmpTimeout`.
        """
        wait = self.timeout if wait is None else wait
        deadline = time.monotonic() + wait
        with self._changed:
            while True:
                for event in self._events:
                    if event["event"] == name and matches(event.get("data", {})):
                        self._events.remove(event)
                        return event
                if self._gone:
                    raise self.gone_error(f"waiting for {name}")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise QmpTimeout(f"waiting for {name}", device=self.device, cause=f"it did not come in {wait:g} s")

    def drop_events(self, name: str) -> None:
        """Forget the events `name` that came so far, before something is started that sends new ones."""
        with self._changed:
            kept = [event for event in self._events if event["event"] != name]
            self._events.clear()
            self._events.extend(kept)

    @property
    def is_gone(self) -> bool:
        """Whether the connection is closed, from whichever side."""
        with self._changed:
            return self._gone

    def close(self) -> None:
        """Disconnect and end the thread; whatever is wrong with the connection is no longer of interest. Safe twice."""
        if not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.let_run()  # or the library would wait for what is on its way
        self._set_gone()
        with contextlib.suppress(Exception):
            self._run(self._shut_down(), 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- the loop's side ---------------------------------------------------------------------------------------------

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        if not self._loop.is_running():
            coroutine.close()
            raise self.gone_error("QMP")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self, coroutine: Coroutine[Any, Any, Any], wait: float) -> Any:
        return await_future(self._submit(coroutine), wait)

    def _connect(self, connect_error: type[Exception], wait: float) -> None:
        try:
            self._run(self._open(), wait)
        except TimeoutError as error:
            raise QmpTimeout("connect", device=self.device, cause=NO_GREETING.format(wait)) from error
        except connect_error as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else str(error)
            raise errors.DeviceError("connect to its QMP socket", device=self.device, cause=cause) from error
        greeting = self._client.greeting
        if greeting is not None:
            version: Any = greeting.QMP.version["qemu"]
            self.version = (version["major"], version["minor"], version["micro"])

    async def _open(self) -> None:
        await self._client.connect(self.path)
        self._tasks = [self._loop.create_task(watch) for watch in (self._collect_events(), self._watch_connection())]

    async def _execute(self, command: str, arguments: Mapping[str, object] | None, gate: Gate | None) -> Any:
        self._client.gate = gate  # for the message that execute makes up before it first awaits
        return await self._client.execute(command, arguments)  # which raises before that, if it is not connected

    async def _collect_events(self) -> None:
        async for event in self._client.events:
            with self._changed:
                self._events.append(event)
                self._changed.notify_all()

    async def _watch_connection(self) -> None:
        from qemu.qmp import Runstate

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._set_gone()

    async def _shut_down(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._client.disconnect()

    def _set_gone(self) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def gone_error(self, doing: str) -> QmpGone:
        """Return the error for a connection that is closed."""
        return QmpGone(doing, device=self.device, cause="the QMP connection is closed; has QEMU ended?")


class Gate:
    """What :meth:`QmpConnection.withhold` withholds commands at."""

    def __init__(self) -> None:
        self.is_shut = True
        self.opened = asyncio.Event()  # the same for the loop's thread, a moment later


class Command:
    """A command that QEMU was told to run, see :meth:`QmpConnection.start`."""

    def __init__(
        self,
        connection: QmpConnection,
        name: str,
        future: concurrent.futures.Future[Any],
        gate: Gate | None,
    ) -> None:
        self._connection = connection
        self._name = name
        self._future = future
        self._gate = gate

    def result(self, wait: float | None = None) -> Any:
        """Return what the command returns, or raise its error, as :meth:`QmpConnection.execute` does. Blocks."""
        from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError

        device, doing = self._connection.device, f"QMP {self._name}"
        wait = self._connection.timeout if wait is None else wait
        if self._gate is not None and self._gate.is_shut:
            self._connection.let_run()
        try:
            return await_future(self._future, wait)
        except ExecuteError as error:
            raise QmpError(self._name, device=device, error_class=error.error_class, text=str(error)) from error
        except TimeoutError as error:
            raise QmpTimeout(doing, device=device, cause=f"no answer within {wait:g} s") from error
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise self._connection.gone_error(doing) from error


def await_future(future: concurrent.futures.Future[Any], wait: float) -> Any:
    """Return the result of what runs in the loop's thread; whatever ends the wait ends that, too."""
    try:
        return future.result(wait)
    except BaseException:  # of them TimeoutError, which is concurrent.futures.TimeoutError
        future.cancel()
        raise


def _client_class(library: Any) -> Any:
    """Return the library's client without its log of every message, which is made up even if nobody wants it.

    With shorter names of commands, since each byte takes time, and with the gate of `QmpConnection.withhold`.

    And without its belief that the first message after qmp_capabilities is the answer: QEMU may have an event to tell
    before, which belongs to nobody in the new session, and right after another client it may greet twice, or answer
    that one: our first command has no id.
    """

    class Client(library.QMPClient):  # type: ignore[misc]
        gate: Gate | None = None
        """What the next command is withheld at."""

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self._gate_of: dict[str, Gate | None] = {}

        async def _recv(self) -> Any:
            is_greeted = self.greeting is not None
            message = await super()._recv()
            while self.runstate is library.Runstate.CONNECTING and (
                "event" in message or (is_greeted and "QMP" in message) or message.get("id") is not None
            ):
                message = await super()._recv()
            return message

        def _get_exec_id(self) -> str:
            self._execute_id += 1
            name = str(self._execute_id)
            self._gate_of[name] = self.gate
            return name

        async def _send(self, msg: Any) -> None:
            gate = self._gate_of.pop(msg.get("id"), None)  # what the library sends by itself has no id
            if gate is None:
                await super()._send(msg)
                return
            text = bytes(msg)
            self._writer.write(text[:-1])
            await gate.opened.wait()
            self._writer.write(text[-1:])

        def _cb_outbound(self, msg: Any) -> Any:
            return msg

        def _cb_inbound(self, msg: Any) -> Any:
            return msg

    return Client


def _import_library(device: str) -> Any:
    try:
        import qemu.qmp
    except ImportError as error:
        missing = "the Python library qemu.qmp is missing: pip install 'blkmig[qemu]'"
        raise errors.DeviceError("cannot be driven", device=device, cause=missing) from error
    # It logs what it also raises; without a handler somewhere Python would print that to stderr.
    logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
    return qemu.qmp
