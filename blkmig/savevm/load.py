# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading side of the container: from the file header to the description behind the end of file.

::

    header ─ [configuration] ─ { section | command }* ─ EOF ─ [vmdescription] ─ finish: SHUT on the return path
                                    │
                                    └─ first FULL section that nobody registered: from there on all is device state

Configuration and footers are detected, not told. Sections go to the handlers that the caller registered; those that
are not disks are skipped (:mod:`.skip`). Everything that concerns a disk comes before the first device's state, which
is not parsed but drained to its end (:mod:`.vmdescription`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from . import commands, configuration, container, drain, header, savestate, sections, skip, stream, vmdescription, words

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

_KINDS: Final[dict[int, stream.SectionKind]] = {
    container.QEMU_VM_SECTION_START: "START",
    container.QEMU_VM_SECTION_PART: "PART",
    container.QEMU_VM_SECTION_END: "END",
    container.QEMU_VM_SECTION_FULL: "FULL",
}

_NOBODY: Final = stream.StreamObserver()


class LoadVM:
    """One loading of one stream.

    `loadvm` reads the stream to its end; then the caller makes its disks durable, and says with `finish` how it went.
    After an error, `summary` tells what had come until then.
    """

    def __init__(
        self,
        state: savestate.SaveState,
        f: InputQEMUFile,
        *,
        observer: stream.StreamObserver | None = None,
        answers: Mapping[int, int | words.Hello] | None = None,
    ) -> None:
        """Load from `f` into the sections that are registered in `state`.

        A PING is answered with its own value, but for those of `answers`, which are questions.
        """
        self._state = state
        self._f = f
        self._observer = observer or _NOBODY
        self._version = 0
        self._configuration = configuration.Configuration()
        self._has_footers: bool | None = None
        self._commands = commands.Commands(f, self._observer, answers or {})
        self._sections = sections.SectionTable(state)
        self._reached_eof = False
        self._vmdescription: dict[str, Any] | None = None
        self._vmdescription_state: vmdescription.State = "none"
        self._drained_bytes = 0
        self._is_between_records = False

    def loadvm(self) -> stream.LoadedStream:
        """Read the whole stream. Blocks; every handler's `load_cleanup` runs, whatever happens.

        Raises :class:`~blkmig.errors.StreamError` for what is wrong with the stream, and what channel, handlers and
        observer raise; then the source is not told: `finish` with a status other than 0 does that.
        """
        cleanups = [entry.handlers.load_cleanup for entry in self._state]
        try:
            self._get_header()
            for entry in self._state:
                entry.handlers.load_setup()
            self._get_records()
        except BaseException:
            with contextlib.suppress(Exception):
                savestate.run_cleanups(cleanups)
            raise
        savestate.run_cleanups(cleanups)
        return self.summary()

    @property
    def is_awaited(self) -> bool:
        """Whether the source waits for `finish`."""
        return self._commands.is_awaited

    def beat(self, value: int) -> None:
        """Send a sign of life to a source that waits for `finish`: PONG with `value`, unless the link is full.

        Does not block. Another thread may call it, as long as nobody else uses this object.
        """
        self._commands.beat(value)

    @property
    def way_back(self) -> commands.Commands:
        """What else is said to the source, and whether it was told."""
        return self._commands

    def finish(self, status: int = 0, failure: words.Failure | None = None) -> None:
        """Tell a source that waits for it how loading ended: 0 all is on stable storage, else it failed.

        Nothing is sent where the source did not ask, or was told already. Blocks. A failure shuts our side down.
        """
        self._commands.finish(status, failure)

    def summary(self) -> stream.LoadedStream:
        """Return what the stream has held so far."""
        return stream.LoadedStream(
            version=self._version,
            configuration=self._configuration,
            has_footers=self._has_footers,
            commands=self._commands.by_name(),
            sections=tuple(entry.info() for entry in self._sections),
            reached_eof=self._reached_eof,
            vmdescription=self._vmdescription,
            vmdescription_state=self._vmdescription_state,
            drained_bytes=self._drained_bytes,
            nbytes=self._f.position,
            is_between_records=self._is_between_records,
            return_path_open=self.is_awaited,
        )

    # -- before the first section ------------------------------------------------------------------------------------

    def _get_header(self) -> None:
        f = self._f
        self._version = header.get_header(f)
        if f.peek_byte() == container.QEMU_VM_CONFIGURATION:
            position = f.position
            f.skip(1)
            self._configuration = configuration.get_configuration(f)
            self._observer.configuration(self._configuration, position)

    # -- records -----------------------------------------------------------------------------------------------------

    def _get_records(self) -> None:
        """Read records to the end of the stream, which lies behind device state or a description."""
        while True:
            position = self._f.position
            kind = self._between_records(self._f.get_byte)
            if kind == container.QEMU_VM_EOF:
                self._reached_eof = True
                self._observer.eof(position)
                self._get_vmdescription()
                return
            if not self._get_record(kind, position):
                self._drain(position)
                return

    def _get_package(self, nbytes: int) -> None:
        """Read the records of a package, `nbytes` long; device state in it ends where the package does."""
        f = self._f
        end = f.position + nbytes
        while f.position < end:
            position = f.position
            kind = f.get_byte()
            if kind == container.QEMU_VM_EOF:
                break
            if not self._get_record(kind, position, in_package=True):
                self._drained_device_state(end - position, position)
                break
        if f.position > end:
            raise errors.StreamError("the last record of a package is longer than the package", position=end)
        f.skip(end - f.position)

    def _between_records(self, read: Callable[[], int]) -> int:
        """Return what `read` does of a record's or footer's first byte; a source that gives up ends the stream there.

        A QEMU that is told to cancel stops between a section's payload and its footer.
        """
        self._is_between_records = True
        try:
            kind = read()
        except errors.TruncatedStream as error:
            raise errors.TruncatedStream(
                "the stream stops between two records: the source cancelled or failed, or the link broke",
                position=error.position,
            ) from error
        self._is_between_records = False
        return kind

    def _get_record(self, kind: int, position: int, *, in_package: bool = False) -> bool:
        """Read the rest of one record; return False if it, or what follows, is device state without lengths."""
        if kind in (container.QEMU_VM_SECTION_PART, container.QEMU_VM_SECTION_END):
            return self._get_payload(self._get_part(kind, position), kind, position)
        if kind in (container.QEMU_VM_SECTION_START, container.QEMU_VM_SECTION_FULL):
            entry = self._get_start(kind, position)
            return entry is not None and self._get_payload(entry, kind, position)
        if kind == container.QEMU_VM_COMMAND:
            package = self._commands.get(position, in_package=in_package)
            if package is not None:
                self._get_package(package)
            return True
        raise errors.StreamError(f"unknown record type {kind:#04x}", position=position)

    def _get_start(self, kind: int, position: int) -> sections.LoadStateEntry | None:
        """Read the header of a section that starts, and return the section; None for device state."""
        f = self._f
        section_id = f.get_be32()
        idstr = configuration.get_counted_string(f)
        instance_id = f.get_be32()
        version_id = f.get_be32()
        self._observer.section_start(_KINDS[kind], idstr, instance_id, version_id, section_id, position)
        entry = self._sections.find_registered(idstr, instance_id, version_id, position)
        if entry is None:
            if kind == container.QEMU_VM_SECTION_FULL:
                return None
            entry = self._sections.find_skipped(idstr, instance_id, version_id, self._configuration, position)
        self._sections.start(entry, section_id, version_id, position)
        entry.handlers.load_start(idstr, position)
        return entry

    def _get_part(self, kind: int, position: int) -> sections.LoadStateEntry:
        """Read the header of a section that goes on, and return the section."""
        section_id = self._f.get_be32()
        entry = self._sections.find(section_id, position)
        self._observer.section_start(
            _KINDS[kind], entry.idstr, entry.instance_id, entry.version_id, section_id, position
        )
        return entry

    def _get_payload(self, entry: sections.LoadStateEntry, kind: int, position: int) -> bool:
        """Let the handlers read the payload, check the footer, count."""
        try:
            entry.handlers.load_state(self._f, entry.version_id)
        except skip.NotSkippable:
            if not (kind == container.QEMU_VM_SECTION_END and self._sections.registered_ended()):
                raise
            return False
        self._get_footer(entry)
        end = self._f.position
        entry.nbytes += end - position
        if kind == container.QEMU_VM_SECTION_PART:
            entry.parts += 1
        elif kind != container.QEMU_VM_SECTION_START:
            entry.ended = True
        self._observer.section_end(entry.section_id, end)
        return True

    def _get_footer(self, entry: sections.LoadStateEntry) -> None:
        """Check the footer; whether the stream has any shows behind the first section."""
        f = self._f
        if self._has_footers is None:
            self._has_footers = self._between_records(f.peek_byte) == container.QEMU_VM_SECTION_FOOTER
        if not self._has_footers:
            return
        position = f.position
        mark = self._between_records(f.get_byte)
        if mark != container.QEMU_VM_SECTION_FOOTER:
            raise errors.StreamError(
                f"section {entry.idstr!r} is not followed by its footer, but by {mark:#04x}", position=position
            )
        section_id = f.get_be32()
        if section_id != entry.section_id:
            raise errors.StreamError(
                f"the footer of section {entry.idstr!r} has id {section_id}, not {entry.section_id}", position=position
            )

    # -- the end -----------------------------------------------------------------------------------------------------

    def _drain(self, position: int) -> None:
        """Read device state, from the record at `position` on, and the stream to its end."""
        drained_from = self._f.position
        end = drain.drain_to_end(
            self._f,
            drained_from - position,
            is_kept_open=self.is_awaited,
            has_footers=self._expects_footers(),
        )
        eof_position = drained_from + end.eof_offset
        self._reached_eof = True
        self._drained_device_state(eof_position - position, position)
        self._observer.eof(eof_position)
        if end.description is not None:
            self._vmdescription = end.description
            self._vmdescription_state = "sealed" if end.is_sealed else "read"
            self._observer.vmdescription(end.description, end.description_nbytes, eof_position + 1)

    def _expects_footers(self) -> bool:
        """Tell whether sections have footers; where none has come yet, those with a configuration section have."""
        return self._configuration.machine is not None if self._has_footers is None else self._has_footers

    def _drained_device_state(self, nbytes: int, position: int) -> None:
        self._drained_bytes += nbytes
        self._observer.device_state(nbytes, position)

    def _get_vmdescription(self) -> None:
        position = self._f.position
        is_kept_open = self.is_awaited
        found = drain.get_vmdescription(self._f, is_kept_open=is_kept_open, has_footers=self._expects_footers())
        if found is not None:
            self._vmdescription_state, self._vmdescription, nbytes = found
            self._observer.vmdescription(self._vmdescription, nbytes, position)
