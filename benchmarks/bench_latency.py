# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD disks whose server takes its time: nbdkit with 0 to 50 ms of delay in each request.

What is to be seen: requests in flight hide the delay, reading and writing, and cost nothing where there is none.
nbdcopy, the field's own, has four connections with up to 64 requests of 256 KiB each.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from concurrent import futures

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "support"))
import nbd_servers

import blkmig
from blkmig import _core
from blkmig.nbd import backend as nbd

MiB = 1 << 20
DELAYS = [0, 1, 5, 20, 50]
IN_FLIGHT = 16
MAX_TIME = 7.0  # seconds for a group

pytestmark = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="nbdkit is not installed")


def nblocks_for(delay, quick):
    """Return how many blocks take one in flight about half a second."""
    return 16 if quick else max(32, min(512, 500 // max(delay, 1)))


@contextlib.contextmanager
def server(nblocks, delay, what):
    """Run an nbdkit with a disk of random data in memory."""
    filters = ["--filter=delay"] if delay else []
    delays = [f"{what}={delay}ms"] if delay else []
    with nbd_servers.nbdkit(*filters, "memory", f"{nblocks}M", *delays) as running:
        with nbd.NbdBackend(running.uri) as disk:
            data = os.urandom(MiB)
            for block in range(nblocks):
                disk.pwrite(data, block * MiB)
        yield running.uri


def read(disk, threads):
    """Read a disk as a migration does: each thread the next block that nobody has read."""
    blocks = itertools.count()
    nblocks = disk.size // MiB

    def work(_thread):
        blk = _core.BlockBuffer()
        while (block := next(blocks)) < nblocks:
            disk.read_block(blk, block * MiB, MiB)

    if threads == 1:
        work(0)
        return
    with futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def nbdcopy(uri, *target):
    return lambda: subprocess.run(["nbdcopy", uri, *(target or ["null:"])], check=True)


def without(program):
    return {} if shutil.which(program) else {program: "not installed"}


@pytest.mark.parametrize("delay", DELAYS)
def test_read(ratio, quick, delay):
    """Reads of 1 MiB, sixteen in flight."""
    with server(nblocks_for(delay, quick), delay, "rdelay") as uri, nbd.NbdBackend(uri, writable=False) as disk:
        sides = {"blkmig, 16 in flight": lambda: read(disk, IN_FLIGHT), "blkmig, one": lambda: read(disk, 1)}
        if not (skipped := without("nbdcopy")):
            sides["nbdcopy"] = nbdcopy(uri)
        ratio(sides, group=f"NBD read, {delay} ms per request", skipped=skipped, max_time=MAX_TIME, max_rounds=9)


@pytest.mark.parametrize("delay", DELAYS)
def test_write(ratio, quick, delay):
    """Writes of 1 MiB by one thread, behind its back if they are slow."""
    nblocks = nblocks_for(delay, quick)
    blk = _core.BlockBuffer()
    blk.data[:] = os.urandom(MiB)
    blk.filled(MiB)

    def write():
        for block in range(nblocks):
            disk.write_block(blk, block * MiB, MiB)
        disk.flush()

    def write_one_by_one():
        for block in range(nblocks):
            disk.pwrite(blk.data, block * MiB)
        disk.flush()

    with server(nblocks, delay, "wdelay") as uri, nbd.NbdBackend(uri) as disk:
        sides = {"blkmig": write, "one in flight": write_one_by_one}
        ratio(sides, group=f"NBD write, {delay} ms per request", max_time=MAX_TIME, max_rounds=9)


@pytest.mark.parametrize("delay", DELAYS)
def test_migrate(ratio, quick, delay, tmp_path):
    """A whole migration from server to server over a unix socket, both in this process; nbdcopy has no stream."""
    nblocks = nblocks_for(delay, quick)
    path = tmp_path / "s"

    def migrate():
        path.unlink(missing_ok=True)
        with nbd.NbdBackend(source, name="d", writable=False) as disk, futures.ThreadPoolExecutor(1) as pool:
            incoming = blkmig.IncomingMigration(f"unix:{path}", {"d": target})
            with incoming:
                received = pool.submit(incoming.run)
                blkmig.send([disk], f"unix:{path}")
                received.result()

    with server(nblocks, delay, "rdelay") as source, server(nblocks, delay, "wdelay") as target:
        sides = {"blkmig": migrate}
        if not (skipped := without("nbdcopy")):
            sides["nbdcopy"] = nbdcopy(source, target)
        ratio(sides, group=f"NBD to NBD, {delay} ms per request", skipped=skipped, max_time=MAX_TIME, max_rounds=9)
