# SPDX-License-Identifier: GPL-2.0-or-later
"""The sides of the end-to-end comparisons: how each program copies a disk, from its start to a usable target.

Every function takes a :class:`.jobs.Job` and returns what the run cost, by metric. Servers and virtual machines, which
would be running already, are started before the clock; everything that transfers is inside it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import real_qemu

from . import jobs, processes

Run: TypeAlias = Callable[[jobs.Job], jobs.Figures]


# -- blkmig and the C loops ------------------------------------------------------------------------------------------


def run_blkmig_command(job: jobs.Job) -> jobs.Figures:
    """``blkmig receive`` and ``blkmig send``, whole processes, the start of the interpreters included."""
    return jobs.transfer(
        job,
        lambda link: jobs.python(job, "-m", "blkmig", "receive", link.receiver_uri, f"drive0={job.target}"),
        lambda link: jobs.python(job, "-m", "blkmig", "send", f"drive0={job.source}", link.sender_uri),
    )


def run_blkmig(
    job: jobs.Job, *, send: Mapping[str, object] | None = None, receive: Mapping[str, object] | None = None
) -> jobs.Figures:
    """``blkmig.send`` and ``blkmig.receive`` in two processes that have imported blkmig already."""
    with jobs.started(job, (f"drive0={job.source}", send or {}), (f"drive0={job.target}", receive or {})) as ends:
        return ends.run()


def run_pump(job: jobs.Job, *, send: str, receive: str, lowat: int = 0) -> jobs.Figures:
    """An all-C loop, see c/pump.c."""
    pump = job.tools.program("pump")
    uri = {"tcp": lambda text: f"tcp:{text.rpartition(':')[2]}"}.get(job.link, str)
    return jobs.transfer(
        job,
        lambda link: ["env", f"PUMP_LOWAT={lowat}", pump, "receive", receive, job.target, uri(link.receiver_uri)],
        lambda link: [pump, "send", send, job.source, uri(link.sender_uri)],
    )


def run_c_loop(job: jobs.Job) -> jobs.Figures:
    """One thread a side, preadv, scan, send; read, one pwrite."""
    receive = "readv" if job.link == "pipe" else "fresh" if job.fresh else "waitall"
    return run_pump(job, send="pread", receive=receive)


def run_c_pages(job: jobs.Job) -> jobs.Figures:
    """Pages all the way, as blkmig does it: sendfile or splice, then splice into the file as they come."""
    return run_pump(job, send="splice" if job.link == "pipe" else "sendfile", receive="splice", lowat=256 << 10)


# -- NBD -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nbd_server(job: jobs.Job) -> Iterator[tuple[processes.Measured, processes.Link, str]]:
    """Serve the target with nbdkit's file plugin; yields the server, the link and the NBD URI."""
    with processes.open_link(job.link, job.folder) as link:
        if job.link == "unix":
            where, uri = ["-U", link.address], f"nbd+unix:///?socket={link.address}"
        else:
            host, _, port = link.address.rpartition(":")
            where, uri = ["-i", host, "-p", port], f"nbd://{link.address}"
        with job.start("nbdkit", "-f", *where, "file", job.target) as server:
            link.wait_listening(server)
            yield server, link, uri


def socket_address(link: processes.Link) -> dict[str, str]:
    """Return a link's address as QMP wants it."""
    if link.kind == "unix":
        return {"type": "unix", "path": link.address}
    host, _, port = link.address.rpartition(":")
    return {"type": "inet", "host": host, "port": port}


def run_nbd_client(job: jobs.Job, command: Callable[[str], jobs.Command]) -> jobs.Figures:
    """Run a program that copies the source to an NBD URI."""
    with nbd_server(job) as (server, _link, uri):
        start = time.perf_counter()
        with job.start(*command(uri)) as client:
            sent = client.wait()
        wall = time.perf_counter() - start
        return processes.figures(wall, sent, server.terminate())


