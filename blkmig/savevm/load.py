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

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from . import (
    behind,
    commands,
    configuration,
    container,
    drain,
    header,
    records,
    savestate,
    stream,
    vmdescription,
    words,
)

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

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
        answers: Mapping[int, commands.Answer] | None = None,
        on_loss: Callable[[errors.MigrationError], InputQEMUFile] | None = None,
    ) -> None:
        """Load from `f` into the sections that are registered in `state`.

        A PING is answered with its own value, but for those of `answers`, which are questions. `on_loss` is given the
        error of a link that was lost, and returns the one on which the stream goes on, with a record, or raises.
        """
        self._state = state
        self._f = f
        self._observer = observer or _NOBODY
        self._on_loss = on_loss
        self._version = 0
        self._commands = commands.Commands(f, self._observer, answers or {})
        self._records = records.SectionRecords(state, f, self._observer)
        self._reached_eof = self._is_whole = False
        self._vmdescription: dict[str, Any] | None = None
        self._vmdescription_state: vmdescription.State = "none"
        self._drained_bytes = 0
        self._behind: stream.Behind | None = None
        self._stop: int | None = None  # where the stream ends, if more of the channel was read

    def loadvm(self) -> stream.LoadedStream:
        """Read the whole stream. Blocks; every handler's `load_cleanup` runs, whatever happens.

        Raises :class:`~blkmig.errors.StreamError` for what is wrong with the stream, and what channel, handlers and
        observer raise; then the source is not told: `finish` with a status other than 0 does that.
        """
        cleanups = [entry.handlers.load_cleanup for entry in self._state]
        try:
            try:
                self._get_header()
            except (errors.ChannelError, errors.TruncatedStream) as error:
                if self._on_loss is not None:
                    self._on_loss(error)  # which may raise why another stream is loaded next
                raise
            for entry in self._state:
                entry.handlers.load_setup()
            while not self._is_whole:
                try:
                    self._get_records()
                except (errors.ChannelError, errors.TruncatedStream) as error:
                    self._go_on(error)
        except BaseException as error:
            with errors.keeping(error):
                errors.each(cleanups)
            raise
        errors.each(cleanups)
        return self.summary()

    @property
    def is_awaited(self) -> bool:
        """Whether the source waits for `finish`."""
        return self._commands.is_awaited

    @property
    def has_ended(self) -> bool:
        """Whether END of all sections has come that somebody registered; not before one of them has begun."""
        sections = self._records.sections
        return any(entry.is_registered for entry in sections) and sections.registered_ended()

    def beat(self, value: int, text: str = "") -> None:
        """Send a sign of life to a source that waits for `finish`, unless the link is full: what this end is at, in
        words if the source takes them, else PONG with `value`.

        Does not block. Another thread may call it, as long as nobody else uses this object.
        """
        self._commands.beat(value, text)

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
            configuration=self._records.configuration,
            has_footers=self._records.has_footers,
            commands=self._commands.by_name(),
            sections=tuple(entry.info() for entry in self._records.sections),
            reached_eof=self._reached_eof,
            vmdescription=self._vmdescription,
            vmdescription_state=self._vmdescription_state,
            drained_bytes=self._drained_bytes,
            nbytes=self._f.position if self._stop is None else self._stop,
            is_between_records=self._records.is_between_records,
            return_path_open=self.is_awaited,
            behind=self._behind,
        )

    # -- before the first section ------------------------------------------------------------------------------------

    def _get_header(self) -> None:
        f = self._f
        self._version = header.get_header(f)
        if f.peek_byte() == container.QEMU_VM_CONFIGURATION:
            position = f.position
            f.skip(1)
            self._records.configuration = configuration.get_configuration(f)
            self._observer.configuration(self._records.configuration, position)

    # -- records -----------------------------------------------------------------------------------------------------

    def _go_on(self, error: errors.MigrationError) -> None:
        """Have the stream go on with another link, because this one was lost."""
        if self._on_loss is None:
            raise error
        self._f = self._on_loss(error)
        self._records.go_on(self._f)

    def _get_records(self) -> None:
        """Read records to the end of the stream, which lies behind device state or a description."""
        came = b""  # what was read behind the end
        while True:
            position = self._f.position
            kind = self._records.between_records(self._f.get_byte)
            if kind == container.QEMU_VM_EOF:
                self._reached_eof = True
                self._observer.eof(position)
                self._get_vmdescription()
                break
            if not self._get_record(kind, position):
                came = self._drain(position)
                break
        self._is_whole = True
        if not self.is_awaited:
            self._stop = self._f.position - len(came)
            self._behind = behind.look(self._f, came)

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

    def _get_record(self, kind: int, position: int, *, in_package: bool = False) -> bool:
        """Read the rest of one record; return False if it, or what follows, is device state without lengths."""
        live = self._records
        if kind in (container.QEMU_VM_SECTION_PART, container.QEMU_VM_SECTION_END):
            return live.get_payload(live.get_part(kind, position), kind, position)
        if kind in (container.QEMU_VM_SECTION_START, container.QEMU_VM_SECTION_FULL):
            entry = live.get_start(kind, position)
            return entry is not None and live.get_payload(entry, kind, position)
        if kind == container.QEMU_VM_COMMAND:
            package = self._commands.get(position, in_package=in_package)
            if package is not None:
                self._get_package(package)
            return True
        raise errors.StreamError(f"unknown record type {kind:#04x}", position=position)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _drain(self, position: int) -> bytes:
        """Read device state, from the record at `position` on, and the stream to its end; return what came behind it.
        """
        drained_from = self._f.position
        end, came = drain.drain_to_end(
            self._f,
            drained_from - position,
            is_kept_open=self.is_awaited,
            has_footers=self._records.expects_footers(),
        )
        eof_position = drained_from + end.eof_offset
        self._reached_eof = True
        self._drained_device_state(eof_position - position, position)
        self._observer.eof(eof_position)
        if end.description is not None:
            self._vmdescription = end.description
            self._vmdescription_state = "sealed" if end.is_sealed else "read"
            self._observer.vmdescription(end.description, end.description_nbytes, eof_position + 1)
        return came

    def _drained_device_state(self, nbytes: int, position: int) -> None:
        self._drained_bytes += nbytes
        self._observer.device_state(nbytes, position)

    def _get_vmdescription(self) -> None:
        position = self._f.position
        is_kept_open = self.is_awaited
        found = drain.get_vmdescription(self._f, is_kept_open=is_kept_open, has_footers=self._records.expects_footers())
        if found is not None:
            self._vmdescription_state, self._vmdescription, nbytes = found
            self._observer.vmdescription(self._vmdescription, nbytes, position)
