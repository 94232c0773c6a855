# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig receive``: take the disks of a migration, from blkmig or from a QEMU 2.2 to 9.0."""

from __future__ import annotations

import argparse
from typing import Any

from .. import errors, migration, params, stats, units
from ..migration import displays
from . import arguments, output, progress, security, tokens, watching

EXAMPLES = (
    "blkmig receive tcp::4444 vda=copy.raw                     # the disk called vda goes to copy.raw",
    "blkmig receive tcp::4444 --into /srv/disks                # every disk of the stream",
    "blkmig receive file:vda.stream vda=vda.qcow2,format=qcow2",
    "blkmig receive tcp::4444 --incremental vda=x.raw          # x.raw holds the base already",
    "blkmig receive tls::4444 --tls-certificates pki --into /srv/disks",
    "blkmig receive --delta vda=old.raw --allow 10.0.0.7 tcp::4444 vda=new.raw  # only what differs comes",
    "blkmig receive --in-place --allow 10.0.0.7 tcp::4444 vda=old.raw           # old.raw is written over",
)


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "receive",
        run,
        summary="take the disks of a migration, from blkmig or from a QEMU 2.2 to 9.0",
        description="Listens on tcp:, tls: and unix:, reads exec:, fd:, file: and - (stdin). A target that does not "
        "exist is made under a hidden name in the same folder, for this user only, and gets its own name when it is "
        "complete. A target is complete if the exit code is 0; after 3 and 7 the message says what it is.",
        examples=EXAMPLES,
    )
    parser.add_argument("uri", type=arguments.word, metavar="URI", help=arguments.URI_HELP)
    parser.add_argument("disks", nargs="*", metavar="[NAME=]DISK", help="where the disk NAME goes; targets without a "
                        "name take the disks of the stream in their order")  # fmt: skip
    parser.add_argument(
        "--into", type=arguments.word, metavar="DIR", help="put every other disk into this folder, as NAME.raw"
    )
    parser.add_argument("--overwrite", action="store_true",
                        help="replace files that DIR holds already, when their disks are complete")  # fmt: skip
    parser.add_argument("--delta", action="append", default=[], metavar="NAME=OLD",
                        help="OLD is an old copy of the disk NAME, a file, a device or nbd://...: the new target "
                        "begins with what it holds, and a source that is a blkmig sends only what differs")  # fmt: skip
    parser.add_argument("--in-place", action="store_true",
                        help="the targets hold old copies of their disks, and are written over: only what differs "
                        "comes. If that fails, the old copy is gone; with --in-place again, it goes on from what is "
                        "there")  # fmt: skip
    parser.add_argument("--keep-tail", action="store_true", help="accept a target that is larger than its disk, and "
                        "leave alone what it holds behind the disk's end; else it is refused")  # fmt: skip
    parser.add_argument("--map", action="append", default=[], metavar="INDEX=DISK",
                        help="where disk number INDEX of the stream goes; the first disk is number 0")  # fmt: skip
    parser.add_argument("--size", action="append", default=[], metavar="[NAME=]SIZE",
                        help="exact size of a disk, where the stream does not say it")  # fmt: skip
    parser.add_argument("--accept-timeout", type=arguments.duration, metavar="SECONDS", help="how long to wait for the "
                        "source (default: as long as it takes)")  # fmt: skip
    arguments.add_both_ends(
        parser,
        peer="source",
        incremental="the targets hold the base already: write only what comes",
        verify="read everything back, and compare it with what the source says of its disks (send --verify)",
        direct="write around the page cache",
    )
    security.add_options(parser, "server")
    arguments.add_progress(parser)
    watching.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    arguments.check_address(args.uri, args.disks, place="the address comes first, blkmig receive URI [NAME=]DISK ...")
    named = [arguments.named(text) for text in args.disks]
    targets = arguments.each_once(((name, path) for name, path in named if name is not None), "disk")
    in_order = enumerate(path for name, path in named if name is None)
    by_index = arguments.each_once([*in_order, *map(parse_map, args.map)], "disk number")
    sizes = arguments.each_once(map(arguments.named_size, args.size), "the size of disk")
    delta = arguments.each_once(map(parse_old_copy, args.delta), "the old copy of disk")
    tls = security.parameters_of(args)
    parameters = arguments.parameters_of(args, params.IncomingParameters, sizes=sizes, delta=delta, tls=tls)
    numbered = ((f"number {number}", path) for number, path in by_index.items())
    watching.check(args, [*targets.items(), *numbered, *delta.items()], writing=False)
    tokens.check_place(args, is_needed=args.uri.startswith("tls:") and parameters.tls is None)
    with watching.watching(args, "incoming") as watch, progress.reporter(args.progress) as report:
        incoming = migration.IncomingMigration(
            args.uri, targets, parameters, into=args.into, by_index=by_index, on_progress=watch.joined(report)
        )
        # Entering it opens the targets. Until that is done, a signal is raised, because a cancel would reach nothing.
        with incoming, watch.ending(incoming):
            if args.uri.startswith(("tcp:", "tls:", "unix:")):
                output.print_listening(incoming.uri)
            if incoming.is_exposed:
                output.print_note(security.EXPOSED.format(uri=incoming.uri))
            watch.begin(incoming)
            with tokens.shown(incoming.token, incoming.uri, args.token_file):
                result = incoming.run()
    print_result(result, args, is_stdout_taken=incoming.is_awaited and displays.answers_on_stdout(args.uri))
    return 0


def parse_old_copy(text: str) -> tuple[str, str]:
    """Parse ``NAME=OLD``."""
    name, path = arguments.named(text)
    if name is None:
        raise errors.ParameterError(f"--delta takes NAME=OLD, for instance vda=old.raw, not {text!r}")
    return name, path


def parse_map(text: str) -> tuple[int, str]:
    """Parse ``INDEX=DISK``."""
    index, _, path = text.partition("=")
    if not index.isdecimal() or len(index) > 9 or not path:
        raise errors.ParameterError(f"--map takes INDEX=DISK, for instance 0=vda.raw, not {text!r}")
    return int(index), path


def print_result(result: stats.IncomingStatistics, args: argparse.Namespace, *, is_stdout_taken: bool) -> None:
    """Print what has come: on stdout, or on stderr if the source's end of the stream is there."""
    output.log_result(result)
    if args.json or (is_stdout_taken and output.stderr.is_json):
        output.print_json(result, is_stdout_taken=is_stdout_taken)
        return
    for note in result.notes:
        output.print_note(note)
    rows = [(received.name or "(no name)", describe_disk(received)) for received in result.disks.values()]
    speed = units.format_rate(result.transferred / result.total_time) if result.total_time else "-"
    rows.append(("section", result.format or "-"))
    rows.append(("time", f"{units.format_duration(result.total_time)}, {speed} on the wire"))
    output.print_table(rows, is_stdout_taken=is_stdout_taken)


def describe_disk(received: stats.DiskStatistics) -> str:
    """Return a line about one disk."""
    text = units.format_size(received.size or 0)
    text += f", {units.counted(received.blocks, 'block')}, {received.zero_blocks} zero"
    if received.resent_blocks:
        text += f", {received.resent_blocks} sent again"
    if received.packs:
        text += f", {units.format_size(received.pack_bytes)} in {units.counted(received.packs, 'pack')}"
    if received.saved_by_compression:
        text += f", {units.format_size(received.saved_by_compression)} saved by compressing"
    if received.same_bytes:
        text += f", {units.format_size(received.same_bytes)} the same as before"
    return text + (", verified" if received.verified else "")
