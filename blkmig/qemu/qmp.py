# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP connection for callers that block: the official ``qemu.qmp`` library behind a few verbs with time-outs.

The library is asyncio. Its loop runs in a thread of its own, so that any thread may call, with or without a loop of
its own, and events are collected while nobody waits::

    caller   execute ──► loop thread ──► QEMU        wait_event ◄── events ◄── loop thread ◄── QEMU

Every wait has a bound, and `cancel` ends all of them. What is for cleaning up runs in `leaving`: it works after a
cancel, too, and a monitor that does not answer in that time is not waited for again.

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
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .. import _gate, errors, forks
from . import qmp_client
from .qmp_client import Gate as Gate

logger = logging.getLogger(__name__)

EVENTS = ("BLOCK_EXPORT_DELETED",)
"""The events that are kept; the others are dropped unread, so that nothing grows."""

KEPT_EVENTS = 1024

LEAVING_SECONDS = 10.0
HURRY_SECONDS = 2.0
"""How long QEMU may take for a command that cleans up: while nobody waits, and after a cancel."""

CLOSE_SECONDS = 1.0

NO_GREETING = (
    "no greeting within {:g} s: a QMP socket serves one client at a time, so another one (libvirt, a shell, a second "
    "blkmig) holds it, or QEMU does not run; give QEMU a second one, with -qmp unix:PATH,server=on,wait=off"
)

NO_ANSWER = "no answer{}; once it answers again, blkmig cleanup {} removes what may be left in it"

