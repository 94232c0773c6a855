# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause of a migration, and how it ends: the writers of all disks are held, and then go on or are refused.

::

    a copy    holding ─ held ─────────────────────── release ──► over      END, EOF, the target's word: not in the pause
                 │       │  the last blocks, as PART
                 └───────┴─ the bound passes ──► given up: the writers go on, back to rounds

    a move    holding ─ held ──────── begin_end ─ ending ── end_has_left ─ left ─ refuse ──► over
                          PART, PING, PONG      END, EOF               the target's word

    in four messages    held ──────── begin_commit ─ left ─ refuse ──► over
                          PART, END, READY    COMMIT, DONE

What the migration does with an error, with a cancel, and when a bound passes:

=========  ===================================================  ======================================================
state      the bound passes                                     the link dies, a read fails, a cancel comes
=========  ===================================================  ======================================================
holding    given up                                             the link is reset, the writers go on
held       given up, while the migration may still be blocked   the link is reset, the writers go on
           in a send, a read or a wait for PONG, or READY
ending     the link is cut: nothing follows a torn END          has EOF left: in doubt; else as before
left       nothing: now `idle_timeout` counts, and `timeout`    in doubt, but for a target that says that it failed
over       nothing: the writers are not held                    the link is reset; those of a move are refused
=========  ===================================================  ======================================================

A target that freezes is one whose bound passes. Why this loses nothing: up to END a pause is a round like any other,
with the same rule, clear, then read; write, then mark. Once the pause is given up, writers write and mark again. A
write may tear the block that is just being sent, or change pages that stand in the channel: it marks these blocks, so
they are sent again. In a copy nothing that a writer could change is left in the channel when the writers go on: see
`passage`.

*In doubt* means that the target may own the disks. From the moment when EOF may have left, no way out of a move lets
its writers go on, a second interrupt included: the state says so before the bytes can leave, and every end looks at it.

Who owns what: the migration thread calls everything but `_bound_passed`, which runs in a thread of the watchdog. The
state changes under the lock, and whoever changes it to an end lets the writers go. Under the lock nobody waits for
anything.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from .. import disk, errors
from . import watchdog

State = Literal["holding", "held", "ending", "left", "given up", "over"]

REPEAT_SECONDS = 0.02
"""A hold that has just begun may miss a release, so it is told again after this long, until it has ended."""


class GivenUp(Exception):
    """The bound of the pause has passed, and its writers go on."""


