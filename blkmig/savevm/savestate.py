# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of a migration's live sections, and the saving side of the container.

There are no globals: each migration has a :class:`SaveState` of its own. What one writes, in the order of calls::

    state_header               QEVM 3 [configuration]
    send_command ...           08
    state_setup                01 START of every active handler, in the order of registration; [02 PART ...]
    state_iterate ...          02 PART of every active handler
    state_complete_precopy     03 END of every active handler
    state_end                  00 [06 vmdescription]
    state_cleanup              (nothing on the wire)

One thread drives a SaveState; nothing here locks.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from .. import errors, units, unrun
from . import configuration, container
from .handlers import SaveVMHandlers
from .vmdescription import put_vmdescription

if TYPE_CHECKING:
    from ..channel import OutputQEMUFile

T = TypeVar("T")


class SaveStateEntry:
    """A registered live section; the first four fields change before setup only."""

    def __init__(
        self, idstr: str, instance_id: int, version_id: int, handlers: SaveVMHandlers, section_id: int
    ) -> None:
        self.idstr = idstr
        self.instance_id = instance_id
        self.version_id = version_id
        self.handlers = handlers
        self.section_id = section_id
        """The id on the wire of the saving side. A loader learns its peer's ids from START."""

        self.started = False
        self.cleaned = False

    def start_header(self) -> bytes:
        """Return the header of the START section."""
        name = self.idstr.encode()
        head = struct.pack(">BIB", container.QEMU_VM_SECTION_START, self.section_id, len(name))
        return head + name + struct.pack(">II", self.instance_id, self.version_id)

    def header(self, kind: int) -> bytes:
        """Return the header of a PART or END section, or the footer of any."""
        return struct.pack(">BI", kind, self.section_id)


