# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a disk of a storage daemon while it is being written, and see how long the writer has to stand still.

Both sides get the same daemon, the same writer (writer.py, through a writable export) and the same kind of target. The
*downtime* counts from the moment when the writer was cut off until the target is usable: the same clock for everybody,
and nobody's own word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import real_qemu
import storage_daemon

from . import jobs, peers, processes

NODE = "disk0"
SETTLE = 0.5  # seconds that the writer runs before a migration, and a mirror runs after it is ready


@dataclasses.dataclass(frozen=True)
class Load:
    """What the writer does: random `chunk` bytes in the first `area` bytes, at `rate` bytes per second."""

    rate: int
    chunk: int
    area: int


@dataclasses.dataclass
class Scene:
    """A daemon with a disk under a writer; `image` is its file, which belongs to this run alone."""

    daemon: storage_daemon.StorageDaemon
    image: pathlib.Path
    writer: subprocess.Popen[str]
    writes_since: float
    """The moment of its first write, on the clock of time.monotonic()."""

    def writers_end(self) -> dict[str, float]:
        """Return what the writer says after its export has gone and it was told to end."""
        output, _ = self.writer.communicate(timeout=processes.TIMEOUT)
        figures: dict[str, float] = json.loads(output)
        return figures


@contextlib.contextmanager
def scene(job: jobs.Job, load: Load) -> Iterator[Scene]:
    """Start a daemon with a copy of the source, and the writer."""
    image = job.folder / "live.raw"
    subprocess.run(["cp", "--sparse=auto", job.source, image], check=True)
    with storage_daemon.private_folder() as folder, _daemon(folder, image) as daemon:
        arguments = [daemon.uri(NODE), *map(str, (load.rate, load.chunk, load.area))]
        command = [*jobs.python(job, pathlib.Path(__file__).with_name("writer.py")), *arguments]
        with subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            try:
                assert writer.stdout is not None
                writer.stdout.readline()  # it writes
                writes_since = time.monotonic()
                time.sleep(SETTLE)
                yield Scene(daemon, image, writer, writes_since)
                daemon.quit()
            finally:
                writer.kill()


@contextlib.contextmanager
def _daemon(folder: pathlib.Path, image: pathlib.Path) -> Iterator[storage_daemon.StorageDaemon]:
    with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(image, NODE)) as daemon:
        yield daemon


def run_blkmig(job: jobs.Job, live: Scene, downtime_limit: float) -> tuple[float, float]:
    """Migrate with blkmig, both ends in processes that are up; return when it began, and when both ends had told that
    the disks are complete: from then on somebody else can use the target."""
    noted = {"notes_complete": True}
    with jobs.started(
        job,
        (live.daemon.address, {"downtime_limit": downtime_limit, "writers_after": "refuse", "timeout": 60, **noted}),
        (f"{NODE}={job.target}", noted),
    ) as ends:
        ends.run()
        return ends.began_at, ends.complete_at


def run_mirror(job: jobs.Job, live: Scene, _downtime_limit: float) -> tuple[float, float]:
    """Mirror to nbdkit until it is ready, take the writer's export away, end the job; return beginning and end."""
    with peers.nbd_server(job) as (_server, link, _uri), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(live.daemon.qmp_path))
        qmp = real_qemu.Qmp(sock)
        sock.settimeout(processes.TIMEOUT)
        address = peers.socket_address(link)
        start = time.monotonic()
        qmp.execute("blockdev-add", driver="nbd", node_name="target", server=address, export="")
        qmp.execute("blockdev-mirror", job_id="m", device=NODE, target="target", sync="full")
        qmp.wait_event(lambda event: event["event"] == "BLOCK_JOB_READY")
        time.sleep(SETTLE)
        qmp.execute("block-export-del", id=f"{NODE}-w", mode="hard")
        qmp.wait_event(lambda event: event["event"] == "BLOCK_EXPORT_DELETED")
        qmp.execute("block-job-cancel", device="m")
        qmp.wait_event(lambda event: event["event"] == "BLOCK_JOB_COMPLETED")
        end = time.monotonic()
        qmp.execute("blockdev-del", node_name="target")
        qmp.close()
        return start, end


def measure(
    run: Callable[[jobs.Job, Scene, float], tuple[float, float]], job: jobs.Job, load: Load, downtime_limit: float
) -> jobs.Figures:
    """Run one migration under `load` and return its downtime and total time; the source and the target are kept."""
    with scene(job, load) as live:
        start, end = run(job, live, downtime_limit)
        writer = live.writers_end()
        total = end - start
        rate = writer["writes"] * load.chunk / (writer["last"] - live.writes_since)
    return {
        "wall": max(end - writer["held"], 1e-6),
        "total": total - (SETTLE if run is run_mirror else 0),
        "rate": rate,
        "written": rate * total,
    }


def missing() -> str | None:
    """Return why this cannot be run here, None if it can."""
    absent = [name for name in ("qemu-storage-daemon", "nbdkit") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None
