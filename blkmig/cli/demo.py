# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig demo``: watch a disk move while it is being written.

A writer thread scribbles over a disk, a receiver waits in another process, and the disk migrates to it over loopback
TCP. After the last pass the writer is refused, and the two disks are compared byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from .. import children, disk, errors, files, migration, params, stats, threads, units
from . import arguments, output, progress, signals, watching

DATA_SHARE = 0.4
"""The part of the demo's disk that holds data; the rest is holes."""

HOT_BYTES = 4 << 20
"""Like most real writers, the demo's works in a small part of the disk most of the time. The rest it writes as a
log."""

HOT_SHARE = 0.8

EXTENT_BYTES = 4 << 20
TICK_SECONDS = 0.005
RECEIVER_SECONDS = 30.0


def add_command(commands: Any) -> None:
    """Add the command to the command line."""
    parser = arguments.add_command(
        commands,
        "demo",
        run,
        summary="watch a disk move over loopback TCP while it is being written, and verify it",
        examples=("blkmig demo", "blkmig demo --size 256M --write-rate 100M --progress=plain"),
    )
    parser.add_argument("--size", type=arguments.size, default=1 << 30, help="size of the disk (default: 1GiB)")
    parser.add_argument("--write-rate", type=arguments.size, default=24 << 20, metavar="SIZE",
                        help="bytes per second that the writer writes (default: 24MiB)")  # fmt: skip
    parser.add_argument("--max-bandwidth", type=arguments.size, default=160 << 20, metavar="SIZE",
                        help="bytes per second on the wire, 0 for all there is (default: 160MiB)")  # fmt: skip
    parser.add_argument("--downtime-limit", type=arguments.duration, default=0.05, metavar="SECONDS",
                        help="how long the writer may be held at the end (default: 0.05)")  # fmt: skip
    parser.add_argument(
        "--dir",
        type=arguments.word,
        metavar="DIR",
        help="the folder of the two disks while the demo runs (default: the temporary folder)",
    )
    arguments.add_progress(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with tempfile.TemporaryDirectory(prefix="blkmig-demo-", dir=args.dir) as folder:
        check_space(folder, args.size)
        source, target = pathlib.Path(folder, "source.raw"), pathlib.Path(folder, "target.raw")
        make_disk(source, args.size)
        output.print_note(
            f"a disk of {units.format_size(args.size)}, written at {units.format_rate(args.write_rate)}, moves over "
            "loopback TCP to another process"
        )
        with (
            receiving(target) as uri,
            files.FileBackend(source, name="demo") as backend,
            Writer(backend, args.write_rate) as writer,
        ):
            result = migrate(backend, uri, args)
        with signals.current().raising():
            equal = same_contents(source, target)
    print_result(result, writer, args, equal=equal)
    return 0 if equal else errors.ContentMismatch.exit_code


def check_space(folder: str, size: int) -> None:
    """Refuse a demo that would fill the file system."""
    needed, free = int(2 * size * (DATA_SHARE + 0.1)) + 2 * HOT_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise errors.ParameterError(
            f"{folder} has {units.format_size(free)} free and the demo needs {units.format_size(needed)}: "
            "say another folder with --dir, or a smaller --size"
        )


def make_disk(path: pathlib.Path, size: int) -> None:
    """Make a sparse disk with extents of data all over it."""
    with files.FileBackend(path, create_size=size, name="demo") as backend:
        for offset in range(0, size, int(EXTENT_BYTES / DATA_SHARE)):
            backend.pwrite(os.urandom(min(EXTENT_BYTES, size - offset)), offset)


def migrate(backend: disk.BlockBackend, uri: str, args: argparse.Namespace) -> stats.OutgoingStatistics:
    """Move the disk. After that its writer is refused."""
    parameters = params.MigrationParameters(
        max_bandwidth=args.max_bandwidth, downtime_limit=args.downtime_limit, writers_after="refuse", timeout=60
    )
    with progress.reporter(args.progress) as report:
        watch = watching.Watch()
        outgoing = migration.OutgoingMigration([backend], uri, parameters, on_progress=watch.joined(report))
        watch.begin(outgoing)
        with signals.current().cancelling(outgoing.cancel), outgoing:
            outgoing.run()
    return outgoing.stats


@contextlib.contextmanager
def receiving(target: pathlib.Path) -> Iterator[str]:
    """Run ``blkmig receive`` in another process and yield the address that it listens on.

    Python's ``-m`` looks in the current folder first, and a source tree there may lack the compiled modules. So the
    process starts in the folder that holds this package.
    """
    beside = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "blkmig", "receive", "--progress=none", "--accept-timeout", str(RECEIVER_SECONDS),
               "tcp:127.0.0.1:0", f"demo={target.resolve()}"]  # fmt: skip
    process, tie = children.start(
        command,
        cwd=beside,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C reaches the demo alone, which then ends its receiver
    )
    with process:
        try:
            assert process.stderr is not None
            yield read_address(process.stderr)
            if process.wait(RECEIVER_SECONDS):
                raise errors.MigrationError(f"the receiver failed: {process.stderr.read().strip()}")
        finally:
            process.kill()
            process.wait()
            tie.undo()


