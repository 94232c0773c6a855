# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks whose blocks have holes, between two blkmigs: their data travels, and a write into a hole is never lost."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import nbd_servers
import peers
import pytest

import blkmig
from blkmig import errors, migration
from blkmig.disk import LocalBackend
from blkmig.nbd import backend as nbd

MIB = lab.MIB
PIECE = 1 << 16
SIZE = 32 * MIB + 77 * 512


def islands(rng: random.Random, size: int = SIZE) -> bytes:
    """Return a disk that has 64 KiB or 4 KiB of data in most of its blocks, but for the last ones, which overlap."""
    content = bytearray(size)
    for start in range(0, size - 2 * MIB, MIB):
        for _ in range(rng.choice((0, 1, 1, 4))):
            offset, nbytes = start + rng.randrange(16) * PIECE, rng.choice((4096, PIECE))
            content[offset : offset + nbytes] = rng.randbytes(nbytes)
    return bytes(content)


@contextlib.contextmanager
def opened(kind: str, path: Path) -> Iterator[Any]:
    """Open the raw disk at `path` in some way, as a source or as a target."""
    with contextlib.ExitStack() as stack:
        if kind == "nbd":
            nbd_servers.require_libnbd()
            peers.require("nbdkit")
            server = stack.enter_context(nbd_servers.nbdkit("file", path))
            yield stack.enter_context(nbd.NbdBackend(server.uri, name="d"))
        else:
            yield stack.enter_context(blkmig.FileBackend(path, name="d", direct=kind == "direct"))


def new_target(folder: Path) -> Path:
    return folder / "t.raw"


def old_target(folder: Path) -> Path:
    """Return a target that holds something else everywhere."""
    (folder / "t.raw").write_bytes(b"\xee" * SIZE)
    return folder / "t.raw"


@pytest.mark.parametrize("make", [new_target, old_target], ids=lambda make: make.__name__)
@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("channel", ["tcp", "file"])
def test_data_alone_travels(tmp_path: Path, make: Any, reading: str, channel: str) -> None:
    content = islands(random.Random(1))
    source, target = lab.sparse_file(tmp_path / "s.raw", content), make(tmp_path)
    with opened("file", source) as disk:
        sent, came = lab.migrate(tmp_path, channel, [disk], {"d": target}, format="blkmig", reading=reading)
    assert target.read_bytes() == content
    data = source.stat().st_blocks * 512
    assert data <= sent.transferred < data + 65536
    assert sent.pack_bytes == came.disks["d"].pack_bytes <= data
    assert target.stat().st_blocks * 512 <= data + PIECE, "holes stay holes"


@pytest.mark.parametrize("source", ["file", "direct", "nbd"])
@pytest.mark.parametrize("target", ["file", "direct", "nbd"])
def test_kinds_of_disks(tmp_path: Path, source: str, target: str) -> None:
    content = islands(random.Random(2))
    path = lab.sparse_file(tmp_path / "s.raw", content)
    with opened(source, path) as disk, opened(target, old_target(tmp_path)) as goal:
        sent, _ = lab.migrate(tmp_path, "unix", [disk], {"d": goal})
        goal.flush()
    assert (tmp_path / "t.raw").read_bytes() == content
    assert sent.packs


@pytest.mark.parametrize(("channel", "goes_whole"), [("tcp", False), ("file", True)])
def test_verified_disks(tmp_path: Path, channel: str, goes_whole: bool) -> None:
    """A digest in the stream is of whole blocks; a proof beside the stream is of disks, however they travel."""
    content = islands(random.Random(3))
    with opened("file", lab.sparse_file(tmp_path / "s.raw", content)) as disk:
        target = new_target(tmp_path)
        sent, _ = lab.migrate(
            tmp_path, channel, [disk], {"d": target}, receive={"verify": True}, format="blkmig", digests=True
        )
    assert (not sent.packs) == goes_whole
    assert target.read_bytes() == content


def test_inspect_takes_them_for_blocks_that_came_once(tmp_path: Path) -> None:
    content = islands(random.Random(4))
    with opened("file", lab.sparse_file(tmp_path / "s.raw", content)) as disk:
        data = lab.record(tmp_path, [disk], format="blkmig")
    found = migration.inspect(lab.input_file(tmp_path, data))
    [disk] = found.disks
    assert found.verdict == "complete"
    assert disk.resent.find_next_set(0) < 0
    for block in range(32):
        assert disk.zero.test(block) == (not any(content[block * MIB : (block + 1) * MIB]))


class HoleWriter:
    """A thread that writes around `place`, where the bulk phase is, until it is stopped."""

    def __init__(self, disk: LocalBackend, seed: int) -> None:
        self._disk, self._rng = disk, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.place = 0

    def __enter__(self) -> HoleWriter:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(errors.DeviceError):  # the disk has moved
            while not self._stop.is_set():
                nbytes = self._rng.choice((512, 4096, 4096, PIECE))
                offset = min(self.place + self._rng.randrange(3 * MIB), self._disk.size - nbytes) // 512 * 512
                if self._rng.random() < 0.2:
                    self._disk.pwrite_zeroes(offset, nbytes)
                else:
                    self._disk.pwrite(self._rng.randbytes(nbytes), offset)


@pytest.mark.parametrize("reading", ["inline", "parallel"])
@pytest.mark.parametrize("kind", ["file", "nbd"])
@pytest.mark.parametrize("seed", range(3))
def test_a_writer_into_holes(tmp_path: Path, reading: str, kind: str, seed: int) -> None:
    content = islands(random.Random(seed))
    path = lab.sparse_file(tmp_path / "s.raw", content)
    with opened(kind, path) as disk, HoleWriter(disk, seed) as writer:

        def drive(outgoing: blkmig.OutgoingMigration) -> None:
            bmds = lab.sent(outgoing).bmds_list[0]
            while not bmds.bulk_completed:
                writer.place = max(0, bmds.cur_sector * 512 - MIB)
                outgoing.iterate()
            outgoing.complete()

        sent, _ = lab.migrate(
            tmp_path,
            "tcp",
            [disk],
            {"d": tmp_path / "t.raw"},
            drive=drive,
            format="blkmig",
            reading=reading,
            writers_after="refuse",
            max_bandwidth=20 * MIB,
        )
        assert sent.packs
        assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
