# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig inspect``: what is in a stream, and whether all of it is there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .. import channel, errors, migration, params, savevm, units
from ..block import ExtraKind, TableDisk
from ..disk import Extents
from ..migration import displays
from . import arguments, output, signals

CELLS = 64
"""The most cells of a disk's picture; each cell stands for the same number of blocks."""

EXIT_CODES = {"complete": 0, "incremental": 0, "lossy": 3, "cancelled": 5, "truncated": 5, "error": 1}

EXAMPLES = (
    "blkmig inspect captured.stream",
    "blkmig inspect --records - <captured.stream",
)


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "inspect",
        run,
        summary="show what is in a stream, from blkmig or from a QEMU 2.2 to 9.0, whole or broken",
        description="Exit codes: 0 complete or incremental, 3 lossy, 5 cancelled or truncated, 1 damaged.",
        examples=EXAMPLES,
    )
    parser.add_argument("stream", type=arguments.word, metavar="STREAM",
                        help="a file, or - for stdin, or any URI that receive takes")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--records", action="store_true", help="list each record with its offset")
    parser.add_argument("--size", action="append", default=[], metavar="[NAME=]SIZE",
                        help="exact size of a disk, where the stream does not say it")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.json and args.records:
        raise errors.ParameterError("--records lists lines, --json prints one object and nothing else: say one of them")
    arguments.check_descriptor(args.stream)
    sizes = arguments.each_once(map(arguments.named_size, args.size), "the size of disk")
    displays.check_reading(stream_uri(args.stream))
    listing = Listing() if args.records else None
    with channel.listen(stream_uri(args.stream)) as listener, signals.current().cancelling(listener.cancel):
        f = listener.accept(timeout=None)
    f.set_idle_timeout(params.IncomingParameters.idle_timeout)
    try:
        with signals.current().cancelling(f.cancel):
            inspection = migration.inspect(
                f, sizes=sizes, observer=listing, records=None if listing is None else listing.records
            )
    finally:
        f.abort()
    for name in sizes.keys() - {"", *(each.statistics.name for each in inspection.disks)}:
        output.print_note(f"a size was said for disk {name!r}, but the stream holds no block of that disk")
    if args.json:
        output.print_json(migration.as_json(inspection))
    else:
        print_inspection(inspection)
    return EXIT_CODES[inspection.verdict]


def stream_uri(text: str) -> str:
    """Return the URI that `text` means: a text that is no URI is the path of a file."""
    try:
        channel.parse_uri(text)
    except errors.ParameterError:
        return "file:" + text.replace(",", ",,")
    return text


class Listing(savevm.StreamObserver):
    """Prints each record of the container, and through `records` those of the block section."""

    def __init__(self) -> None:
        self.records = BlockListing()

    def configuration(self, configuration: savevm.Configuration, position: int) -> None:
        """Print the configuration section."""
        print_record(position, f"CONFIGURATION machine {configuration.machine!r}")

    def command(self, command: int, nbytes: int, position: int) -> None:
        """Print a command."""
        print_record(position, f"COMMAND {command}, {nbytes} bytes")

    def section_start(
        self, kind: str, idstr: str, instance_id: int, version_id: int, section_id: int, position: int
    ) -> None:
        """Print a section's header."""
        print_record(position, f"{kind} {idstr!r} instance {instance_id} version {version_id} id {section_id}")

    def device_state(self, nbytes: int, position: int) -> None:
        """Print how much device state there is."""
        print_record(position, f"device state, {nbytes} bytes")

    def eof(self, position: int) -> None:
        """Print the end of file."""
        print_record(position, "EOF")

    def vmdescription(self, description: dict[str, Any] | None, nbytes: int, position: int) -> None:
        """Print the description."""
        print_record(position, f"VMDESCRIPTION {nbytes} bytes{'' if description is not None else ', not JSON'}")


