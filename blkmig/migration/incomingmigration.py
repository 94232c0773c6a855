# SPDX-License-Identifier: GPL-2.0-or-later
"""The incoming side of a migration: listen, load, check, make durable, and only then say that it is done.

::

    listen ─ a source comes ─ a loading: its stream, into the targets ──────────────────────── done
                               └─ another process of that source resumes: what has come is left
                                  └─ the next loading: its stream, into targets that it opens anew ─ done

**A loading that is given up is over before the next source hears a word.** Its threads have ended, all that it has
put off is written, and its targets are closed. So nothing that an older process of the source has sent can come after
what the next one sends, and no COMMIT of it can count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import channel, errors, params, savevm, stats
from . import asked, comparing, farewell, fitting, loading, lobby, received, turns
from . import targets as load_targets

if TYPE_CHECKING:
    from .. import hanging
    from . import arrivals, figures

TAKEN_OVER = "another sender has gone on with --resume, and compared what had come"


class IncomingMigration:
    """One migration that comes in on `uri`. Use it in a ``with``: entering listens, leaving closes everything.

    `savevm` is its registry: other live sections may be registered there before `run`. All methods but `cancel` belong
    to one thread.
    """

    def __init__(
        self,
        uri: str,
        targets: Mapping[str, load_targets.Target],
        parameters: params.IncomingParameters | None = None,
        *,
        into: str | os.PathLike[str] | None = None,
        by_index: Mapping[int, load_targets.Target] | None = None,
        on_progress: figures.OnProgress | None = None,
        observer: savevm.StreamObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parameters = asked.parameters_of(parameters, params.IncomingParameters)
        self.savevm = savevm.SaveState()
        self._figures = received.IncomingFigures(asked.listener(on_progress), clock)
        self.stats = self._figures.stats
        self._requested_uri = uri
        self._wanted, self._into, self._by_index = targets, into, by_index
        self._observer = observer
        self._stack = contextlib.ExitStack()
        self._listener: channel.Listener | None = None
        self._f: channel.InputQEMUFile | None = None
        self._cancel_requested = False
        self._error: BaseException | None = None  # what has ended `run`
        self._turn = turns.Turn()
        self._place = "before its with"
        self._loading = self._another()

    def keep_maps(self) -> arrivals.Arrivals:
        """Return where the maps of the disks will be, by name, as they come, and the rounds; call it before `run`."""
        return self._figures.keep_maps()

    def __enter__(self) -> Self:
        """Listen, where the URI says so; `uri` is then the actual address."""
        self._require("before its with")
        fitting.check_state_dir(self.parameters.state_dir)
        self._loading.prepare(self._requested_uri)
        with contextlib.ExitStack() as stack:
            stack.push(lambda *raised: self._loading.__exit__(*raised))  # the last one: those before are over by then
            tls, allow = self.parameters.tls, self.parameters.allow
            self._listener = stack.enter_context(channel.listen(self._requested_uri, tls=tls, allow=allow))
            self._stack.push(stack.pop_all())
        self._place = "in its with"
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything; a migration that did not complete leaves its targets incomplete.

        A `run` of another thread is cancelled, and waited for.
        """
        self._place = "behind its with"  # first: a run that has not seen it has the turn by then
        self._turn.end_others(self.cancel)
        if self._f is not None:
            self._f.abort()  # the newest link: those before it were closed when they were lost
        self._stack.close()

    @property
    def uri(self) -> str:
        """Return the address to send to, with the port that was chosen where none was said."""
        return self._requested_uri if self._listener is None else self._listener.uri

    @property
    def token(self) -> str:
        """Return what its sender must say, where it listens at ``tls:`` without certificates: a secret."""
        return "" if self._listener is None else self._listener.token

    @property
    def is_exposed(self) -> bool:
        """Return whether any machine may reach the address, and who does can write the targets: see `insecure`."""
        return self._listener is not None and self._listener.is_exposed and not self.parameters.insecure

    @property
    def is_awaited(self) -> bool:
        """Return whether the source waits, or has waited, for the word that all is on stable storage."""
        return self._loading.is_awaited

    @property
    def is_in_doubt(self) -> bool:
        """Return whether the disks may be this host's own, and the source has not been told: neither end could say who
        has them if this one ended now. From any thread."""
        taken, word = self._loading.taken, self._loading.word
        return word.is_given is None or (taken is not None and taken.is_decided and not taken.is_told)

    def run(self) -> stats.IncomingStatistics:
        """Wait for the source, load all disks, check and flush them, tell the source, and return the statistics.

        Blocks. On any error the source is told, and the targets are incomplete. What is verified is so behind our word.
        """
        with self._turn.taken(lambda: self.stats.status, "none"):
            self._require("in its with")
            assert self._listener is not None
            if self.stats.status != "none":
                raise errors.StateError("a migration comes in once", state=self.stats.status, required="none")
            self._figures.set_status("setup")
            try:
                self._check_cancelled()
                self._f = f = self._accept(self._listener)
                self._figures.begin(f)
                self._figures.set_status("active")
                self._check_cancelled()
                resumed = self._hear_who_resumes(f)
                while True:  # here, and not a call deeper: each record of the stream comes through it
                    try:
                        with self._loading as present:
                            present.load(f, self._listener, resumed=resumed, is_exposed=self.is_exposed)
                        break
                    except lobby.TakenOver as taken_over:
                        f, resumed = taken_over.arrival.f, taken_over.arrival.session
                    with self._telling(f):
                        self._begin_anew(f)
            except BaseException as error:
                self._error = error
                cancelled = isinstance(error, errors.Cancelled) or not isinstance(error, Exception)
                with errors.keeping(error):
                    self._figures.set_status("cancelled" if cancelled else "failed")
                    self._figures.raise_postponed()
                raise
            comparing.note_what_was_not(self.parameters, self.stats, self.is_exposed)
            self.stats.notes += self._listener.notes
            self._figures.taken(is_usable=True)
            self._figures.set_status("completed")
            self._figures.raise_postponed()
            return self.stats

    def cancel(self) -> None:
        """Stop as soon as possible: `run` raises :class:`~blkmig.errors.Cancelled`. From any thread.

        Without effect once the migration is completed or has failed.
        """
        self._cancel_requested = True
        if self.stats.status in ("completed", "failed", "cancelled"):
            return  # its disks are others' by now
        if self._loading.is_decided:
            self._loading.stop_waiting()
            return  # the disks are here by now, and the source is to know that
        if self._listener is not None:
            self._listener.cancel()
        if self._f is not None:
            self._f.cancel()
        self._loading.cancel()

    def abandon(self, hung: hanging.Call) -> errors.MigrationError | None:
        """Tell the source, from any thread and after `cancel`, that this end ends though its own thread has `hung`;
        return the error that has ended it, None if it is complete. Only the end of the process is possible then."""
        from . import abandoning  # here: nothing else of it is needed

        return abandoning.abandon_incoming(self.stats.status, self._error, self._loading, hung)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _require(self, place: str) -> None:
        """Raise unless it is at that place of the one ``with`` that it is used in."""
        if self._place != place:
            raise errors.StateError("a receiver is entered once, and runs within its with", state=self._place,
                                    required=place)  # fmt: skip

    def _another(self) -> loading.Loading:
        """Return a loading that has opened nothing yet."""
        return loading.Loading(
            self._wanted,
            self.parameters,
            self.savevm,
            self._figures,
            into=self._into,
            by_index=self._by_index,
            observer=self._observer,
            on_link=self._take_link,
            check_cancelled=self._check_cancelled,
        )

    def _accept(self, listener: channel.Listener) -> channel.InputQEMUFile:
        """Wait for the first connection that is a migration; others are refused once its disks are known."""
        accept, idle = self.parameters.accept_timeout, self.parameters.idle_timeout
        magics, header = [savevm.QEMU_VM_FILE_MAGIC, savevm.RESUME_MAGIC], savevm.HEADER_NBYTES
        short = savevm.QEMU_VM_FILE_MAGIC, header
        f = listener.accept(timeout=accept, magics=magics, nbytes=savevm.AGAIN_NBYTES, short=short)
        f.set_idle_timeout(idle, first=accept or 0.0)
        return f

    def _hear_who_resumes(self, f: channel.InputQEMUFile) -> savevm.Session | None:
        """Return what the source on `f` says first, and answer it, if it resumes: nobody of its session was here."""
        if not f.starts_with(savevm.RESUME_MAGIC):
            return None
        resumed = savevm.parse_again(f.get_buffer(savevm.AGAIN_NBYTES))
        self._welcome(f, savevm.Waiting.NOBODY)
        return resumed

    def _begin_anew(self, f: channel.InputQEMUFile) -> None:
        """Have a loading ready for the process of the source on `f`, in place of one that was given up."""
        f.set_idle_timeout(self.parameters.idle_timeout)
        self._figures.begin_anew(f)
        self._loading = self._another()
        self._check_cancelled()  # behind that: whoever cancels sets the flag first, and then cancels what is there
        self._loading.prepare(self._requested_uri)
        self._check_cancelled()
        self.stats.notes.append(TAKEN_OVER)
        self._welcome(f, savevm.Waiting.RECEIVER)
        self._figures.set_status("active")

    def _welcome(self, f: channel.InputQEMUFile, waiting: savevm.Waiting) -> None:
        """Tell a source that resumes whom it has met."""
        back = f.return_path()
        assert back is not None
        savevm.send_word(back, savevm.Resumed(waiting))

    @contextlib.contextmanager
    def _telling(self, f: channel.InputQEMUFile) -> Iterator[None]:
        """Tell the source on `f`, which has not begun its stream, why this end fails in the body."""
        try:
            yield
        except BaseException as error:
            farewell.tell(f, error)
            raise

    def _take_link(self, f: channel.InputQEMUFile) -> None:
        """Take note of the link on which the source of a session goes on."""
        self._f = f

    def _check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled; its targets are incomplete")