def run_nbdcopy(job: jobs.Job) -> jobs.Figures:
    """``nbdcopy`` file to nbdkit, with its defaults."""
    flags = [*(["--destination-is-zero"] if job.fresh else []), *(["--flush"] if job.flush else [])]
    return run_nbd_client(job, lambda uri: ["nbdcopy", *flags, job.source, uri])


def run_qemu_img(job: jobs.Job) -> jobs.Figures:
    """``qemu-img convert``, 16 coroutines, out of order, to nbdkit."""
    flags = ["--target-is-zero"] if job.fresh else []
    base = ["qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"]
    return run_nbd_client(job, lambda uri: [*base, *flags, job.source, uri])


def run_blockdev_mirror(job: jobs.Job) -> jobs.Figures:
    """``blockdev-mirror`` of a storage daemon to nbdkit, until the job is ready and ended."""
    with nbd_server(job) as (server, link, _uri), _qmp_pair() as (ours, theirs):
        address = socket_address(link)
        chardev = ["--chardev", f"socket,id=qmp,fd={theirs.fileno()}", "--monitor", "chardev=qmp"]
        source = ["--blockdev", f"driver=file,node-name=source,filename={job.source}"]
        with job.start("qemu-storage-daemon", *chardev, *source, fds=[theirs.fileno()]) as daemon:
            qmp = _greet(ours, theirs)
            start = time.perf_counter()
            qmp.execute("blockdev-add", driver="nbd", node_name="target", server=address, export="")
            qmp.execute("blockdev-mirror", job_id="m", device="source", target="target", sync="full")
            qmp.wait_event(lambda event: event["event"] == "BLOCK_JOB_READY")
            qmp.execute("block-job-cancel", device="m")
            qmp.wait_event(lambda event: event["event"] == "BLOCK_JOB_COMPLETED")
            wall = time.perf_counter() - start
            qmp.execute("blockdev-del", node_name="target")
            qmp.execute("quit")
            sent = daemon.wait()
        return processes.figures(wall, sent, server.terminate())


# -- QEMU ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _qmp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def _greet(ours: socket.socket, theirs: socket.socket) -> real_qemu.Qmp:
    """Return a QMP client; our copy of the server's end is closed so that its death is noticed."""
    theirs.close()
    qmp = real_qemu.Qmp(ours)
    ours.settimeout(processes.TIMEOUT)  # a migration takes longer than the tests' patience
    return qmp


@contextlib.contextmanager
def _vm(job: jobs.Job, disk: pathlib.Path, *arguments: str) -> Iterator[tuple[processes.Measured, real_qemu.Qmp]]:
    """Start a QEMU that never runs, with `disk` and next to no memory."""
    firmware = job.folder / "firmware"
    firmware.write_bytes(bytes(64 << 10))
    base = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "4M", "-nodefaults", "-display", "none", "-S"]
    with _qmp_pair() as (ours, theirs):
        chardev = ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        # With if=none QEMU 7.2's incoming side fails an assertion of its own: nobody has asked for the right to write.
        drive = ["-drive", f"file={disk},format=raw,if=virtio,id=drive0"]
        command = [*base, "-bios", str(firmware), *chardev, *drive, *arguments]
        with job.start(*command, fds=[theirs.fileno()]) as process:
            qmp = _greet(ours, theirs)
            events = [{"capability": "events", "state": True}]
            qmp.execute("migrate-set-capabilities", capabilities=events)
            yield process, qmp
            with contextlib.suppress(ConnectionError):
                qmp.execute("quit")


def _wait_completed(qmp: real_qemu.Qmp) -> None:
    def ended(event: dict[str, Any]) -> bool:
        return event["event"] == "MIGRATION" and event["data"]["status"] in real_qemu.FINAL

    status = qmp.wait_event(ended)["data"]["status"]
    if status != "completed":
        raise RuntimeError(f"QEMU's migration {status}")