Found = TypeVar("Found")
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
        self._home = _gate.Gate()
        self._events: collections.deque[Event] = collections.deque(maxlen=KEPT_EVENTS)
        self._listeners: list[tuple[frozenset[str], Callable[[Event], None]]] = []
        self._changed = threading.Condition()  # guards _events, _listeners and _gone; re-entrant, for `cancel`
        self._gone = False
        self._tasks: list[asyncio.Task[None]] = []  # loop thread only
        self._gate: Gate | None = None  # the only one that is shut; callers' threads only
        # Any thread may set this, only `renew` clears it.
        self._cancelled = False
        self._waiting: set[concurrent.futures.Future[Any]] = set()  # what a cancel ends; single operations only
        self._leaving = threading.local()  # `bound`: seconds that a command may take, in a thread that cleans up
        self._is_silent = False  # threads that clean up only
        library = qmp_client.import_library(self.device)
        self._client: Any = qmp_client.client_class(library)(f"blkmig-{os.getpid()}")
        self._client.events.names.update(EVENTS)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_quietly)
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
        self.check_home(f"QMP {command}")
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
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(gate.opened.set)

    def wait_event(self, name: str, matches: Callable[[Event], bool], *, wait: float | None = None) -> Event:
        """Return the first event `name` whose data `matches`, and forget it; it may have come before this call.

        Blocks at most `wait` seconds (default: the connection's time-out), then raises :class:`QmpTimeout`.
        """

        def look() -> Event | None:
            for event in self._events:
                if event["event"] == name and matches(event.get("data", {})):
                    self._events.remove(event)
                    return event
            return None

        return self.wait_for(look, name, wait=wait)

    def wait_for(self, look: Callable[[], Found | None], what: str, *, wait: float | None = None) -> Found:
        """Return what `look` returns, as soon as that is not None; it is asked again after each event.

        Blocks at most `wait` seconds (default: the connection's time-out), then raises :class:`QmpTimeout`.
        """
        self.check_home(f"waiting for {what}")
        wait = self._bound(wait)
        deadline = time.monotonic() + wait
        with self._changed:
            while (found := look()) is None:
                if self._gone:
                    raise self.gone_error(f"waiting for {what}")
                self._check_cancelled()
                if (left := deadline - time.monotonic()) <= 0:
                    self._missed()
                    raise QmpTimeout(f"waiting for {what}", device=self.device, cause=f"it did not come in {wait:g} s")
                self._changed.wait(left)
        return found

    def listen(self, names: Iterable[str], call: Callable[[Event], None]) -> None:
        """Have `call` called with each event of these `names`, in the loop's thread: it must not block."""
        self.check_home("listening")
        names = frozenset(names)
        with self._changed:
            self._listeners.append((names, call))
            self._client.events.names.update(names)

    # -- the end of waiting ------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Make every call that waits, and every later one, raise Cancelled; `leaving` is for what is still to be done.

        From any thread and any signal handler.
        """
        self._cancelled = True
        if self._home.is_foreign:
            return
        for future in list(self._waiting):
            future.cancel()
        with self._changed:  # its holders wait for nobody
            self._changed.notify_all()

    def renew(self) -> None:
        """Forget a cancel: the connection is used for something new."""
        self._cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled, and the calling thread does not clean up."""
        return self._cancelled and getattr(self._leaving, "bound", None) is None

    @contextlib.contextmanager
    def leaving(self, seconds: float | None = None) -> Iterator[None]:
        """Clean up in the body of a ``with``: what this thread asks for is done after a cancel, too.

        A command may take `seconds`, by default less after a cancel than without one. Once QEMU has not answered in
        time, commands are sent, and nobody waits for them: they fail with :class:`QmpTimeout`.
        """
        before = getattr(self._leaving, "bound", None)
        default = HURRY_SECONDS if self._cancelled else LEAVING_SECONDS
        self._leaving.bound = max(before or 0.0, default if seconds is None else seconds)
        try:
            yield
        finally:
            self._leaving.bound = before

    @property
    def is_silent(self) -> bool:
        """Whether QEMU did not answer while we cleaned up: what we told it may be done late, or never."""
        return self._is_silent

    def _bound(self, wait: float | None) -> float:
        """Return how many seconds a call may wait that asks for `wait`."""
        wait = self.timeout if wait is None else wait
        bound = getattr(self._leaving, "bound", None)
        if bound is None:
            return wait
        return 0.0 if self._is_silent else min(wait, bound)

    def _missed(self) -> None:
        """Take note of an answer that did not come."""
        if getattr(self._leaving, "bound", None) is not None:
            self._is_silent = True

    def _check_cancelled(self) -> None:
        if self.is_cancelled:
            raise errors.Cancelled("the migration was cancelled")

    def await_answer(self, future: concurrent.futures.Future[Any], wait: float | None, doing: str) -> Any:
        """Return the result of what runs in the loop's thread; whatever ends the wait ends that, too."""
        self.check_home(doing)
        wait = self._bound(wait)
        if getattr(self._leaving, "bound", None) is None:
            self._waiting.add(future)
        try:
            self._check_cancelled()  # now that `cancel` would find it
            answer = future.result(wait)
        except concurrent.futures.CancelledError:
            self._check_cancelled()
            raise self.gone_error(doing) from None
        except TimeoutError as error:  # it is concurrent.futures.TimeoutError, too
            future.cancel()
            self._missed()
            within = f" within {wait:g} s" if wait else ""
            raise QmpTimeout(doing, device=self.device, cause=NO_ANSWER.format(within, self.device)) from error
        except BaseException:
            future.cancel()
            raise
        finally:
            self._waiting.discard(future)
        self._is_silent = False
        return answer

    def drop_events(self, name: str) -> None:
        """Forget the events `name` that came so far, before something is started that sends new ones."""
        self.check_home("waiting")
        with self._changed:
            kept = [event for event in self._events if event["event"] != name]
            self._events.clear()
            self._events.extend(kept)

    @property
    def is_gone(self) -> bool:
        """Whether the connection is closed, from whichever side."""
        self.check_home("looking at it")
        with self._changed:
            return self._gone

    def close(self) -> None:
        """Disconnect and end the thread; whatever is wrong with the connection is no longer of interest. Safe twice.

        In a fork's child it does nothing: thread and connection are the parent's.
        """
        if self._home.is_foreign or not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.let_run()  # or the library would wait for what is on its way
        self._set_gone()
        with contextlib.suppress(Exception):
            self._submit(self._shut_down()).result(CLOSE_SECONDS)
        with contextlib.suppress(Exception):
            self._submit(self._end_tasks()).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- the loop's side ---------------------------------------------------------------------------------------------

    @property
    def is_foreign(self) -> bool:
        """Whether this is a child of the process that has connected: the thread that serves it is not here."""
        return self._home.is_foreign

    def check_home(self, doing: str) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` in a fork's child; before anything that takes a lock."""
        if self._home.is_foreign:
            raise errors.DeviceError(doing, device=self.device, cause=forks.not_here())

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        if not self._thread.is_alive():  # the loop may not run yet
            coroutine.close()
            raise self.gone_error("QMP")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _connect(self, connect_error: type[Exception], wait: float) -> None:
        try:
            self.await_answer(self._submit(self._open()), wait, "connect")
        except QmpTimeout as error:
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
        forks.leave_to_parent(self, self._client.fileno())
        self._tasks = [self._loop.create_task(watch) for watch in (self._collect_events(), self._watch_connection())]

    async def _execute(self, command: str, arguments: Mapping[str, object] | None, gate: Gate | None) -> Any:
        self._client.gate = gate  # for the message that execute makes up before it first awaits
        return await self._client.execute(command, arguments)  # which raises before that, if it is not connected

    async def _collect_events(self) -> None:
        async for event in self._client.events:
            name = event["event"]
            with self._changed:
                if name in EVENTS:
                    self._events.append(event)
                for names, call in self._listeners:
                    if name in names:
                        call(event)
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

    async def _end_tasks(self) -> None:
        """End what is left of the library's tasks, as when a QEMU that does not run takes nothing off its socket."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set_gone(self) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def gone_error(self, doing: str) -> QmpGone:
        """Return the error for a connection that is closed."""
        return QmpGone(doing, device=self.device, cause="the QMP connection is closed; has QEMU ended?")


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
        if self._gate is not None and self._gate.is_shut:
            self._connection.let_run()
        try:
            return self._connection.await_answer(self._future, wait, doing)
        except ExecuteError as error:
            raise QmpError(self._name, device=device, error_class=error.error_class, text=str(error)) from error
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise self._connection.gone_error(doing) from error


def _log_quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take what asyncio complains about, such as the error of a task that nobody waits for any more."""
    qmp_client.logger.debug("%s", context.get("message"))
