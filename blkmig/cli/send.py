# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig send``: migrate disks to another host, process or file."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from .. import block, disk, errors, migration, params, sources, stats, units
from ..migration import displays
from . import arguments, output, progress, security, watching, wording
from . import parser as parsing

DRY_RUN_SECONDS = "3"

EXAMPLES = (
    "blkmig send vda=vda.raw tcp:dest:4444                     # a raw file or a block device, called vda there",
    "blkmig send vda.raw vdb.raw 'exec:ssh dest blkmig receive - --into /srv/disks'",
    "blkmig send vda.qcow2,format=qcow2 file:vda.stream        # an image of another format, into a file",
    "blkmig send --dry-run qemu:/run/vm.qmp tcp:dest:4444      # predict the migration; send nothing",
    "blkmig send --move qemu:/run/vm.qmp,device=vda tcp:dest:4444",
    "blkmig send vda.raw tls:dest:4444 --tls-certificates pki",
)


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "send",
        run,
        summary="migrate disks to a receiver, a QEMU up to 9.0 with -incoming, or a file",
        examples=EXAMPLES,
    )
    parser.add_argument("disks", nargs="+", metavar="[NAME=]DISK", help="a file, a block device, nbd://..., "
                        "qemu:QMP_SOCKET[,device=ID]; NAME is what the receiver calls it")  # fmt: skip
    parser.add_argument("uri", type=arguments.word, metavar="URI", help=arguments.URI_HELP)
    add_limits(parser)
    add_stream(parser)
    add_live(parser)
    security.add_options(parser, "client")
    arguments.add_progress(parser)
    watching.add_options(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options about speed, downtime and limits."""
    parser.add_argument("--max-bandwidth", type=arguments.size, default=0, metavar="SIZE",
                        help="bytes per second on the wire while the writers write; the pause is never limited "
                        "(default: no limit)")  # fmt: skip
    parser.add_argument("--downtime-limit", type=arguments.duration, default=0.3, metavar="SECONDS",
                        help="how long the writers may be held at the end (default: 0.3)")  # fmt: skip
    parser.add_argument("--downtime-factor", type=float, default=4.0, metavar="FACTOR",
                        help="give a pause up when it takes FACTOR times the limit, and at least 1 s: the writers go "
                        "on, and so do the rounds. The end of a --move is never taken back (default: 4)")  # fmt: skip
    parser.add_argument("--timeout", type=arguments.duration, metavar="SECONDS", help="give up if the migration has "
                        "not converged by then, whatever it is waiting for (default: no limit)")  # fmt: skip
    parser.add_argument("--max-rounds", type=int, metavar="N", help="give up after N dirty rounds (default: no limit)")
    parser.add_argument("--granularity", default="auto", metavar="SIZE",
                        help="keep track of writes in pieces of 4K to 1M (default: auto, as fine as is cheap where "
                        "the target takes such pieces, else 1M)")  # fmt: skip
    parser.add_argument("--auto-converge", action="store_true", help="slow the writers down when they are too fast")


def add_stream(parser: argparse.ArgumentParser) -> None:
    """Add the options about what is sent, and how."""
    parser.add_argument("--no-zero-blocks", dest="zero_blocks", action="store_false", help="send zeros as data")
    parser.add_argument("--no-delta", dest="delta", action="store_false",
                        help="send everything to a target that offers to compare with an old copy")  # fmt: skip
    parser.add_argument("--reading", choices=("auto", "inline", "parallel"), default="auto",
                        help="how blocks are read (default: what suits the disk)")  # fmt: skip
    parser.add_argument("--format", choices=("auto", "block", "blkmig"), default="auto",
                        help="the section that carries the disks: QEMU's, or the one between two blkmigs (default: "
                        "blkmig where the target says that it takes it, else block)")  # fmt: skip
    parser.add_argument("--compress", choices=("auto", "off", "zstd"), default="auto",
                        help="compress what is sent to a blkmig that can decompress it: off, never; zstd, all that "
                        "shrinks; auto, as far as that is worth it, and only where the link leaves this machine "
                        "(default: auto)")  # fmt: skip
    parser.add_argument("--qemu", action="store_true", help="the target is a QEMU: refuse what it cannot load")
    parser.add_argument("--machine", default="", metavar="TYPE", help="machine type of the target QEMU; "
                        "needed for types of 2.3 and older")  # fmt: skip
    parser.add_argument("--no-return-path", dest="return_path", action="store_false",
                        help="do not ask the target to confirm that it has everything, which QEMUs before 2.5 cannot "
                        "do; then only the target itself knows whether it failed")  # fmt: skip
    parser.add_argument("--connect-timeout", type=arguments.duration, default=30.0, metavar="SECONDS",
                        help="how long the target, and a server that has the disks, may take to answer the first time "
                        "(default: 30)")  # fmt: skip
    parser.add_argument("--connections", type=arguments.count, default="auto", metavar="N",
                        help="over how many connections the stream goes to a blkmig, 1 to 16 (default: auto, one, and "
                        "on a long way one more for each 15 ms of the round trip)")  # fmt: skip
    parser.add_argument("--reconnect", type=arguments.duration, metavar="SECONDS",
                        help="how long to try to open the link to a blkmig again when it is lost; the receiver waits "
                        "as long, an hour at most; 0: not at all (default: 60)")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on where a migration has ended, because its link was "
                        "lost for good, or one end was killed; start its receiver again before, unless it still waits. "
                        "What it has is compared, and what differs is sent")  # fmt: skip
    arguments.add_both_ends(
        parser,
        peer="target",
        incremental="send only what the top layer of each disk holds",
        verify="have the target compare what it has stored with the source, if it is told to by receive --verify; two "
        "blkmigs with blkmig[verify] do so while the disks are sent, and both say what came of it",
        direct="read around the page cache",
    )


def add_live(parser: parsing.CommandParser) -> None:
    """Add the options about the source's writers."""
    parser.add_argument("--move", action="store_true", help="move the disk: its writers here are refused once the "
                        "target has everything (default: they go on, and the target is a copy)")  # fmt: skip
    parser.add_argument("--switchover", choices=("auto", "pause-before"), default="auto",
                        help="pause-before: take part in a VM's migration by QEMU, which moves the RAM")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="use a QEMU's disk even if it is in an iothread; a QEMU "
                        "before 9.0 aborts then if blkmig is killed")  # fmt: skip
    parser.add_argument("--dry-run", nargs="?", type=arguments.seconds, metavar="=SECONDS",
                        help=f"send nothing, but predict the migration: watch the writers for SECONDS (default: "
                        f"{DRY_RUN_SECONDS}), and measure the link with a blkmig receiver that waits at URI and goes "
                        "on waiting")  # fmt: skip
    parser.without_value["--dry-run"] = DRY_RUN_SECONDS
    parser.add_argument("--bandwidth", type=arguments.size, metavar="SIZE", help="for --dry-run: bytes per second that "
                        "the link carries (default: as measured, else --max-bandwidth, else as fast as the disks are "
                        "read)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    arguments.check_address(args.uri, args.disks, place="the address comes last, blkmig send [NAME=]DISK ... URI")
    displays.check_writing(args.uri)  # before anything is shown
    parameters = parameters_of(args)
    if args.bandwidth is not None and args.dry_run is None:
        raise errors.ParameterError("--bandwidth is for --dry-run; to send no faster than that, say --max-bandwidth")
    watching.check(args, map(arguments.named, args.disks), writing=True)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(watching.watching(args, "outgoing"))
        disks = [
            stack.enter_context(backend)
            for opened in sources.open_sources(
                map(arguments.named, args.disks),
                writable=False,
                direct=args.direct,
                force=args.force,
                switchover=args.switchover,
                return_path=args.return_path,
                connect_timeout=args.connect_timeout,
                idle_timeout=args.idle_timeout,
            )
            for backend in opened
        ]
        if args.switchover == "pause-before":
            check_whole_vm(disks)
        if args.dry_run is not None:
            for backend in disks:
                displays.check(f"disk {backend.name!r}", backend.files)
            found = migration.forecast(disks, parameters, seconds=args.dry_run, bandwidth=args.bandwidth, uri=args.uri)
            print_forecast(found, args)
            return 0
        is_stdout_taken = displays.is_stdout(args.uri)
        report = watch.joined(stack.enter_context(progress.reporter(args.progress)))
        outgoing = migration.OutgoingMigration(disks, args.uri, parameters, on_progress=report)
        watch.begin(outgoing)
        with watch.ending(outgoing), outgoing:
            if args.switchover == "pause-before":
                watch_switchover(disks, outgoing)
            outgoing.run()
    for backend in disks:
        if backend.name in outgoing.skipped:
            why = block.why_left_out(backend, is_described=False)
            output.print_note(f"disk {backend.name!r} was not sent: {why}")
    print_result(outgoing.stats, args, is_stdout_taken=is_stdout_taken)
    return 0


def watch_switchover(disks: list[disk.BlockBackend], outgoing: migration.OutgoingMigration) -> None:
    """Begin the last pass when the QEMU of the disks waits for it."""
    for session in check_whole_vm(disks):
        session.when_pre_switchover(outgoing.switchover)


def check_whole_vm(disks: list[disk.BlockBackend]) -> set[Any]:
    """Return the sessions of the QEMUs that have the disks; raise if none of the disks is a QEMU's."""
    from .. import qemu

    sessions = {backend.session for backend in disks if isinstance(backend, qemu.QemuBackend)}
    if not sessions:
        raise errors.ParameterError("--switchover=pause-before is for the disks of a running QEMU: qemu:QMP_SOCKET")
    return sessions


def parameters_of(args: argparse.Namespace) -> params.MigrationParameters:
    """Return the parameters that the options ask for."""
    is_whole_vm = args.switchover == "pause-before"
    said = arguments.parameters_of(
        args,
        params.MigrationParameters,
        switchover="manual" if is_whole_vm else "auto",
        writers_after="refuse" if args.move or is_whole_vm else "release",
        shared_base=args.incremental,
        digests=args.verify,
        machine_compat=machine_compat(args.machine),
    )
    return security.with_tls(said, args)


def machine_compat(machine: str) -> params.MachineCompat | None:
    """Return the form of the stream's container for a machine type; None for the form of 2.4 and later."""
    version = machine.rpartition("-")[2]
    if version in ("2.3", "2.2"):
        return "2.3" if version == "2.3" else "2.2"
    is_older = version in ("2.0", "2.1") or version.startswith(("0.", "1."))
    return "2.2" if is_older else None


def print_result(result: stats.OutgoingStatistics, args: argparse.Namespace, *, is_stdout_taken: bool) -> None:
    """Print what was done: on stdout, or on stderr if the stream is there."""
    output.log_result(result)
    if args.json or (is_stdout_taken and output.stderr.is_json):
        output.print_json(result, is_stdout_taken=is_stdout_taken)
        return
    for note in result.notes:
        output.print_note(note)
    rows = [
        ("disks", units.format_size(result.disk_bytes)),
        ("on the wire", wording.on_the_wire(result)),
        *([("connections", str(result.connections))] if result.connections > 1 else []),
        *([("link", wording.losses(result))] if result.reconnects else []),
        ("section", result.format or "-"),
        ("dirty rounds", str(result.dirty_rounds)),
        ("time", f"{units.format_duration(result.total_time)}, {units.format_rate(result.throughput)}"),
        ("downtime", wording.describe_downtime(result)),
    ]
    if result.same_bytes:
        rows.append(("the same", f"{units.format_size(result.same_bytes)} that the target held already"))
    if result.verified:
        rows.append(("verified", "the target has read its storage back, and holds the same"))
    elif args.verify:
        where = "the target does that if it was told to (receive --verify), and says it there: look at its exit code"
        rows.append(("verified", where))
    output.print_table(rows, is_stdout_taken=is_stdout_taken)


def describe_link(found: migration.Forecast, limit: int) -> str:
    """Say which bandwidth the forecast assumes, where that figure comes from, and what was measured."""
    source = {
        "measured": "measured with the receiver",
        "said": "by --bandwidth",
        "limit": "by --max-bandwidth",
        "disks": "as fast as the disks are read",
    }[found.bandwidth_source]
    text = f"{units.format_rate(found.bandwidth)}, {source}"
    if 0 < limit < found.bandwidth:
        text += f", of which --max-bandwidth allows {units.format_rate(limit)} before the pause"
    if found.measured_bandwidth is None:
        advice = "" if found.bandwidth_source == "said" else "; say what the link carries with --bandwidth"
        return f"{text}; the link was not measured: {found.why_not_measured}{advice}"
    if found.bandwidth_source != "measured":
        return f"{text}; measured with the receiver: {units.format_rate(found.measured_bandwidth)}"
    return text


def describe_section(found: migration.Forecast, args: argparse.Namespace) -> str:
    """Say which section was assumed, and what it depends on."""
    if found.format == "block" or args.format != "auto":
        return found.format
    return f"{found.format}, if the target is a blkmig like this one; see --format"


def print_forecast(found: migration.Forecast, args: argparse.Namespace) -> None:
    """Print a forecast."""
    if args.json:
        output.print_json(found)
        return
    rows = [
        ("disks", f"{units.format_size(found.disk_bytes)}, {units.format_size(found.data_bytes)} of data"),
        ("section", describe_section(found, args)),
        ("bandwidth", describe_link(found, args.max_bandwidth)),
        ("writers", f"dirty {units.format_rate(found.dirty_rate)}"),
        ("would send", f"{units.format_size(found.total_bytes)} in {units.format_duration(found.total_time)}"),
        ("dirty rounds", str(found.rounds)),
        ("downtime", expected_downtime(found, args)),
        ("converges", describe_convergence(found)),
    ]
    output.print_table(rows)


def expected_downtime(found: migration.Forecast, args: argparse.Namespace) -> str:
    """Say how long the writers would be held, and which part of that cannot be predicted."""
    text = units.format_duration(found.downtime)
    is_moved = args.move or args.switchover == "pause-before"
    return f"{text}, plus the time that the target takes to bring all to stable storage" if is_moved else text


def describe_convergence(found: migration.Forecast) -> str:
    """Say whether the migration would converge, and what that requires."""
    slowed = f"with the writers slowed to {found.writers_fraction:.0%} of their speed"
    if found.converges:
        return "yes" if found.writers_fraction == 1 else f"yes, {slowed}"
    if found.writers_fraction < 1:
        return f"no, not even {slowed}: allow more downtime or bandwidth"
    return "no: allow more downtime or bandwidth, or --auto-converge"