class BlockListing(migration.RecordListener):
    """Prints each record of the section of the disks."""

    def table(self, disks: Sequence[TableDisk], position: int) -> None:
        """Print the table of a section ``blkmig``."""
        print_record(position, f"  TABLE of {len(disks)} disks")
        for disk in disks:
            what = ", its top layer" if disk.shared_base else ""
            print_record("", f"    {disk.label!r} {disk.size} bytes, granule {disk.granule}{what}")

    def flush(self, number: int) -> None:
        """Print that the source asks for everything to be on stable storage."""
        print_record("", f"  FLUSH {number}")

    def barrier(self, number: int, position: int) -> None:
        """Print that what came is acknowledged."""
        print_record(position, f"  BARRIER {number}")

    def extra(self, kind: ExtraKind, nbytes: int, position: int) -> None:
        """Print that a record of this kind came."""
        print_record(position, f"  EXTRA {kind.name}, {nbytes} bytes")

    def block(self, name: str, sector: int, count: int, position: int, *, is_zero: bool) -> None:
        """Print a block, or a run of zero blocks."""
        what = "ZERO_BLOCK" if is_zero else "DEVICE_BLOCK"
        print_record(position, f"  {what} {name!r} sector {sector}{f', {count} blocks' if count > 1 else ''}")

    def pack(self, name: str, extents: Extents, position: int) -> None:
        """Print a pack: how much it holds, and from where to where."""
        nbytes = sum(length for _, length in extents)
        first, stop = extents[0][0], sum(extents[-1])
        print_record(position, f"  PACK {name!r} {len(extents)} extents, {nbytes} bytes, offset {first} to {stop}")

    def progress(self, percent: int) -> None:
        """Print the source's progress."""
        print_record("", f"  PROGRESS {percent} %")


def print_record(position: int | str, text: str) -> None:
    """Print one line of the listing. Raises if stdout does not take it: there is no use in going on."""
    output.put(f"{position:>14}  {text}")
    if output.results_error is not None:
        raise errors.MigrationError(f"the listing cannot be written: {output.results_error}")


def print_inspection(inspection: migration.Inspection) -> None:
    """Print an inspection for a person."""
    output.print_table(container_rows(inspection))
    for disk in inspection.disks:
        output.put()
        output.print_table(disk_rows(disk))
        print_picture(disk)
    output.put(f"\n{inspection.verdict}: {inspection.reason}")


def container_rows(inspection: migration.Inspection) -> list[tuple[str, str]]:
    """Return the rows about the container."""
    stream = inspection.stream
    footers = {None: "no section to tell", True: "yes", False: "no"}[stream.has_footers]
    commands = ", ".join(f"{name} x {count}" for name, count in stream.commands.items())
    rows = [
        ("stream", f"{units.format_size(stream.nbytes)}, version {stream.version}"),
        ("machine", "(none said)" if not stream.machine else stream.machine),
        ("footers", footers),
        ("format", inspection.format or "no disks"),
    ]
    if stream.capabilities:
        rows.append(("capabilities", ", ".join(stream.capabilities)))
    if commands:
        rows.append(("commands", commands))
    for section in stream.sections:
        ended = "ended" if section.ended else "NOT ended"
        size = units.format_size(section.nbytes)
        rows.append((f"section {section.section_id}", f"{section.idstr}: {section.parts} parts, {size}, {ended}"))
    if stream.drained_bytes:
        rows.append(("devices", units.format_size(stream.drained_bytes)))
    return rows


def disk_rows(disk: migration.InspectedDisk) -> list[tuple[str, str]]:
    """Return the rows about one disk."""
    figures = disk.statistics
    size = figures.size or 0
    nblocks = -(-size // (1 << 20))
    missing = figures.missing_blocks
    source = {"stream": "said by the stream", "option": "as was said", "inferred": "inferred from its last block"}
    packs = [("packs", f"{figures.packs} came, {units.format_size(figures.pack_bytes)}")] if figures.packs else []
    saved = figures.saved_by_compression
    compressed = [("compressed", f"{units.format_size(saved)} saved")] if saved else []
    return [
        ("disk", figures.name or "(no name)"),
        ("size", f"{size} bytes ({units.format_size(size)}), {source[figures.size_source]}"),
        ("blocks", f"{figures.blocks} came, {figures.zero_blocks} zero, {figures.resent_blocks} sent again"),
        *packs,
        *compressed,
        ("rounds", str(disk.rounds)),
        ("coverage", f"{nblocks - missing} of {nblocks} blocks"),
    ]


def print_picture(disk: migration.InspectedDisk) -> None:
    """Print one cell for each range of blocks. The cell shows the most interesting state of a block in its range."""
    nblocks = -(-(disk.statistics.size or 0) // (1 << 20))
    if not nblocks:
        return
    step = -(-nblocks // CELLS)
    cells = "".join(cell(disk, start, min(start + step, nblocks)) for start in range(0, nblocks, step))
    output.put(f"[{cells}]  {step} MiB a cell: # data, o sent again, . zero, ? missing")


def cell(disk: migration.InspectedDisk, start: int, stop: int) -> str:
    """Return the cell for blocks [start, stop)."""
    if stop > len(disk.coverage.bits) or disk.coverage.bits.count(start, stop) < stop - start:
        return "?"  # no block came behind the end of the bitmaps
    if disk.resent.count(start, stop):
        return "o"
    return "." if disk.zero.count(start, stop) == stop - start else "#"
