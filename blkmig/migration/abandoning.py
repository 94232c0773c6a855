# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a migration whose own thread hangs for good, as in a read of a file system that does not answer.

::

    the migration's thread    a call that nothing interrupts ....................................................
    any other one             cancel ─ abandon: the writers go on, or stay held in doubt; the other end is told;
                                       throttles, trackers, notes and keys are removed ─ the process ends

Each step has a bound, because it may come to what hangs as well. What the migration's thread does, should the call
return after all, is of no account: the process ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors, threads

if TYPE_CHECKING:
    from .. import block, hanging, stats
    from . import bounds, ending, endpoints, life, loading, outgoingsession

DISK_SECONDS = 5.0
"""How long a disk that does not hang may take to be closed: a QEMU is asked for several things."""

_TAKING = (
    "in doubt: the disks were about to be taken from the source, and nobody knows whether that is stored; start the "
    "same `blkmig receive` once more when the file system answers again: it says whether they are here"
)

_TELLING = (
    "in doubt: everything is complete here, and the source may not know that: its own message says whether it has the "
    "word. If the source has given up, its writers may have gone on: migrate again"
)


class Abandoning:
    """Of one outgoing migration."""

    def __init__(
        self,
        handlers: block.BlockSaveHandlers,
        states: life.Life,
        limits: bounds.Bounds,
        end: ending.Ending,
        session: outgoingsession.OutgoingSession,
        sources: endpoints.Sources,
    ) -> None:
        # Set here, then read-only.
        self._block = handlers
        self._life = states
        self._bounds = limits
        self._ending = end
        self._session = session
        self._sources = sources

    def abandon(self, hung: hanging.Call) -> errors.MigrationError | None:
        """Release what can be, and return the error that has ended the migration; None if that is complete.

        From any thread, after `cancel`, while the migration's own stands in the call that has `hung`. Blocks for a few
        seconds with each step that hangs, too. Disks on other file systems are closed. Only the end of the process is
        possible then.
        """
        error, steps = self._judge()
        found = self._sources.named(hung.path)
        if error is not None:
            error.add_note(f"{hung}" if found is None else f"disk {found[0]!r}: {hung}")
        # The files of the others stay open: closing one may hang so that not even SIGKILL ends it.
        disks = self._sources.apart_from(None if found is None else found[1])
        status: stats.Status = "cancelled" if isinstance(error, errors.Cancelled) else "failed"
        steps.append(lambda: self._block.save_cleanup(waits=False))
        self._life.abandon(steps, "completed" if error is None else status)
        for backend in disks:
            threads.in_time(backend.close, DISK_SECONDS)
        return error

    def _judge(self) -> tuple[errors.MigrationError | None, list[Callable[[], object]]]:
        """Return what has ended it, and what has to be done first."""
        held = self._bounds.pause
        if isinstance(self._life.error, errors.MigrationError):
            return self._life.error, []
        if self._session.is_completed:
            error = errors.NotVerified("everything is complete at the target, but comparing was cut short")
            is_verified = self._life.is_complete or not self._block.proves
            is_moved = held is not None and held.is_in_doubt()  # in doubt no more
            return None if is_verified else error, [held.refuse] if held is not None and is_moved else []
        cancelled = self._bounds.why(errors.Cancelled("the migration was cancelled"))
        if held is None:
            return cancelled, []
        if held.is_in_doubt():
            return errors.InDoubt(held.describe_doubt(cancelled)), [held.abandon]
        return cancelled, [held.abandon, self._ending.note.drop]


def abandon_incoming(
    status: stats.Status, ended: BaseException | None, loaded: loading.Loading, hung: hanging.Call
) -> errors.MigrationError | None:
    """Tell the source of a migration in this `status` that it ends, and return the error that has ended it, which may
    have `ended` it before; None if it is complete. As `Abandoning.abandon`.

    The targets stay as they are, half made as after SIGKILL: closing one may hang so that not even SIGKILL ends it.
    """
    taken, devices = loaded.taken, loaded.targets.devices
    is_taken = taken is not None and taken.is_taken
    is_complete = is_taken or loaded.word.is_given
    is_compared = not loaded.parameters.verify or not (is_taken or loaded.is_awaited)  # else it is so behind the word
    if status == "completed" or (is_complete and is_compared):
        return None
    error: errors.MigrationError = errors.Cancelled("the migration was cancelled; its targets are incomplete")
    if is_complete:
        error = errors.NotVerified("everything is complete here, but comparing was cut short")
    elif loaded.is_decided:
        error = errors.InDoubt(_TAKING)
    elif is_complete is None:
        error = errors.InDoubt(_TELLING)
    if isinstance(ended, errors.MigrationError):
        error = ended
    found = [each for each in devices if any(file.path == hung.path for file in each.backend.files)]
    if len(devices) == 1:
        found = list(devices)
    error.add_note(f"disk {found[0].statistics.name!r}: {hung}" if found else f"{hung}")
    threads.in_time(lambda: loaded.session.give_reason(error), threads.STEP_SECONDS)
    return error