class SaveState:
    """The live sections of one migration, and their way into a stream. See the module for the order of calls."""

    def __init__(self, format: container.ContainerFormat | None = None) -> None:
        """Start with no sections; `format` matters to the saving side only."""
        self.format = container.ContainerFormat() if format is None else format
        self._entries: dict[tuple[str, int], SaveStateEntry] = {}
        self._next_section_id = 1  # never 0: QEMU's loader takes 0 for "any section that was not started yet"

    # -- registry ----------------------------------------------------------------------------------------------------

    def register_savevm_live(self, idstr: str, instance_id: int, version_id: int, handlers: SaveVMHandlers) -> None:
        """Add a live section; the order of registration is the order on the wire.

        `version_id` is what the saving side writes and the highest that the loading side takes. Raises
        :class:`~blkmig.errors.ParameterError` for a name that is empty, over 255 bytes or taken, and for handlers that
        are async.
        """
        if not isinstance(idstr, str):
            raise errors.WrongType(f"a section's idstr must be a text, not {idstr!r}")
        instance_id, version_id = units.index(instance_id), units.index(version_id)
        if not 1 <= len(idstr.encode()) <= 255:
            raise errors.ParameterError(f"a section's idstr must have 1 to 255 bytes, not {len(idstr.encode())}")
        if not (0 <= instance_id < 1 << 32 and 0 <= version_id < 1 << 32):
            raise errors.ParameterError(f"section {idstr!r}: instance and version must fit 32 bits")
        if (idstr, instance_id) in self._entries:
            raise errors.ParameterError(f"section {idstr!r}, instance {instance_id}, is registered already")
        for verb in vars(SaveVMHandlers):
            unrun.check(f"section {idstr!r}: {verb}", getattr(handlers, verb, None), may_yield=verb.endswith("_parts"))
        entry = SaveStateEntry(idstr, instance_id, version_id, handlers, self._next_section_id)
        self._entries[idstr, instance_id] = entry
        self._next_section_id += 1

    def unregister_savevm(self, idstr: str, instance_id: int) -> None:
        """Remove a section; one that is not there is no error. Its cleanups are not called."""
        self._entries.pop((idstr, instance_id), None)

    def rename_savevm(self, old: str, new: str) -> None:
        """Call the section `old` (instance 0) `new` on the wire; its place among the others stays. Before setup only.

        Raises :class:`~blkmig.errors.ParameterError` if there is none, or one of the new name.
        """
        if (old, 0) not in self._entries or (new, 0) in self._entries:
            raise errors.ParameterError(f"section {old!r} cannot be called {new!r}")
        entries = {(new if key == (old, 0) else key[0], key[1]): entry for key, entry in self._entries.items()}
        self._entries = entries
        entries[new, 0].idstr = new

    def find_se(self, idstr: str, instance_id: int) -> SaveStateEntry | None:
        """Return the section registered under this name and instance."""
        return self._entries.get((idstr, instance_id))

    def __iter__(self) -> Iterator[SaveStateEntry]:
        """Go through the sections in the order of registration."""
        return iter(self._entries.values())

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_header(self, f: OutputQEMUFile) -> None:
        """Write the file header and, if the format has one, the configuration section."""
        f.put_buffer(container.QEMU_VM_FILE_MAGIC)
        f.put_be32(container.QEMU_VM_FILE_VERSION)
        if self.format.configuration:
            configuration.put_configuration(f, self.format.machine)

    def send_command(self, f: OutputQEMUFile, command: int, data: bytes = b"") -> None:
        """Write a command with its `data` (at most 65535 bytes), and flush."""
        f.put_buffer(struct.pack(">BHH", container.QEMU_VM_COMMAND, command, len(data)) + data)
        f.flush()

    def send_open_return_path(self, f: OutputQEMUFile) -> None:
        """Ask the loader to answer on the other direction of the channel: SHUT will follow the end of the stream."""
        self.send_command(f, container.MIG_CMD_OPEN_RETURN_PATH)

    def send_ping(self, f: OutputQEMUFile, value: int) -> None:
        """Ask the loader to answer PONG with the same 32-bit `value`."""
        self.send_command(f, container.MIG_CMD_PING, struct.pack(">I", value))

    def state_setup(self, f: OutputQEMUFile) -> None:
        """Write START of every active section and what is to follow at once, and flush.

        Whatever fails, `state_cleanup` undoes.
        """
        for entry in self:
            if entry.handlers.is_active():
                entry.started = True
                self._put_section(f, entry, entry.start_header(), entry.handlers.save_setup)
        for entry in self._active():
            self._put_parts(f, entry, entry.handlers.setup_parts())
        f.flush()

    def state_part(self, f: OutputQEMUFile, idstr: str, payload: bytes) -> None:
        """Write `payload` as a PART of the section `idstr` (instance 0), outside of the rounds, and flush."""
        entry = self._entries[idstr, 0]
        self._put_parts(f, entry, [payload])
        f.flush()

    def state_iterate(self, f: OutputQEMUFile) -> bool:
        """Write PART of every active section; return whether all of them have sent what there is for now.

        All sections get their turn in each round, as in QEMU 9.0; before, an unfinished one held up those after it.
        """
        finished = True
        for entry in self._active():
            ret = self._put_section(
                f, entry, entry.header(container.QEMU_VM_SECTION_PART), entry.handlers.save_live_iterate
            )
            if ret < 0:
                raise errors.MigrationError(f"section {entry.idstr!r} failed while iterating: {os.strerror(-ret)}")
            self._put_parts(f, entry, entry.handlers.iterate_parts())
            finished = finished and ret != 0
        return finished

    def state_pending(self) -> int:
        """Return the bytes that all active sections would still have to send if the writers stopped now."""
        return sum(entry.handlers.save_live_pending() for entry in self._active())

    def state_complete_precopy(self, f: OutputQEMUFile) -> None:
        """Write END of every active section. Writers must be held."""
        for entry in self._active():
            header = entry.header(container.QEMU_VM_SECTION_END)
            self._put_section(f, entry, header, entry.handlers.save_live_complete_precopy)

    def state_end(self, f: OutputQEMUFile, vmdescription: dict[str, Any] | None = None) -> None:
        """Write the end of file and, if the format has one, the description (None: an empty one), and flush.

        An empty description is better than none: a loader would wait for the byte that announces it.
        """
        f.put_byte(container.QEMU_VM_EOF)
        if self.format.vmdescription:
            f.put_buffer(put_vmdescription(vmdescription or {}))
        f.flush()

    def state_cleanup(self) -> None:
        """Run `save_cleanup` of every section once; then raise the first error that one of them met, if any."""
        errors.each(entry.handlers.save_cleanup for entry in self._uncleaned())

    # -- within ------------------------------------------------------------------------------------------------------

    def _active(self) -> Iterator[SaveStateEntry]:
        """Go through the sections that were started: a loader knows no other ids."""
        return (entry for entry in self if entry.started and entry.handlers.is_active())

    def _uncleaned(self) -> Iterator[SaveStateEntry]:
        for entry in self:
            if not entry.cleaned:
                entry.cleaned = True
                yield entry

    def _put_section(
        self, f: OutputQEMUFile, entry: SaveStateEntry, header: bytes, save: Callable[[OutputQEMUFile], T]
    ) -> T:
        """Write one section around what `save` writes."""
        f.put_buffer(header)
        try:
            result = save(f)
        except errors.DeviceError:
            with contextlib.suppress(errors.MigrationError):
                self._put_footer(f, entry)
                f.flush()
            raise
        self._put_footer(f, entry)
        return result

    def _put_parts(self, f: OutputQEMUFile, entry: SaveStateEntry, payloads: Iterable[bytes]) -> None:
        """Write a PART around each of `payloads`."""
        for payload in payloads:
            f.put_buffer(entry.header(container.QEMU_VM_SECTION_PART) + payload)
            self._put_footer(f, entry)

    def _put_footer(self, f: OutputQEMUFile, entry: SaveStateEntry) -> None:
        """Close a section. A footer where the EOS word should be tells the loader of a read error, as from QEMU."""
        if self.format.footers:
            f.put_buffer(entry.header(container.QEMU_VM_SECTION_FOOTER))
