# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD disks against the real servers: nbdkit and qemu-storage-daemon."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import disks
import lab
import nbd_servers
import peers
import pytest
from nbd_requests import await_requests
from nbd_requests import in_flight as in_flight

from blkmig import _core, errors
from blkmig.disk import geometry
from blkmig.nbd import backend as nbd
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import inflight
from blkmig.nbd import uri as nbd_uri

peers.require("nbdkit", "qemu-storage-daemon", "qemu-img")

MiB = 1 << 20
KiB = 1 << 10
SIZES = [512, MiB - 512, MiB + 512, 5 * MiB + 77 * 512]
SERVERS = ["nbdkit", "nbdkit of 4 KiB blocks", "qsd raw", "qsd qcow2"]


@contextlib.contextmanager
def exported(kind: str, path: Path, *, writable: bool = True) -> Iterator[nbd_servers.Server]:
    """Export the raw disk at `path`, or a qcow2 copy of it."""
    with contextlib.ExitStack() as stack:
        if kind.startswith("nbdkit"):
            arguments: list[str | Path] = ["file", path]
            if "4 KiB" in kind:
                options = ("minimum=4096", "preferred=4096", "maximum=32M", "error-policy=error")
                arguments = ["--filter=blocksize-policy", *arguments, *(f"blocksize-{option}" for option in options)]
            server = stack.enter_context(nbd_servers.nbdkit(*arguments))
        elif kind == "qsd raw":
            server = stack.enter_context(nbd_servers.storage_daemon(path, writable=writable))
        else:
            image = path.with_suffix(".qcow2")
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, image)
            server = stack.enter_context(nbd_servers.storage_daemon(image, format="qcow2", writable=writable))
        yield server


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def read_all(disk: nbd.NbdBackend, threads: int = 16) -> bytes:
    """Read a disk block by block, as a migration does."""
    places = geometry.BlockGeometry(disk.size)
    contents = bytearray(disk.size)
    spare = threading.local()

    def read(block: int) -> None:
        if not hasattr(spare, "blk"):
            spare.blk = _core.BlockBuffer()
        offset, nbytes = places.block_range(block)
        is_zero = disk.read_block(spare.blk, offset, nbytes)
        part = bytes(spare.blk.data[: places.clip(offset, nbytes)])
        assert is_zero == (not any(spare.blk.data))
        contents[offset : offset + len(part)] = part

    with futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(places.nblocks)))
    return bytes(contents)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("size", SIZES)
