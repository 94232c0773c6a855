# SPDX-License-Identifier: GPL-2.0-or-later
"""The section ``block``, and the section ``blkmig``, which has the same records and more: the loading side.

Nothing is written before all of a block has arrived, and nothing outside the disk is ever written. Blocks may come in
any order and more than once: they are applied in the order of the stream, so the last one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .. import _core, channel, errors, savevm
from ..disk.extents import Extents
from . import basewords, extras, runs, sizes, table, wire


class LoadDevice(Protocol):
    """Where the blocks of one disk go; `position` is where their record stands in the stream."""

    def load_block(self, f: channel.InputQEMUFile, sector: int, position: int) -> None:
        """Take the payload of one block out of `f`, 1 MiB."""

    def load_pack(self, f: channel.InputQEMUFile, extents: Extents, position: int, number: int) -> None:
        """Take the payload of `extents` out of `f`, back to back; of all disks, `number` packs came before."""

    def load_zero_run(self, sector: int, count: int, position: int) -> None:
        """Take note of `count` zero blocks from `sector` on."""


OpenDevice = Callable[[str, int], LoadDevice]
"""Given a disk's name and the position of its first block in the stream, return where it goes, or raise."""


OWN_FLAGS = (wire.FLAG_TABLE, wire.FLAG_FLUSH, wire.FLAG_BARRIER)
"""Records that only the section ``blkmig`` has, and that are one word, but for the table."""

OnTable = Callable[[tuple[table.TableDisk, ...], int], Mapping[bytes, LoadDevice]]
"""Given the table of the disks and its position, return where those go that are open then, by name."""


