# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole migration in one ``await``: the calls of ``migration/calls.py``, for programs that use asyncio.

Each migration has a thread of its own, as it blocks for as long as it takes; the threads that asyncio shares among
everybody stay free. The loop waits for that thread, and cancels what it does::

    task     start ─ await ───── cancelled: cancel ─ await ─────► CancelledError
    thread   open the disks ─ migrate ───────────┴─ clean up ─┘

A task that was cancelled goes on waiting until the migration has ended, so whoever sees it end may use the disks. What
the migration has to say then is not lost: an error that is no cancel is raised, and a migration that was complete
before the cancel reached it is a success.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from . import disk, errors, logs, params, stats
from .migration import calls, figures
from .migration import targets as load_targets

logger = logs.Logger(__name__)

CANCEL_SECONDS = 60.0
"""How long a cancelled task waits for its migration to end; all that it waits for then has bounds below that."""

Result = TypeVar("Result")


async def asend(
    disks: Iterable[disk.BlockBackend | str | os.PathLike[str]],
    uri: str,
    *,
    on_progress: figures.OnProgress | None = None,
    **parameters: Any,
) -> stats.OutgoingStatistics:
    """Migrate `disks` to `uri` as :func:`~blkmig.send` does, and let the event loop go on meanwhile.

    The arguments are those of `send`. `on_progress` is called in the thread that migrates, with the context variables
    of the task: it reaches the loop by ``loop.call_soon_threadsafe``, and the migration waits while it runs.

    Cancelling the task cancels the migration. Then this waits until the migration has ended, for a minute at most,
    and raises ``asyncio.CancelledError``: the source is as it was, with its writers going on. A migration that had
    completed by then returns its figures all the same, and any other error, such as
    :class:`~blkmig.errors.InDoubt`, is raised. Disks that are opened by their paths are waited for before that, for
    `connect_timeout` at most.
    """

    def run(call: _Call[stats.OutgoingStatistics]) -> stats.OutgoingStatistics:
        with calls.sending(disks, uri, on_progress=on_progress, **parameters) as migration:
            call.attach(migration)
            with migration:
                migration.run()
            return migration.stats

    return await _Call("blkmig-asend", run).ended()


async def areceive(
    uri: str,
    targets: Mapping[str, load_targets.Target] | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    by_index: Mapping[int, load_targets.Target] | None = None,
    on_progress: figures.OnProgress | None = None,
    **parameters: Any,
) -> stats.IncomingStatistics:
    """Receive the disks of one migration as :func:`~blkmig.receive` does, and let the event loop go on meanwhile.

    The arguments are those of `receive`. `on_progress` is called as :func:`asend` says; its first event, that the
    status is ``setup``, comes when the address can be connected to.

    Cancelling the task cancels the migration. Then this waits until it has ended, for a minute at most, and raises
    ``asyncio.CancelledError``: the targets are incomplete, and new ones are removed, but for what a sender may resume.
    Where everything is on stable storage by then, and the source knows, this returns its figures; any other error is
    raised.
    """

    def run(call: _Call[stats.IncomingStatistics]) -> stats.IncomingStatistics:
        chosen = params.IncomingParameters(**parameters)
        migration = calls.incoming(uri, targets, chosen, into=into, by_index=by_index, on_progress=on_progress)
        call.attach(migration)
        with migration:
            return migration.run()

    return await _Call("blkmig-areceive", run).ended()


class _Migration(Protocol):
    def cancel(self) -> None:
        """End it as soon as possible."""


class _Call(Generic[Result]):
    """A function that migrates, in a thread called `name`; it says which migration it runs as soon as there is one."""

    def __init__(self, name: str, run: Callable[[_Call[Result]], Result]) -> None:
        self._name = name
        self._run = run
        # The loop's thread sets the first and reads the second, the other one the other way round: one of them acts.
        self._is_cancelled = False
        self._migration: _Migration | None = None
        # Set by the thread before its end is told.
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def attach(self, migration: _Migration) -> None:
        """Have `migration` cancelled from now on; raise if that was to be before."""
        self._migration = migration
        if self._is_cancelled:
            raise errors.Cancelled("the migration was cancelled before it began")

    async def ended(self) -> Result:
        """Start the thread and wait for it; return or raise what the function did."""
        over = self._start(asyncio.get_running_loop())
        try:
            await asyncio.wait([over])
        except asyncio.CancelledError as cancelled:
            self._cancel()
            await _until(over)
            if not over.done():
                cancelled.add_note(f"{self._name}: the migration still holds its disks, and ends by itself")
                logger.warning("%s: cancelled, and not over within %g s", self._name, CANCEL_SECONDS)
                raise
            if isinstance(self._error, errors.Cancelled):
                raise cancelled from self._take_error()
        except BaseException:  # GeneratorExit: nobody will ever run the task again
            self._cancel()
            raise
        error = self._take_error()
        if error is not None:
            try:
                raise error
            finally:
                del error  # whose traceback knows this frame
        return self._result[0]

    def _start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        over: asyncio.Future[None] = loop.create_future()
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._work, loop, over), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            raise errors.MigrationError(f"no thread can be started to migrate in: {error}") from error
        return over

    def _work(self, loop: asyncio.AbstractEventLoop, over: asyncio.Future[None]) -> None:
        try:
            self._result.append(self._run(self))
        except BaseException as error:
            self._error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(over.set_result, None)

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._migration is not None:
            self._migration.cancel()

    def _take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return error


async def _until(over: asyncio.Future[None]) -> None:
    """Wait for a cancelled migration's end. Further cancels change nothing: it has been told."""
    loop = asyncio.get_running_loop()
    end = loop.time() + CANCEL_SECONDS
    while not over.done() and (left := end - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([over], timeout=left)