def test_source(tmp_path: Path, kind: str, size: int) -> None:
    if "4 KiB" in kind:
        size = -(-size // 4096) * 4096
    contents = disks.patchy(random.Random(size), size)
    disks.write_sparse(tmp_path / "disk.raw", contents)
    with (
        exported(kind, tmp_path / "disk.raw", writable=False) as server,
        nbd.NbdBackend(server.uri, writable=False) as disk,
    ):
        assert disk.size == size
        assert read_all(disk) == contents
        covered = bytearray(size)
        offset = 0
        while (extent := disk.next_data(offset)) is not None:
            assert offset <= extent[0] < extent[1] <= size
            covered[extent[0] : extent[1]] = contents[extent[0] : extent[1]]
            offset = extent[1]
        assert covered == contents


@pytest.mark.parametrize("size", [1000, 511])
def test_source_of_odd_size(tmp_path: Path, size: int) -> None:
    contents = random.Random(size).randbytes(size)
    (tmp_path / "disk.raw").write_bytes(contents)
    with nbd_servers.nbdkit("file", tmp_path / "disk.raw") as server, nbd.NbdBackend(server.uri) as disk:
        assert disk.size == size
        assert read_all(disk) == contents


@pytest.mark.parametrize("writable", [False, True])
def test_an_end_that_no_request_reaches(tmp_path: Path, writable: bool) -> None:
    """C15: a target was written up to there, and then failed with a word that said nothing."""
    (tmp_path / "disk.raw").write_bytes(bytes(5 * 4096 + 512))
    with (
        exported("nbdkit of 4 KiB blocks", tmp_path / "disk.raw") as server,
        pytest.raises(errors.DeviceError, match=r"its last 512 bytes cannot be reached.* multiples of 4096 bytes"),
    ):
        nbd.NbdBackend(server.uri, writable=writable)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("slow", [False, True], ids=["quick", "behind"])
@pytest.mark.parametrize("seed", range(2))
def test_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, slow: bool, seed: int) -> None:
    if slow:
        monkeypatch.setattr(inflight, "SLOW_WRITE", -1.0)
    rng = random.Random(seed)
    size = 6 * MiB + rng.choice((0, 512, 3 * 512, MiB - 512))
    if "4 KiB" in kind:
        size = -(-size // 4096) * 4096
    places = geometry.BlockGeometry(size)
    model = bytearray(disks.patchy(rng, size))
    disks.write_sparse(tmp_path / "disk.raw", bytes(model))
    with exported(kind, tmp_path / "disk.raw") as server, nbd.NbdBackend(server.uri) as disk:
        blk = _core.BlockBuffer()
        for _ in range(60):
            offset, nbytes = places.block_range(rng.randrange(places.nblocks))
            if rng.random() < 0.7:
                blk.data[:] = disks.patchy(rng, MiB) if rng.random() < 0.5 else rng.randbytes(1 << 16) * 16
                blk.filled(MiB)
                disk.write_block(blk, offset, nbytes)
                model[offset : offset + nbytes] = blk.data[:nbytes]
            else:
                nbytes = rng.randrange(size - offset + 1)
                disk.write_zeroes(offset, nbytes)
                model[offset : offset + nbytes] = bytes(nbytes)
        disk.flush()
        assert read_all(disk) == model, f"seed {seed}"
    if kind != "qsd qcow2":
        assert (tmp_path / "disk.raw").read_bytes() == model, f"seed {seed}"


@pytest.mark.parametrize("filters", [["--filter=nozero", "--filter=noextents"], ["--filter=noextents"]])
def test_target_without_zeros_or_extents(tmp_path: Path, filters: list[str]) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\xaa" * (3 * MiB))
    with nbd_servers.nbdkit(*filters, "file", path) as server, nbd.NbdBackend(server.uri) as disk:
        disk.write_zeroes(1000, 2 * MiB)
        disk.flush()
        assert disk.next_data(5) == (5, 3 * MiB)
    assert path.read_bytes() == b"\xaa" * 1000 + bytes(2 * MiB) + b"\xaa" * (MiB - 1000)


@pytest.mark.parametrize("options", ["", ",discard=unmap"])
def test_zeros_on_holes_allocate_nothing(tmp_path: Path, options: str) -> None:
    """A storage daemon allocates what it zeroes, unless discard=unmap: what reads as zeros is left alone."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with nbd_servers.storage_daemon(path, options=options) as server, nbd.NbdBackend(server.uri) as disk:
        disk.pwrite(b"x" * 65536, 512 * MiB)
        disk.write_zeroes(0, 512 * MiB)
        disk.write_zeroes(513 * MiB, 511 * MiB)
        disk.flush()
    assert path.stat().st_blocks * 512 <= MiB


def test_extents_over_several_replies(tmp_path: Path) -> None:
    """One reply describes less than 4 GiB."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(13 << 30)
        for place in (0, (4 << 30) - 65536, 9 << 30):
            file.seek(place)
            file.write(b"x" * 131072)
    with nbd_servers.nbdkit("file", path) as server, nbd.NbdBackend(server.uri) as disk:
        context = nbd_connection.BASE_ALLOCATION
        connection = nbd_connection.NbdConnection(server.uri)
        told = list(connection.block_status(context, 0, disk.size))
        assert sum(length for length, _ in told) == disk.size
        assert [flags & 2 for _, flags in told] == [0, 2, 0, 2, 0, 2]
        inside = list(connection.block_status(context, 100, 200000))
        connection.close()
        assert sum(length for length, _ in inside) == 200000
        first = disk.next_data(MiB)  # it goes on in the next window, or ends with this one
        assert first is not None
        assert first[0] == (4 << 30) - 65536 < first[1] <= (4 << 30) + 65536
        assert disk.next_data(5 << 30) == (9 << 30, (9 << 30) + 131072)
        assert disk.next_data(10 << 30) is None


def test_allocation_depth(tmp_path: Path) -> None:
    """Against qemu-img map, which knows the depth of each extent, too."""
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    rng = random.Random(5)
    disks.write_sparse(base, disks.patchy(rng, 8 * MiB))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    writes = [f"write -P {rng.randrange(1, 255)} {rng.randrange(128) * 65536} 64k" for _ in range(12)]
    run("qemu-io", "-f", "qcow2", *(part for write in writes for part in ("-c", write)), top)
    with (
        nbd_servers.storage_daemon(top, format="qcow2", writable=False) as server,
        nbd.NbdBackend(server.uri, writable=False) as disk,
    ):
        found = walk_allocated(disk)
    told = json.loads(run("qemu-img", "map", "-f", "qcow2", "--output=json", top))
    wanted = bytearray(8 * MiB // 65536)
    for extent in told:
        if extent["depth"] == 0 and extent.get("present", True):
            first = extent["start"] // 65536
            wanted[first : first + extent["length"] // 65536] = b"x" * (extent["length"] // 65536)
    assert found == wanted


def walk_allocated(disk: nbd.NbdBackend) -> bytearray:
    """Return one byte for each 64 KiB: x if the top layer holds it."""
    found = bytearray(disk.size // 65536)
    for start in range(0, disk.size, MiB):
        offset = start
        while (extent := disk.next_allocated(offset, start + MiB - offset)) is not None:
            first, stop = extent[0] // 65536, extent[1] // 65536
            found[first:stop] = b"x" * (stop - first)
            offset = extent[1]
    return found


def test_dirty_bitmap(tmp_path: Path) -> None:
    """The meta context that a QEMU's disk is followed with."""
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
    run("qemu-img", "bitmap", "--add", "-g", "65536", image, "seen")
    run("qemu-io", "-f", "qcow2", "-c", "write 1M 64k", "-c", "write 5M 128k", image)
    with nbd_servers.private_folder() as folder:
        path = folder / "s"
        command = ["qemu-nbd", "-r", "-f", "qcow2", "-B", "seen", "-k", path, "--fork", "--pid-file", folder / "pid"]
        with nbd_servers.running([*command, image], nbd_uri.unix_uri(str(path)), folder) as server:
            contexts = {"qemu:dirty-bitmap:seen", "base:allocation"}
            connection = nbd_connection.NbdConnection(server.uri, contexts=contexts)
            assert connection.contexts == contexts
            told = list(connection.block_status("qemu:dirty-bitmap:seen", 0, connection.size))
            with pytest.raises(errors.DeviceError, match="does not offer"):
                next(connection.block_status("qemu:dirty-bitmap:other", 0, 512))
            connection.close()
    assert told == [(MiB, 0), (65536, 1), (4 * MiB - 65536, 0), (131072, 1), (3 * MiB - 131072, 0)]


# -- failures --------------------------------------------------------------------------------------------------------


def test_read_error_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4 * MiB))
    arguments = ["--filter=error", "file", tmp_path / "disk.raw", "error-pread=EIO", "error-pread-rate=100%"]
    with nbd_servers.nbdkit(*arguments) as server, nbd.NbdBackend(server.uri, name="vda") as disk:
        with pytest.raises(errors.DeviceError, match="'vda': cannot read at offset 2097152") as caught:
            disk.read_block(_core.BlockBuffer(), 2 * MiB, MiB)
        assert caught.value.errno == 5
        disk.flush()


def test_no_space(tmp_path: Path) -> None:
    arguments = ["--filter=error", "memory", "8M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"]
    blk = _core.BlockBuffer()
    blk.data[:] = b"x" * MiB
    blk.filled(MiB)
    with (
        nbd_servers.nbdkit(*arguments) as server,
        nbd.NbdBackend(server.uri) as disk,
        pytest.raises(errors.DeviceError, match="No space left"),
    ):
        disk.write_block(blk, MiB, MiB)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_killed_in_the_middle(number: signal.Signals, in_flight: threading.Semaphore) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nbd_servers.nbdkit("--filter=delay", "pattern", "1G", "rdelay=600"))
        disk = stack.enter_context(nbd.NbdBackend(server.uri, name="vda", writable=False))
        pool = stack.enter_context(futures.ThreadPoolExecutor(4))
        waiting = [pool.submit(disk.read_block, _core.BlockBuffer(), n * MiB, MiB) for n in range(4)]
        await_requests(in_flight, 4)
        server.kill(number)
        if number != signal.SIGKILL:  # nbdkit finishes its requests first; we need not wait for that
            disk.close()
        for one in waiting:
            with pytest.raises(errors.DeviceError, match="vda"):
                one.result(20)


def test_export_and_server_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MiB))
    with nbd_servers.storage_daemon(tmp_path / "disk.raw", writable=False) as server:
        with pytest.raises(errors.DeviceError, match="no export named 'other'"):
            nbd.NbdBackend(nbd_uri.with_export(server.uri, "other"))
        with pytest.raises(errors.DeviceError, match="read-only"):
            nbd.NbdBackend(server.uri)
    with pytest.raises(errors.DeviceError, match="No such file"):
        nbd.NbdBackend(nbd_uri.unix_uri(str(tmp_path / "nowhere")))
    with pytest.raises(errors.DeviceError, match="refused"):
        nbd.NbdBackend("nbd://127.0.0.1:1/")


