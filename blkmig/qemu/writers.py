# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding the writers of QEMU's disks: the guest, and the clients of writable exports.

``stop`` holds a guest, and also waits for its requests. It does not hold an NBD client, and a storage daemon has no
guest. So the writable exports are closed, hard, and QEMU says when the last request is over. Requests that a client had
in flight may or may not have been written, as after a crash.

A mark in QEMU (`marks.py`) is set before anybody is held. So if the run is killed meanwhile, ``blkmig cleanup`` knows
that this QEMU must be brought back to work, and leaves alone a guest that somebody else has stopped.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from .. import errors, logs
from . import discover, exportnames, graph, guest, marks, objects, qmp

logger = logs.Logger(__name__)


Undo = Callable[[], Callable[[], object]]
"""Begins to undo something in QEMU, and returns a function that waits for the end of that."""


class Writers:
    """The writers of `disks`. Under the session's lock."""

    def __init__(
        self,
        connection: qmp.QmpConnection,
        own: objects.OwnObjects,
        disks: list[discover.QemuDisk],
        *,
        read_graph: Callable[[], graph.BlockGraph],
        named: tuple[str, ...],
        guest: guest.Guest,
        marks: marks.Marks,
    ) -> None:
        self._qmp = connection
        self._own = own
        self._disks = disks
        self._read_graph = read_graph
        self._named = named
        self._guest = guest
        self._marks = marks
        self._names: dict[str, str] = {}
        self._undo: list[Undo] = []
        self._closing: set[str] = set()  # exports that QEMU was told to close, and nobody has seen the end of it
        self.may_have_moved = False
        """The hold is that of a move, and no release has followed: the target may own the disks."""

        self._marking: qmp.Command | None = None
        self.is_in_doubt = False
        """Whether the target may own the disks, and nobody knows. Then nothing is undone, and the marks stay."""


    def prepare(self) -> None:
        """Check whether the writers can be held later; if not, raise :class:`~blkmig.errors.DeviceError`."""
        exports = self._find_exports(self._read_graph())
        self._marks.add(*(export.mark for export in exports if export.nbd_name is not None))
        for export in exports:
            if export.nbd_name is None:
                logger.warning(
                    "%s: the export %r has to be closed for the last pass and cannot be opened again by blkmig",
                    self._qmp.device,
                    export.id,
                )

    def hold(
        self, known: graph.BlockGraph | None = None, *, meanwhile: Callable[[graph.BlockGraph], Callable[[], None]]
    ) -> None:
        """Stop the guest and close the writable exports; all or nothing.

        When QEMU has been told to do that, `meanwhile` is called with the graph from just before. The function that it
        returns is called when QEMU has done it.

        On return nobody writes, unless a new writer has come meanwhile: call `check_nobody_writes` before trusting what
        was read. Questions to QEMU come before the hold, so that the writers are held no longer than necessary. If the
        graph was `known` a moment ago, QEMU is not asked again.
        """
        try:
            self._await_guest()
            facts = known or self._read_graph()
            exports = self._find_exports(facts)
            self._mark_held(exports)
            ends = self._start_stopping_guest()
            for export in exports:
                self._undo.append(functools.partial(self._start_opening_again, export))
                ends.append(self._start_closing(export))
            ends.append(meanwhile(facts))  # last, because it relies on the other steps
            for await_end in ends:
                await_end()
        except BaseException:
            with self._qmp.leaving(), contextlib.suppress(errors.DeviceError):
                self.release(refuse=False)
            raise

    def _mark_held(self, exports: list[marks.WritingExport]) -> None:
        """Set the marks that tell a clean-up what to undo, before anything is done."""
        if exports or self._stops_guest():
            for export in exports:
                if export.nbd_name is not None:
                    self._marks.start_adding(export.mark)  # of an export that was made after `prepare`
            self._marks.start_adding(marks.HELD)
        if self.may_have_moved:
            self._marking = self._marks.start_adding(marks.MOVED) or self._marking

    def check_nobody_writes(self, facts: graph.BlockGraph) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if a disk has got another writer since the writers were held."""
        if self._guest.is_running:
            cause = "somebody let the guest go on (cont) while blkmig held it; the copy is not complete"
            raise errors.DeviceError("its guest was held and runs", device=self._qmp.device, cause=cause)
        for disk in self._disks:
            if facts.writing_exports(disk.node):
                cause = f"an export of node {disk.node} was opened for writing meanwhile"
                raise errors.DeviceError("cannot hold its writers", device=disk.name, cause=cause)

    def release(self, *, refuse: bool) -> None:
        """Let the writers go on if they are held, or with `refuse` leave them held.

        All steps are tried before the first error is raised. The next call repeats steps that QEMU did not answer;
        until then the mark that the writers are held stays.
        """
        undo, self._undo = self._undo[::-1], []
        if refuse or not undo:
            return
        self.may_have_moved = False
        failed: list[errors.DeviceError] = []
        waits = [self._begin(start, failed) for start in undo]  # all together, because the writers wait
        for start, await_end in zip(undo, waits, strict=True):
            try:
                await_end()
            except errors.DeviceError as error:
                failed.append(error)
                if isinstance(error, qmp.QmpTimeout):
                    self._undo.insert(0, start)
        if not self._undo:
            self._marks.start_removing(marks.MOVED, marks.HELD)
        if failed:
            raise failed[0]

    @staticmethod
    def _begin(start: Undo, failed: list[errors.DeviceError]) -> Callable[[], object]:
        try:
            return start()
        except errors.DeviceError as error:  # QEMU has gone
            failed.append(error)
            return lambda: None

    def _await_guest(self) -> None:
        """Return when the guest may be stopped."""

    def _stops_guest(self) -> bool:
        """Return whether there is a guest to be stopped. One that is stopped already stays stopped afterwards, too."""
        return self._guest.is_running

    def _start_stopping_guest(self) -> list[Callable[[], object]]:
        """Make QEMU stop the guest; return a function that waits until it is stopped."""
        if not self._stops_guest():
            return []
        self._undo.append(lambda: self._qmp.start("cont").result)
        stopping = self._qmp.start("stop")

        def await_end() -> None:
            stopping.result()
            self._guest.is_running = False  # the event may still come; a later event has another cause

        return [await_end]

    def remove_marks(self) -> None:
        """Remove the marks, unless the writers stay held: in doubt, or because QEMU does not answer."""
        if self.is_in_doubt or self._undo:
            self._marks.finish()
        else:
            self._marks.remove_all()

    def check(self) -> None:
        """Raise if it is known that the writers cannot be held any more."""

    def about_to_move(self) -> bool:
        """Have the next `hold` mark that the target may own the disks, before anybody waits: QEMU takes some half a
        millisecond to read that. See :meth:`~blkmig.BlockBackend.about_to_move`."""
        self.may_have_moved = True
        return True

    def stays(self) -> None:
        """Take `about_to_move` back where no `hold` has followed."""
        self.may_have_moved = False

    def await_mark(self) -> None:
        """Return when the mark that `hold` has begun is there. QEMU has run it before what it was asked since."""
        marking, self._marking = self._marking, None
        if marking is not None:
            marking.result()

    def close(self) -> None:
        """Undo what `prepare` did in QEMU."""

    # -- exports -----------------------------------------------------------------------------------------------------

    def _find_exports(self, facts: graph.BlockGraph) -> list[marks.WritingExport]:
        found: dict[str, None] = dict.fromkeys(self._named)
        for name in self._named:
            if name not in facts.exports:
                raise errors.DeviceError(f"has no export {name!r}", device=self._qmp.device, cause="export= names it")
        for disk in self._disks:
            found |= dict.fromkeys(self._exports_of(facts, disk))
        return [self._describe(facts, name) for name in found]

    def _exports_of(self, facts: graph.BlockGraph, disk: discover.QemuDisk) -> list[str]:
        """Return the exports through which `disk` is written; if QEMU does not say, those through which it may be."""
        candidates = facts.exports_of(disk.node, but=self._own.prefix)
        writing = facts.writing_exports(disk.node)
        if writing is None or writing == len(candidates):
            return candidates
        named = [name for name in candidates if name in self._named]
        if writing == len(named):
            return named
        if writing > len(candidates):
            cause = f"something else than an export writes node {disk.node}, a block job perhaps: let that end first"
        else:
            listed = ", ".join(candidates)
            cause = f"{writing} of its exports may write, and QEMU does not say which of {listed}: name them, export=ID"
        raise errors.DeviceError("cannot hold its writers", device=disk.name, cause=cause)

    def _describe(self, facts: graph.BlockGraph, name: str) -> marks.WritingExport:
        if name not in self._names:
            self._names |= self._nbd_names(facts)
        return marks.WritingExport(name, facts.exports[name]["node-name"], self._names.get(name))

    def _nbd_names(self, facts: graph.BlockGraph) -> dict[str, str]:
        try:
            names = exportnames.list_names(
                self._own.uri, device=self._qmp.device, is_cancelled=lambda: self._qmp.is_cancelled
            )
        except errors.DeviceError as error:
            logger.info("%s", error)
            return {}
        return exportnames.match(facts, names, own=self._own.prefix)

    def _start_closing(self, export: marks.WritingExport) -> Callable[[], None]:
        """Begin to close an export; return a function that waits until its last request is over."""
        self._closing.add(export.id)
        await_closed = objects.start_deleting_export(self._qmp, export.id)

        def await_end() -> None:
            await_closed()
            self._closing.discard(export.id)

        return await_end

    def _start_opening_again(self, export: marks.WritingExport) -> Callable[[], None]:
        """Begin to open an export again if it was closed. It is not checked before, because its writers wait."""
        if export.nbd_name is None:
            return lambda: self._tell_of_closed(export)
        if export.id in self._closing:
            return lambda: self._open_once_closed(export)
        opening = export.start_opening(self._qmp)

        def await_end() -> None:
            try:
                opening.result()
            except qmp.QmpError as error:
                if "already in use" not in error.text:
                    raise

        return await_end

    def _open_once_closed(self, export: marks.WritingExport) -> None:
        """Open an export again that is still being closed: until that is over, QEMU opens no other one of its name."""
        there = objects.list_exports(self._qmp)
        if there.get(export.id):
            self._qmp.wait_event("BLOCK_EXPORT_DELETED", lambda data: data.get("id") == export.id)
        if there.get(export.id) is not False:
            export.start_opening(self._qmp).result()
        self._closing.discard(export.id)

    def _tell_of_closed(self, export: marks.WritingExport) -> None:
        if export.id not in self._read_graph().exports:
            logger.warning("%s: the export %r was closed; open it again yourself", self._qmp.device, export.id)
