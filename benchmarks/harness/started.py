# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a migration in a process that is up already: started.py send|receive CONTROL_FD DISK URI PARAMETERS.

It imports, writes "ready", waits for "go", migrates through the Python API, and writes the CPU seconds that this took
and two moments on the clock of time.monotonic(), which all processes share: when the caller was told that the disks are
complete, if "notes_complete" is among the parameters, and when it was over.
So a comparison with servers that run already does not count an interpreter's start. DISK is NAME=PATH, or for a sender
what stands for the disks of a QEMU; PARAMETERS is a JSON object. "without" in it takes something out of blkmig, to see
what that is worth; "metrics" is a file that is written meanwhile.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import blkmig
from blkmig import channel, qemu, stats
from blkmig.files import storing, writeback
from blkmig.migration import barriers, figures


def main() -> None:
    """Take part in the protocol above."""
    _ = blkmig.send, blkmig.receive, blkmig.FileBackend, qemu.QemuBackend  # `import blkmig` alone is lazy
    verb, control, disk, uri, parameters = sys.argv[1:]
    fd = int(control)
    if "metrics" in json.loads(parameters):
        from blkmig import metrics  # what it loads is not to be measured, either

        with metrics.exported(metrics.MigrationMetrics("warm")):
            pass
    migrate_a_little()
    os.write(fd, b"ready\n")
    if os.read(fd, 3) != b"go\n":
        return
    before = cpu_seconds()
    complete_at = migrate(verb, disk, uri, json.loads(parameters))
    ended = time.monotonic()
    os.write(fd, f"{cpu_seconds() - before} {complete_at or ended} {ended}\n".encode())


def migrate_a_little() -> None:
    """Load the rooms of both ends, which are loaded when they are first used: that is measured by bench_import.py."""
    with tempfile.TemporaryDirectory() as folder:
        source, target, socket = (pathlib.Path(folder, name) for name in ("source", "target", "socket"))
        source.write_bytes(bytes(1 << 20))
        with (
            blkmig.incoming(f"unix:{socket}", {"vda": target}) as incoming,
            blkmig.FileBackend(source, name="vda") as disk,
        ):
            receiver = threading.Thread(target=incoming.run)
            receiver.start()
            blkmig.send([disk], incoming.uri)
            receiver.join()


def migrate(verb: str, disk: str, uri: str, parameters: dict[str, object]) -> float | None:
    """Be one end until the migration is over; return when the disks were complete, if that is asked for."""
    if "without" in parameters:
        TAKE_OUT[str(parameters.pop("without"))]()
    if "tls" in parameters:
        parameters["tls"] = blkmig.TlsParameters(certificates=str(parameters["tls"]))
        uri = uri.replace("tcp:127.0.0.1:", "tls:localhost:")
    moments: list[float] = []
    if parameters.pop("notes_complete", False):
        parameters["on_progress"] = functools.partial(note_complete, moments)
    with watched(parameters):
        run(verb, disk, uri, parameters)
    return moments[0] if moments else None


def note_complete(moments: list[float], event: stats.Event) -> None:
    """Note when the disks are complete."""
    if isinstance(event, stats.DisksComplete):
        moments.append(time.monotonic())


@contextlib.contextmanager
def watched(parameters: dict[str, object]) -> Iterator[None]:
    """Write metrics, if the parameters say so."""
    path = parameters.pop("metrics", None)
    if path is None:
        yield
        return
    from blkmig import metrics

    parameters["on_progress"] = collector = metrics.MigrationMetrics("benchmark")
    with metrics.exported(collector, file=str(path)):
        yield


def run(verb: str, disk: str, uri: str, parameters: dict[str, object]) -> None:
    """Migrate."""
    name, _, path = disk.partition("=")
    if verb == "receive":
        blkmig.receive(uri, {name: path}, **parameters)
    elif disk.startswith("qemu:"):
        blkmig.send([disk], uri, **parameters)
    else:
        with blkmig.FileBackend(path, name=name, writable=False) as source:
            blkmig.send([source], uri, **parameters)


def take_out_early_writeback() -> None:
    """Have nothing written back before the flush at the end, unless the kernel thinks so."""
    writeback.EarlyWriteback.count = lambda self, nbytes: None  # type: ignore[method-assign]


def take_out_barriers() -> None:
    """Have what is sent kept, as for a barrier, but none become due."""
    barriers.BARRIER_SECONDS = math.inf


def take_out_storing_behind() -> None:
    """Have each block stored before the next one is received."""

    def no_thread(cluster: int) -> storing.StoringThread:
        raise RuntimeError("no thread is to be had")

    storing.StoringThread = no_thread  # type: ignore[assignment,misc]


def take_out_rate_limit_and_progress() -> None:
    """Have nobody look whether there is a rate limit, or somebody who wants to be told how far it is."""
    channel.OutputQEMUFile.rate_limit_exceeded = lambda self: False  # type: ignore[method-assign]
    channel.OutputQEMUFile.wait_rate_limit = lambda self: None  # type: ignore[method-assign]
    figures.Figures.report = lambda self, **options: None  # type: ignore[method-assign]


TAKE_OUT = {
    "barriers": take_out_barriers,
    "storing behind": take_out_storing_behind,
    "early writeback": take_out_early_writeback,
    "rate limit and progress": take_out_rate_limit_and_progress,
}


def cpu_seconds() -> float:
    """Return the CPU time of this process; os.times() counts in hundredths."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