# -- migrations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_kind", SERVERS[:1] + SERVERS[2:])
@pytest.mark.parametrize("target_kind", SERVERS)
def test_migration_from_server_to_server(tmp_path: Path, source_kind: str, target_kind: str) -> None:
    size = 5 * MiB + 4096
    contents = lab.random_disk(random.Random(7), size)
    disks.write_sparse(tmp_path / "source.raw", contents)
    (tmp_path / "target.raw").write_bytes(b"\xff" * size)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(exported(source_kind, tmp_path / "source.raw", writable=False))
        target = stack.enter_context(exported(target_kind, tmp_path / "target.raw"))
        disk = stack.enter_context(nbd.NbdBackend(source.uri, name="vda", writable=False))
        lab.migrate(tmp_path, "unix", [disk], {"vda": target.uri})
        with nbd.NbdBackend(target.uri) as copy:
            assert read_all(copy) == contents


def test_live_migration_of_an_export_written_here(tmp_path: Path) -> None:
    """Writers in other threads write through the disk object; nothing of it may be missing from the copy."""
    size = 12 * MiB + 512
    rng = random.Random(11)
    disks.write_sparse(tmp_path / "source.raw", disks.patchy(rng, size))
    stop = threading.Event()

    def write(seed: int) -> None:
        mine = random.Random(seed)
        with contextlib.suppress(errors.DeviceError):
            while not stop.is_set():
                offset = mine.randrange(size - 70_000)
                if mine.random() < 0.8:
                    disk.pwrite(mine.randbytes(mine.randrange(1, 70_000)), offset)
                else:
                    disk.pwrite_zeroes(offset, mine.randrange(1, 70_000))

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(exported("nbdkit", tmp_path / "source.raw"))
        disk = stack.enter_context(nbd.NbdBackend(source.uri, name="vda"))
        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for writer in writers:
            writer.start()
        try:
            options: dict[str, Any] = {"writers_after": "refuse", "downtime_limit": 5.0}
            lab.migrate(tmp_path, "unix", [disk], {"vda": tmp_path / "target.raw"}, **options)
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    assert (tmp_path / "target.raw").read_bytes() == (tmp_path / "source.raw").read_bytes()
