# SPDX-License-Identifier: GPL-2.0-or-later
"""The live sections of a stream that is being loaded: found by name when they start, by id afterwards.

The ids are the sender's. A section that starts again, with the same id or another one, is the same section, as in
QEMU; but two sections never share an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from .. import errors
from . import savestate, skip, stream

if TYPE_CHECKING:
    from .configuration import Configuration
    from .handlers import SaveVMHandlers

MAX_SECTIONS: Final = 1024
"""Live sections at most; a real stream has a handful."""


class LoadStateEntry:
    """A live section of the stream, from its START on; one that is not `is_registered` is being skipped."""

    def __init__(
        self, idstr: str, instance_id: int, version_id: int, handlers: SaveVMHandlers, is_registered: bool
    ) -> None:
        self.idstr = idstr
        self.instance_id = instance_id
        self.version_id = version_id
        self.handlers = handlers
        self.is_registered = is_registered
        self.section_id = 0
        """The id of the latest START."""

        self.parts = 0
        self.nbytes = 0
        self.ended = False

    def info(self) -> stream.SectionInfo:
        """Return what came of the section so far."""
        return stream.SectionInfo(
            idstr=self.idstr,
            instance_id=self.instance_id,
            version_id=self.version_id,
            section_id=self.section_id,
            parts=self.parts,
            nbytes=self.nbytes,
            ended=self.ended,
        )


class SectionTable:
    """The sections of one stream; those that `state` does not know are skipped, if that can be done."""

    def __init__(self, state: savestate.SaveState) -> None:
        """Start with no sections."""
        self._state = state
        self._entries: dict[tuple[str, int], LoadStateEntry] = {}
        self._by_id: dict[int, LoadStateEntry] = {}

    def __iter__(self) -> Iterator[LoadStateEntry]:
        """Go through the sections in the order in which they started."""
        return iter(self._entries.values())

    def registered_ended(self) -> bool:
        """Tell whether nothing more is to come for those who registered."""
        return all(entry.ended for entry in self if entry.is_registered)

    def find(self, section_id: int, position: int) -> LoadStateEntry:
        """Return the section that a PART or END belongs to."""
        entry = self._by_id.get(section_id)
        if entry is None:
            raise errors.StreamError(f"section id {section_id} was never started", position=position)
        return entry

    def find_registered(self, idstr: str, instance_id: int, version_id: int, position: int) -> LoadStateEntry | None:
        """Return the section that starts under this name, if somebody registered it."""
        se = self._state.find_se(idstr, instance_id)
        if se is None:
            return None
        if version_id > se.version_id:
            raise errors.UnsupportedStream(
                f"section {idstr!r} has version {version_id}, known are those up to {se.version_id}", position=position
            )
        return self._entries.get((idstr, instance_id)) or LoadStateEntry(
            idstr, instance_id, version_id, se.handlers, True
        )

    def find_skipped(
        self, idstr: str, instance_id: int, version_id: int, configuration: Configuration, position: int
    ) -> LoadStateEntry:
        """Return the section that starts under this name and can be skipped."""
        entry = self._entries.get((idstr, instance_id))
        if entry is not None:
            return entry
        skipper = skip.find_skipper(idstr, configuration)
        if skipper is None:
            raise errors.UnsupportedStream(
                f"live section {idstr!r}, instance {instance_id}, version {version_id}: unknown, and cannot be skipped",
                position=position,
            )
        if len(self._entries) >= MAX_SECTIONS:
            raise errors.StreamError(f"more than {MAX_SECTIONS} live sections", position=position)
        return LoadStateEntry(idstr, instance_id, version_id, skipper, False)

    def start(self, entry: LoadStateEntry, section_id: int, version_id: int, position: int) -> None:
        """Let later records find the section by this id."""
        owner = self._by_id.get(section_id, entry)
        if owner is not entry:
            raise errors.StreamError(
                f"section id {section_id} of {entry.idstr!r} belongs to {owner.idstr!r} already", position=position
            )
        if self._by_id.get(entry.section_id) is entry:
            del self._by_id[entry.section_id]
        entry.section_id = section_id
        entry.version_id = version_id
        self._by_id[section_id] = entry
        self._entries[entry.idstr, entry.instance_id] = entry
