# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loader tells about a stream: to an observer while it reads, and in one piece at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from . import vmdescription as _vmdescription
    from .configuration import Configuration

SectionKind = Literal["START", "PART", "END", "FULL"]


class StreamObserver:
    """Is told of each record of the container as it is read; every method does nothing until overridden.

    Positions are byte offsets in the stream: of a record's first byte, or of the byte behind a section's footer. What
    an observer raises ends the loading. A stream has thousands of empty sections: keep counters, not lists.
    """

    def configuration(self, configuration: Configuration, position: int) -> None:
        """Take note of the configuration section."""

    def command(self, command: int, nbytes: int, position: int) -> None:
        """Take note of a command with `nbytes` of data; a package's content comes behind it, as records of its own."""

    def section_start(
        self, kind: SectionKind, idstr: str, instance_id: int, version_id: int, section_id: int, position: int
    ) -> None:
        """Take note that a section's header was read; the handler reads the payload next."""

    def section_end(self, section_id: int, position: int) -> None:
        """Take note that a section's payload and footer were read."""

    def device_state(self, nbytes: int, position: int) -> None:
        """Take note that `nbytes` of device state, from its first FULL record on, were skipped.

        The first of these records had its `section_start`, and has no `section_end`.
        """

    def eof(self, position: int) -> None:
        """Take note of the end of file record."""

    def vmdescription(self, description: dict[str, Any] | None, nbytes: int, position: int) -> None:
        """Take note of the description: `nbytes` of JSON; None if that is no JSON object, or longer than is read."""


class SectionInfo(NamedTuple):
    """What came of one live section."""

    idstr: str
    instance_id: int
    version_id: int
    section_id: int
    parts: int
    """PART records."""

    nbytes: int
    """Bytes of all its records, headers and footers included."""

    ended: bool
    """Its END (or a FULL, which is all in one) was read completely."""


class Behind(NamedTuple):
    """What follows the end of a stream, and belongs to no part of it."""

    position: int
    """Of its first byte that is not zero, from where the stream began."""

    is_stream: bool
    """It begins as a stream does."""


class LoadedStream(NamedTuple):
    """What a stream held besides what its handlers took out of it."""

    version: int
    configuration: Configuration
    has_footers: bool | None
    """None: no section came that could tell."""

    commands: dict[str, int]
    """How often each command came, by its name or, if it has none, its number; in order of appearance."""

    sections: tuple[SectionInfo, ...]
    """In order of their START."""

    reached_eof: bool
    vmdescription: dict[str, Any] | None
    """What the description says; None unless it was read."""

    vmdescription_state: _vmdescription.State
    """What became of the description."""

    drained_bytes: int
    """Device state that was skipped."""

    nbytes: int
    """Bytes read of the whole stream."""

    is_between_records: bool
    """No record was half read when this was asked: after an error, the sign of a source that cancelled."""

    return_path_open: bool
    """The source waits for the SHUT that :meth:`~blkmig.savevm.LoadVM.finish` sends."""

    behind: Behind | None = None
    """What follows, if that is more than padding; nobody looks where the source waits for us."""

    @property
    def machine(self) -> str | None:
        """Machine type, None where the stream has no configuration section."""
        return self.configuration.machine

    @property
    def has_configuration(self) -> bool:
        """Whether there is a configuration section."""
        return self.configuration.machine is not None

    @property
    def page_size(self) -> int:
        """Bytes of a RAM page."""
        return self.configuration.page_size

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Capabilities of the source that the configuration section names."""
        return self.configuration.capabilities

    def section(self, idstr: str, instance_id: int = 0) -> SectionInfo | None:
        """Return what came of the section of this name."""
        wanted = (idstr, instance_id)
        return next((info for info in self.sections if (info.idstr, info.instance_id) == wanted), None)