def read_address(stderr: IO[str]) -> str:
    """Return the address that the receiver announces in its first line."""
    line = stderr.readline()
    announcement, _, uri = line.strip().rpartition(" ")
    if announcement != "listening on":
        raise errors.MigrationError(f"the receiver did not start: {line}{stderr.read()}".strip())
    return uri


@dataclasses.dataclass(slots=True)
class WriterFigures:
    """What the writer has done, and how long it had to wait."""

    writes: int = 0
    nbytes: int = 0
    longest_stall: float = 0.0


class Writer:
    """A thread that writes 4 to 64 KiB at a time, at a steady rate, until its disk has moved."""

    def __init__(self, backend: disk.LocalBackend, rate: int) -> None:
        self.figures = WriterFigures()
        self._backend = backend
        self._rate = rate
        self._log_end = backend.size // 2
        self._stop = threading.Event()
        self._thread = threads.Thread(target=self._run, name="demo-writer", daemon=True)

    def __enter__(self) -> Writer:
        """Start writing."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop writing."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        """Write at the given rate, until stopped or refused."""
        rng, pool, started = random.Random(1), os.urandom(1 << 20), time.monotonic()
        while not self._stop.is_set():
            if self.figures.nbytes > self._rate * (time.monotonic() - started):
                self._stop.wait(TICK_SECONDS)
                continue
            try:
                self._write(rng, pool)
            except errors.DeviceError:
                return  # the disk has moved

    def _next(self, rng: random.Random) -> tuple[int, int]:
        """Return where to write next, and how much: in the hot part, or at the end of the log, which wraps around."""
        hot, size = min(HOT_BYTES, self._backend.size), self._backend.size
        nbytes = min(rng.choice((4096, 16384, 65536)), hot)
        if rng.random() < HOT_SHARE:
            return rng.randrange(0, hot - nbytes + 1), nbytes
        self._log_end = 0 if self._log_end + 2 * nbytes > size else self._log_end + nbytes
        return self._log_end, nbytes

    def _write(self, rng: random.Random, pool: bytes) -> None:
        """Write once and note how long it took."""
        offset, nbytes = self._next(rng)
        start = rng.randrange(len(pool) - nbytes)
        before = time.monotonic()
        self._backend.pwrite(pool[start : start + nbytes], offset)
        self.figures.longest_stall = max(self.figures.longest_stall, time.monotonic() - before)
        self.figures.writes += 1
        self.figures.nbytes += nbytes


def same_contents(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Compare two files byte for byte."""
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb", buffering=0) as one, second.open("rb", buffering=0) as other:
        while piece := one.read(1 << 20):
            if piece != other.read(1 << 20):
                return False
    return True


def print_result(result: stats.OutgoingStatistics, writer: Writer, args: argparse.Namespace, *, equal: bool) -> None:
    """Print the table."""
    figures = writer.figures
    if args.json:
        output.print_json({"migration": output.to_json(result), "writer": output.to_json(figures), "verified": equal})
        return
    rows = [
        ("disk", f"{units.format_size(result.disk_bytes)}, {result.blocks} blocks sent, {result.zero_blocks} zero"),
        ("on the wire", f"{units.format_size(result.transferred)} in {units.format_duration(result.total_time)}"),
        ("dirty rounds", str(result.dirty_rounds)),
        ("downtime", f"{units.format_duration(result.downtime or 0.0)}, the target's flush included"),
        ("writer", f"{figures.writes} writes, {units.format_size(figures.nbytes)}; longest stall "
                   f"{units.format_duration(figures.longest_stall)}"),
        ("verified", "the two disks are equal, byte for byte" if equal else "THE DISKS DIFFER"),
    ]  # fmt: skip
    output.print_table(rows)