def run_qemu_migrate(job: jobs.Job) -> jobs.Figures:
    """``migrate`` with blk from one QEMU to another; without a downtime limit of 0 it may lose blocks."""
    with _vm(job, job.target, "-incoming", "defer") as (receiving, target), _vm(job, job.source) as (sending, source):
        source.execute("migrate-set-parameters", downtime_limit=0, max_bandwidth=1 << 40)
        target.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        address = target.execute("query-migrate")["socket-address"][0]
        start = time.perf_counter()
        source.execute("migrate", uri=f"tcp:{address['host']}:{address['port']}", blk=True)
        _wait_completed(source)
        _wait_completed(target)
        wall = time.perf_counter() - start
        for qmp, process in ((source, sending), (target, receiving)):
            qmp.execute("quit")
            process.process.wait(processes.TIMEOUT)
        return processes.figures(wall, sending.wait(), receiving.wait())


# -- local copies ----------------------------------------------------------------------------------------------------


def run_local(job: jobs.Job, command: Callable[[jobs.Job], jobs.Command]) -> jobs.Figures:
    """Run a command that copies without a link."""
    start = time.perf_counter()
    with job.start(*command(job)) as process:
        cost = process.wait()
    return processes.figures(time.perf_counter() - start, cost)


run_dd: Run = functools.partial(
    run_local,
    command=lambda job: [
        *("dd", f"if={job.source}", f"of={job.target}", "bs=1M", "conv=notrunc"),
        *(["conv=notrunc,fdatasync"] if job.flush else []),
    ],
)
run_cp: Run = functools.partial(run_local, command=lambda job: ["cp", "--sparse=auto", job.source, job.target])
run_cp_sparse: Run = functools.partial(run_local, command=lambda job: ["cp", "--sparse=always", job.source, job.target])
run_copy_file_range: Run = functools.partial(
    run_local, command=lambda job: [job.tools.program("copyrange"), job.source, job.target]
)


#: Every side by the name that tables and gates use, with the programs it needs.
SIDES: Mapping[str, tuple[Run, Sequence[str]]] = {
    "blkmig": (run_blkmig, ()),
    "blkmig command": (run_blkmig_command, ()),
    "parallel reads": (functools.partial(run_blkmig, send={"reading": "parallel"}), ()),
    "nothing stored behind": (functools.partial(run_blkmig, receive={"without": "storing behind"}), ()),
    "no early writeback": (functools.partial(run_blkmig, receive={"without": "early writeback"}), ()),
    "no rate limit or progress": (functools.partial(run_blkmig, send={"without": "rate limit and progress"}), ()),
    "C loop": (run_c_loop, ()),
    "C loop pages": (run_c_pages, ()),
    "nbdcopy": (run_nbdcopy, ("nbdcopy", "nbdkit")),
    "qemu-img convert": (run_qemu_img, ("qemu-img", "nbdkit")),
    "blockdev-mirror": (run_blockdev_mirror, ("qemu-storage-daemon", "nbdkit")),
    "QEMU migrate": (run_qemu_migrate, ("qemu-system-x86_64",)),
    "copy_file_range": (run_copy_file_range, ()),
    "dd": (run_dd, ("dd",)),
    "cp": (run_cp, ("cp",)),
    "cp --sparse": (run_cp_sparse, ("cp",)),
}


def missing(name: str) -> str | None:
    """Return why a side cannot run here, None if it can."""
    absent = [program for program in SIDES[name][1] if shutil.which(program) is None]
    if name == "QEMU migrate" and not absent and (reason := _lacks_block_migration()):
        return reason
    return f"{' and '.join(absent)} not installed" if absent else None


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the programs that are installed."""
    programs = dict.fromkeys(itertools.chain.from_iterable(needed for _, needed in SIDES.values()))
    found = {}
    for program in filter(shutil.which, programs):
        text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"\d+\.\d+(\.\d+)?", text):
            found[program] = match.group()
    return found


@functools.cache
def _lacks_block_migration() -> str | None:
    text = real_qemu.version()
    return f"QEMU {text} has no block migration" if tuple(map(int, text.split(".")[:2])) >= (9, 1) else None