class Pause:
    """The time in which the writers of `disks` are held, for `bound` seconds at most; see `pausing`.

    `cut` ends whatever the migration thread is blocked in, for good; `reset` closes the link so that the target sees it
    broken. `may_be_complete` tells whether the target may have the whole stream.
    """

    def __init__(
        self,
        disks: list[disk.BlockBackend],
        dog: watchdog.Watchdog,
        *,
        clock: Callable[[], float],
        bound: float,
        is_move: bool,
        cut: Callable[[], None],
        reset: Callable[[], None],
        may_be_complete: Callable[[], bool],
    ) -> None:
        # Set here, then read-only.
        self._disks = disks
        self._dog = dog
        self._clock = clock
        self._bound = bound
        self._is_move = is_move
        self._cut = cut
        self._reset = reset
        self._may_be_complete = may_be_complete
        # Changed under `_lock`.
        self._lock = threading.Lock()
        self._state: State = "holding"
        # Migration thread only.
        self._alarm: watchdog.Alarm | None = None
        self._may_be_owned = self._has_moved = False
        # Set by one thread, waited for by the other.
        self._hold_ended = threading.Event()
        self._are_let_go = threading.Event()
        # Written by whoever lets the writers go, read afterwards.
        self._held_at = clock()
        self._error: BaseException | None = None
        self.downtime = 0.0

    @property
    def is_bounded(self) -> bool:
        """Return whether the pause is under way, and its own bound will end it."""
        return self._state in ("holding", "held", "ending")

    @property
    def is_given_up(self) -> bool:
        """Return whether the bound of the pause has passed, and the writers go on."""
        return self._state == "given up"

    # -- the way to the end ------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep the writers out; blocks until all of their writes in flight are done.

        The disks of a move are told before, while nobody waits: a disk may leave a note somewhere.
        """
        waits = any(backend.awaits_switchover for backend in self._disks)
        try:
            if self._is_move:
                for backend in self._disks:  # each of them, whatever the first one says
                    self._may_be_owned |= backend.about_to_move()
            if not waits:
                self._begin()
            for backend in self._disks:
                self.check()
                backend.hold_writers()
        except errors.MigrationError:
            self.check()  # whoever lets the writers go ends a hold that waits
            raise
        finally:
            self._hold_ended.set()
        if waits:
            self._begin()
        self._change("held")

    def _begin(self) -> None:
        self._alarm = self._dog.call_after(self._bound, self._bound_passed)
        self._held_at = self._clock()

    def check(self) -> None:
        """Raise :class:`GivenUp` if the pause was given up."""
        if self.is_given_up:
            raise GivenUp

    def _change(self, state: State) -> None:
        with self._lock:
            self.check()
            self._state = state

    def release(self) -> float:
        """Let the writers go on and return the downtime in seconds. Raises GivenUp, and what the disks say."""
        self._change("over")
        self._dog.forget(self._alarm)
        try:
            self._release_all()
        finally:
            self.downtime = self._clock() - self._held_at
        return self.downtime

    def begin_end(self) -> None:
        """Take note that what follows cannot be taken back, the end of the stream. Raises GivenUp."""
        self._change("ending")

    def begin_commit(self) -> None:
        """Take note that COMMIT is about to leave, which cannot be taken back. Raises GivenUp.

        Whoever has the lock decides: either the bound has passed and COMMIT never leaves, or it leaves and the bound of
        a move counts no more. The bound of a VM, which its QEMU hands over after DONE, counts on.
        """
        self._change("ending")
        if self._may_be_owned:
            self.end_has_left()

    def end_has_left(self) -> None:
        """Take note that the whole stream has left."""
        self._change("left")
        self._dog.forget(self._alarm)

    def refuse(self) -> float:
        """Refuse the writers, because the target has said that it has everything; return the downtime in seconds.

        They are refused on all disks, also after an error of one, which is raised at the end; it says that the disks
        are the target's all the same.
        """
        self._has_moved = self._may_be_owned  # first: whatever interrupts this, `abandon` refuses them, too
        self._change("over")
        try:
            self._release_all(refuse=True)
        except errors.MigrationError as error:
            if self._has_moved:
                error.add_note("the target has the disks, which have moved: do not use them here")
            raise
        finally:
            self.downtime = self._clock() - self._held_at
        return self.downtime

    # -- other ends --------------------------------------------------------------------------------------------------

    def is_in_doubt(self) -> bool:
        """Return whether an error now leaves it open who owns the disks."""
        return self._state in ("ending", "left") and self._may_be_owned and self._may_be_complete()

    def abandon(self) -> None:
        """End the pause after an error: the writers go on once the link is reset, or stay held if it is in doubt."""
        if self.is_in_doubt():
            errors.each([*(each.leave_in_doubt for each in self._disks), lambda: self._dog.forget(self._alarm)])
            return
        with self._lock:
            is_given_up, was_over = self._state == "given up", self._state == "over"
            if not is_given_up:
                self._state = "over"
        try:
            self._reset()
        finally:
            self._dog.forget(self._alarm)
            if is_given_up:
                self.finish_giving_up()
            else:
                self._release_all(refuse=self._has_moved)
                if not was_over:
                    self.downtime = self._clock() - self._held_at

    def finish_giving_up(self) -> None:
        """Wait until all writers were let go; raise what one of the disks said to that."""
        self._are_let_go.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _bound_passed(self) -> None:
        """Let the writers go on, or cut the link where that is too late. In a thread of the watchdog."""
        with self._lock:
            if self._state == "ending":
                self._cut()
            if self._state not in ("holding", "held"):
                return
            self._state = "given up"
        try:
            self._release_until_hold_ends()
        except BaseException as error:
            self._error = error
        finally:
            self.downtime = self._clock() - self._held_at
            self._are_let_go.set()

    def _release_until_hold_ends(self) -> None:
        while True:
            has_ended = self._hold_ended.is_set()  # first: then no hold comes after the release
            self._release_all()
            if has_ended:
                return
            self._hold_ended.wait(REPEAT_SECONDS)

    def _release_all(self, *, refuse: bool = False) -> None:
        """Let all writers go on, or refuse them, whatever one disk says; the first error is raised at the end."""
        errors.each(functools.partial(backend.release_writers, refuse=refuse) for backend in self._disks)

    def describe_doubt(self, error: BaseException) -> str:
        """Say what `error` leaves in doubt, and what to do about it on which side."""
        names = ", ".join(repr(backend.name) for backend in self._disks)
        why = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
        return (
            f"in doubt: all of {names} was handed over, and the target's word that it has it did not come "
            f"({why}): the target may own the disk, so its writers here stay held. "
            "Look on the target when its receiver has ended, not only fallen silent. If it ended with exit code 0, or "
            "says that the disk is complete there, or its QEMU runs, the disk has moved: do not use it here. If it was "
            "killed, start `blkmig receive` there "
            "once more with the same disk: it says whether the disk has moved. If it has not, stop the target for "
            "good, and only then let the writers here go on: for a QEMU `blkmig cleanup --force qemu:QMP_SOCKET`, in "
            "a program release_writers() of each disk; and remove .NAME.blkmig beside the first disk, if it is there"
        )


@contextlib.contextmanager
def pausing(pause: Pause) -> Iterator[None]:
    """Hold the writers for the body of a ``with``, which releases or refuses them, or raises :class:`GivenUp`.

    After any other error they go on, unless the target may own the disks: then they stay held, and the error is
    :class:`~blkmig.errors.InDoubt`.
    """
    try:
        pause.hold()
        yield
    except GivenUp:
        pause.finish_giving_up()
        raise
    except BaseException as error:
        is_in_doubt = pause.is_in_doubt()
        with errors.keeping(error):
            pause.abandon()
        if is_in_doubt:
            raise errors.InDoubt(pause.describe_doubt(error)) from error
        raise