class BlockLoadHandlers(savevm.SaveVMHandlers):
    """Loads the blocks of every disk of a stream into what `open_device` returns for its name.

    Register it under the name of either section: `format` is the one that comes.
    """

    def __init__(self, open_device: OpenDevice) -> None:
        self._open_device = open_device
        self._devices: dict[bytes, LoadDevice] = {}
        self.format: wire.Format | None = None
        """The section that the stream has; None before it starts."""

        self.table: tuple[table.TableDisk, ...] | None = None
        """The disks of a section ``blkmig``, once it says so."""

        self.on_table: OnTable | None = None
        """Called with them, before anything else comes."""

        self.on_flush: Callable[[int], None] | None = None
        """Called with the number of each FLUSH, which counts them from 1."""

        self.on_barrier: Callable[[int, int], None] | None = None
        """Called with the number of each BARRIER and its position in the stream."""

        self.on_section_begins: Callable[[], None] | None = None
        """Called before each section is read: it may raise what has gone wrong beside it."""

        self.on_section: Callable[[], None] | None = None
        """Called at the end of each section."""

        self.on_extra: dict[int, extras.OnExtra] = {}
        """What takes the body of an EXTRA, by its kind; a kind that is not here is refused."""

        self.numbers = self.packs = 0
        self._shares_pages = False
        self._has_block = False  # the first block has come
        self.percent = 0
        """The last progress record."""

        self.percent_before_section = 0
        """The last progress before the section that came last, which is END: how far QEMU's bulk phase got."""

        self.is_described = False
        """The source is a blkmig, and ends the stream with a sealed description."""

        self.described_disks = (0, 0)
        """How many disks the description will name, and how many more that have no bytes."""

        self.sizes = sizes.SaidSizes()
        """What the stream says of the disks' sizes before they come; of all, or of none."""

        self.on_sizes: Callable[[sizes.SaidSizes], None] | None = None
        """Called with them, before the first disk comes."""

        self.base = basewords.SaidBase()
        """What the stream says of what only the disks' bases hold, before their blocks come."""

        self.on_base: Callable[[LoadDevice, int, list[basewords.BaseRun]], None] | None = None
        """Called with each part of that: where the disk goes, its size, and the runs of blocks. May raise and block."""

        self.on_described: Callable[[int, int], None] | None = None
        """Called with the two numbers of `described_disks`, before the first disk comes."""

        self.on_progress: Callable[[], None] | None = None
        """Called after each record."""

        self.on_percent: Callable[[int], None] | None = None
        """Called with each new percentage."""

    def load_start(self, idstr: str, position: int) -> None:
        """Take note of the section's name. Raises :class:`~blkmig.errors.StreamError` for a second one."""
        if self.format not in (None, idstr):
            raise errors.StreamError(
                f"the stream holds disks in two sections, {self.format!r} and {idstr!r}", position=position
            )
        self.format = "blkmig" if idstr == "blkmig" else "block"

    def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
        """Load one section's records up to its EOS. Blocks.

        Raises errors of the stream, of the channel and of the disks; the stream cannot be read on after any of them.
        """
        self.percent_before_section = self.percent
        if self.on_section_begins is not None:
            self.on_section_begins()
        if self.format == "blkmig" and self.table is None:
            self._take_table(f)
        while True:
            position = f.position
            flags, name, sector, count = runs.next_run(f)
            if flags & _core.FLAG_DEVICE_BLOCK:
                if not self._has_block:
                    self._begin_blocks(position)
                device = self._devices.get(name) or self._new_device(name, position)
                if flags & _core.FLAG_ZERO_BLOCK:
                    device.load_zero_run(sector, count, position)
                else:
                    device.load_block(f, sector, position)
            elif flags & _core.FLAG_PROGRESS:
                self._set_percent(min(sector, 100))
            elif self.table is not None and flags in OWN_FLAGS:
                self._take_own(flags, sector, position)
            elif self.table is not None and flags == wire.FLAG_PACK:
                self._load_pack(f, sector, position)
            elif self.table is not None and flags == wire.FLAG_EXTRA:
                self._take_extra(f, sector, position)
            elif not flags & _core.FLAG_EOS:
                raise errors.StreamError(f"unknown flags {flags:#x} in the section of the disks", position=position)
            if self.on_progress is not None:
                self.on_progress()
            if flags & _core.FLAG_EOS:
                if sector:
                    self.take_marks(f, sector, position)
                if self.on_section is not None:
                    self.on_section()
                return

    def _take_table(self, f: channel.InputQEMUFile) -> None:
        """Read the table, with which the section must begin."""
        position = f.position
        flags, _, count, _ = runs.next_run(f)
        if flags != wire.FLAG_TABLE:
            raise errors.StreamError("the section 'blkmig' does not begin with its table of disks", position=position)
        self.table = table.get_table(f, count, position)
        self.is_described = True
        self.sizes = sizes.SaidSizes.exactly({entry.label: entry.size for entry in self.table})
        filled = sum(entry.size > 0 for entry in self.table)
        self.described_disks = filled, len(self.table) - filled
        if self.on_table is not None:
            self._devices.update(self.on_table(self.table, position))

    def _take_own(self, flags: int, number: int, position: int) -> None:
        """Take a record that only the section ``blkmig`` has, and no payload."""
        if flags == wire.FLAG_TABLE:
            raise errors.StreamError("the table of the disks comes a second time", position=position)
        if flags == wire.FLAG_BARRIER:
            if self.on_barrier is None:
                raise errors.StreamError("a BARRIER in a stream without a session", position=position)
            self.on_barrier(number, position)
            return
        self.take_number(number, "FLUSH", position)
        if self.on_flush is not None:
            self.on_flush(number)

    def take_number(self, number: int, what: str, position: int) -> None:
        """Raise :class:`~blkmig.errors.StreamError` unless it is the next number of those that the target answers."""
        self.numbers += 1
        if number != self.numbers:
            raise errors.StreamError(f"{what} {number} where {self.numbers} is due", position=position)

    def close(self) -> None:
        """Take no block any more: the disks are somebody else's. What comes is a stream error."""
        self._devices.clear()
        self._open_device = _refuse

    def _take_extra(self, f: channel.InputQEMUFile, kind: int, position: int) -> None:
        """Take a record of this kind, of which the source may know that it is taken."""
        take = self.on_extra.get(kind)
        if take is None:
            raise errors.StreamError(
                f"{extras.name_of(kind)}, which this receiver has not offered to take", position=position
            )
        take(extras.get_body(f, kind, position), position)

    def _load_pack(self, f: channel.InputQEMUFile, count: int, position: int) -> None:
        """Take a pack of `count` extents, of a disk of the table."""
        name, extents = f.get_pack_header(count)
        if not self._has_block:
            self._begin_blocks(position)
        device = self._devices.get(name) or self._new_device(name, position)
        device.load_pack(f, extents, position, self.packs)
        self.packs += 1

    def link_lost(self, f: channel.InputQEMUFile, packs: int) -> None:
        """Go on with another link, `packs` packs being those that came before it and count."""
        self.packs = packs
        if not self._has_block:
            self.base = basewords.SaidBase()  # it is said from its beginning
        if self._shares_pages:
            f.expect_pages()

    def take_marks(self, f: channel.InputQEMUFile, marks: int, position: int) -> None:
        """Note what a blkmig says in the upper bits of an EOS, at which nobody else looks."""
        if marks & wire.SHARES_PAGES:
            self._shares_pages = True
            f.expect_pages()
        if marks & wire.IS_DESCRIBED and self.is_described:
            self._take_base(f, marks, position)
        elif self.table is not None:
            return  # it has said the rest
        elif marks & wire.IS_DESCRIBED:
            self.is_described = True
            self.described_disks = wire.described_disks(marks)
            if self.on_described is not None:
                self.on_described(*self.described_disks)
        if not marks & (wire.SHARES_PAGES | wire.IS_DESCRIBED) and self.is_described:
            is_all = self.sizes.take(marks, most=sum(self.described_disks), position=position)
            if is_all and self.on_sizes is not None:
                self.on_sizes(self.sizes)

    def _take_base(self, f: channel.InputQEMUFile, marks: int, position: int) -> None:
        """Note what an EOS says of the disks' bases: after their sizes, and before any block."""
        is_now = len(self.sizes) == sum(self.described_disks) and not self._has_block
        if not is_now or wire.described_disks(marks) != self.described_disks:
            raise basewords.damaged(position)
        found = self.base.take(marks >> wire.BASE_SHIFT, self.sizes, position=position)
        if found is None:
            return
        f.payload_came()  # it has come a little further: there are only so many blocks of which this can be said
        if self.on_base is not None:
            name, runs = found
            key = name.encode("utf-8", "surrogateescape")
            size = self.sizes.of(name)
            assert size is not None
            self.on_base(self._devices.get(key) or self._new_device(key, position), size, runs)

    def _begin_blocks(self, position: int) -> None:
        """Take note of the first block; what the stream says of the disks' bases must have come to its end."""
        if not self.base.is_whole:
            raise basewords.damaged(position)
        self._has_block = True

    def _set_percent(self, percent: int) -> None:
        """Note the progress that the source reports."""
        if percent != self.percent and self.on_percent is not None:
            self.on_percent(percent)
        self.percent = percent

    def _new_device(self, name: bytes, position: int) -> LoadDevice:
        """Return where a disk goes that appears for the first time."""
        if len(self._devices) >= wire.MAX_DISKS:
            raise errors.StreamError(f"the stream names more than {wire.MAX_DISKS} disks", position=position)
        if self.table is not None and not any(entry.size and entry.name == name for entry in self.table):
            raise errors.StreamError("a block of a disk that the table of the disks does not have", position=position)
        device = self._open_device(name.decode("utf-8", "surrogateescape"), position)
        self._devices[name] = device
        return device


def _refuse(name: str, position: int) -> LoadDevice:
    raise errors.StreamError("a block behind COMMIT: it is written nowhere", position=position)
