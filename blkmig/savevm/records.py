# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of live sections in a stream that is being loaded: header, payload, footer.

::

    START, FULL   name, ids, version ─┐
    PART, END     the section's id ───┴─► the handlers read the payload ─ footer, if the stream has any
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .. import errors
from . import configuration, container, savestate, sections, skip, stream

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

_KINDS: Final[dict[int, stream.SectionKind]] = {
    container.QEMU_VM_SECTION_START: "START",
    container.QEMU_VM_SECTION_PART: "PART",
    container.QEMU_VM_SECTION_END: "END",
    container.QEMU_VM_SECTION_FULL: "FULL",
}


class SectionRecords:
    """Reads them from `f` into the sections that are registered in `state`."""

    def __init__(self, state: savestate.SaveState, f: InputQEMUFile, observer: stream.StreamObserver) -> None:
        self._f = f
        self._observer = observer
        self.sections = sections.SectionTable(state)
        """The sections that have started."""

        self.configuration = configuration.Configuration()
        """What the stream says before its first section. Set it before that."""

        self.has_footers: bool | None = None
        """Whether sections have footers; None before the end of the first one."""

        self.is_between_records = False
        """No record is half read."""

    def go_on(self, f: InputQEMUFile) -> None:
        """Read from `f` from now on, which begins with a record."""
        self._f = f

    def get_start(self, kind: int, position: int) -> sections.LoadStateEntry | None:
        """Read the header of a section that starts, and return the section; None for device state."""
        f = self._f
        section_id = f.get_be32()
        idstr = configuration.get_counted_string(f)
        instance_id = f.get_be32()
        version_id = f.get_be32()
        self._observer.section_start(_KINDS[kind], idstr, instance_id, version_id, section_id, position)
        entry = self.sections.find_registered(idstr, instance_id, version_id, position)
        if entry is None:
            if kind == container.QEMU_VM_SECTION_FULL:
                return None
            entry = self.sections.find_skipped(idstr, instance_id, version_id, self.configuration, position)
        self.sections.start(entry, section_id, version_id, position)
        entry.handlers.load_start(idstr, position)
        return entry

    def get_part(self, kind: int, position: int) -> sections.LoadStateEntry:
        """Read the header of a section that goes on, and return the section."""
        section_id = self._f.get_be32()
        entry = self.sections.find(section_id, position)
        self._observer.section_start(
            _KINDS[kind], entry.idstr, entry.instance_id, entry.version_id, section_id, position
        )
        return entry

    def get_payload(self, entry: sections.LoadStateEntry, kind: int, position: int) -> bool:
        """Let the handlers read the payload, check the footer, count."""
        try:
            entry.handlers.load_state(self._f, entry.version_id)
        except skip.NotSkippable:
            if not (kind == container.QEMU_VM_SECTION_END and self.sections.registered_ended()):
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
        if self.has_footers is None:
            self.has_footers = self.between_records(f.peek_byte) == container.QEMU_VM_SECTION_FOOTER
        if not self.has_footers:
            return
        position = f.position
        mark = self.between_records(f.get_byte)
        if mark != container.QEMU_VM_SECTION_FOOTER:
            raise errors.StreamError(
                f"section {entry.idstr!r} is not followed by its footer, but by {mark:#04x}", position=position
            )
        section_id = f.get_be32()
        if section_id != entry.section_id:
            raise errors.StreamError(
                f"the footer of section {entry.idstr!r} has id {section_id}, not {entry.section_id}", position=position
            )

    def between_records(self, read: Callable[[], int]) -> int:
        """Return what `read` does of a record's or footer's first byte; a source that gives up ends the stream there.

        A QEMU that is told to cancel stops between a section's payload and its footer.
        """
        self.is_between_records = True
        try:
            kind = read()
        except errors.TruncatedStream as error:
            raise errors.TruncatedStream(
                "the stream stops between two records: the source cancelled or failed, or the link broke",
                position=error.position,
            ) from error
        self.is_between_records = False
        return kind

    def expects_footers(self) -> bool:
        """Tell whether sections have footers; where none has come yet, those with a configuration section have."""
        return self.configuration.machine is not None if self.has_footers is None else self.has_footers
