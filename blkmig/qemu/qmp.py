# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP connection for callers that block: the official ``qemu.qmp`` library behind a few verbs with time-outs.

The library uses asyncio. Its loop runs in a thread of its own, so that any thread may call, with or without a loop, and
events are collected while nobody waits::

    caller   execute ──► loop thread ──► QEMU        wait_event ◄── events ◄── loop thread ◄── QEMU

Every wait has a bound, and `cancel` ends all of them. Commands that clean up run inside ``with leaving(...)``: there
they work after a cancel, too. Once a monitor has not answered in time, nobody waits for it again.

``qemu.qmp`` is imported when the first connection is made; it comes with ``pip install 'blkmig[qemu]'``.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from .. import _gate, errors, forks, threads
from . import events, patience, qmp_client, qmperrors
from .events import Event as Event
from .events import Found
from .qmp_client import Gate as Gate
from .qmperrors import QmpError as QmpError
from .qmperrors import QmpGone as QmpGone
from .qmperrors import QmpTimeout as QmpTimeout
from .qmperrors import ignoring_missing as ignoring_missing

CLOSE_SECONDS = 1.0


class QmpConnection:
    """A connection to the QMP socket at `path`, ready for commands.

    Connects at once and waits at most `connect_timeout` seconds for the greeting. `timeout` is how many seconds a
    command may take. Every method may be called from any thread. Every failure is a
    :class:`~blkmig.errors.DeviceError` whose device is ``qemu:PATH``.
    """

    def __init__(self, path: str | os.PathLike[str], *, connect_timeout: float = 5.0, timeout: float = 60.0) -> None:
        self.path = os.fspath(path)
        self.device = f"qemu:{self.path}"
        self.version = (0, 0, 0)
        self._home = _gate.Gate()
        self._patience = patience.Patience(self.device, timeout)
        self._events = events.Events(self.device, self._patience)
        self._tasks: list[asyncio.Task[None]] = []  # loop thread only
        self._gate: Gate | None = None  # the only one that is shut; callers' threads only
        library = qmp_client.import_library(self.device)
        self._client: Any = qmp_client.client_class(library)(f"blkmig-{os.getpid()}")
        self._client.events.names.update(events.KEPT)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_quietly)
        self._thread = threads.Thread(target=self._loop.run_forever, name="blkmig-qmp", daemon=True)
        try:
            self._thread.start()
        except errors.NoThread:
            self._loop.close()
            raise
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
        """Make QEMU run `command`, and do not wait for the answer; starting several commands together saves time.

        QEMU runs commands in the order in which they are started, also after one that fails.
        """
        self.check_home(f"QMP {command}")
        gate = self._gate
        return Command(self, command, self._submit(self._execute(command, arguments, gate)), gate)

    def withhold(self) -> Gate:
        """Make QEMU read the next command now, and run it, and those after it, when the result of one is asked for.

        QEMU reads a command from its socket byte by byte, 3 to 4 us for each: most of the time that a command takes.
        The last byte of the next command, and everything after it, waits at the gate that is returned.
        """
        if self._gate is None:
            self._gate = Gate()
        return self._gate

    def let_run(self) -> None:
        """Make QEMU run the commands that are withheld, if there are any."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.is_shut = False
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(gate.opened.set)

    def wait_event(self, name: str, matches: Callable[[Event], bool], *, wait: float | None = None) -> Event:
        """Return the first event `name` whose data `matches`, and forget it; it may have come before this call.

        Blocks at most `wait` seconds (default: the connection's time-out), then raises :class:`QmpTimeout`.
        """
        self.check_home(f"waiting for {name}")
        return self._events.wait(name, matches, wait)

    def wait_for(self, look: Callable[[], Found | None], what: str, *, wait: float | None = None) -> Found:
        """Call `look` after each event until it returns something other than None, and return that.

        Blocks at most `wait` seconds (default: the connection's time-out), then raises :class:`QmpTimeout`.
        """
        self.check_home(f"waiting for {what}")
        return self._events.wait_for(look, what, wait)

    def listen(self, names: Iterable[str], call: Callable[[Event], None]) -> None:
        """Call `call` with each event of these `names`, in the loop's thread: it must not block."""
        self.check_home("listening")
        names = frozenset(names)
        self._events.listen(names, call)
        self._client.events.names.update(names)

    # -- the end of waiting ------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Make every call that waits, and every later one, raise Cancelled, except in `leaving`.

        From any thread and any signal handler.
        """
        if not self._home.is_foreign:
            self._patience.cancel()
            self._events.wake()

    def renew(self) -> None:
        """Forget a cancel, before the connection is used for something new."""
        self._patience.renew()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled, and the calling thread is not cleaning up."""
        return self._patience.is_cancelled

    def leaving(self, seconds: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Clean up in the body of a ``with``: this thread's commands are run after a cancel, too.

        A command may take `seconds`, by default less after a cancel than without one. Once QEMU has not answered in
        time, later commands are sent without waiting for answers, and fail with :class:`QmpTimeout`.
        """
        return self._patience.leaving(seconds)

    @property
    def is_silent(self) -> bool:
        """Whether QEMU did not answer while blkmig cleaned up. It may run those commands late, or never."""
        return self._patience.is_silent

    def await_answer(self, future: concurrent.futures.Future[Any], wait: float | None, doing: str) -> Any:
        """Return the result of a coroutine in the loop's thread. If the wait ends early, the coroutine is cancelled."""
        self.check_home(doing)
        return self._patience.await_answer(future, wait, doing)

    def drop_events(self, name: str, matches: Callable[[Event], bool]) -> None:
        """Forget the events `name` that came so far, and match. Call it before a command that causes new ones."""
        self.check_home("waiting")
        self._events.drop(name, matches)

    @property
    def is_gone(self) -> bool:
        """Whether the connection is closed, from whichever side."""
        self.check_home("looking at it")
        return self._events.are_over

    def close(self) -> None:
        """Disconnect, and end the thread. Errors of the connection are ignored. Safe twice.

        In a forked child it does nothing, because thread and connection belong to the parent.
        """
        if self._home.is_foreign or not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.let_run()  # else the library would wait for commands that are withheld
        self._events.end()
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
        """Whether this is a forked child of the process that has connected: the child does not have its thread."""
        return self._home.is_foreign

    def check_home(self, doing: str) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` in a forked child. Call it before anything takes a lock."""
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
            raise QmpTimeout("connect", device=self.device, cause=qmperrors.NO_GREETING.format(wait)) from error
        except connect_error as error:
            raise qmperrors.not_connected(self.device, self.path, error) from error
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
            self._events.hear(event)

    async def _watch_connection(self) -> None:
        from qemu.qmp import Runstate

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._events.end()

    async def _shut_down(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._client.disconnect()

    async def _end_tasks(self) -> None:
        """End the library's remaining tasks. There are some if, for instance, a frozen QEMU does not read its
        socket."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def gone_error(self, doing: str) -> QmpGone:
        """Return the error for a connection that is closed."""
        return qmperrors.gone_error(doing, self.device)


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
    """Ignore what asyncio reports, such as the error of a task that nobody waits for any more."""
    qmp_client.logger.debug("%s", context.get("message"))
