# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of odd sizes and every kind, to every kind of target, with everything that may be chosen, at random.

Each migration has writers until the pause, and ends equal; whoever verifies says so. The link is lost now and then.
With ``--long`` the seeds are new ones, and there are a thousand.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cutter
import lab
import nbd_servers
import peers
import pytest
from lossy import many_barriers, writing

import blkmig
from blkmig import errors
from blkmig.disk import LocalBackend

peers.require("nbdkit", "qemu-nbd", "qemu-img")

MIB = lab.MIB
SIZES = (
    *(0, 1, 511, 512, 513, 1000, 4095, 4096, 4097, 65536, 65537),
    *(MIB - 1, MIB, MIB + 1, MIB + 512, 2 * MIB - 512, 3 * MIB + 777, 4 * MIB, 5 * MIB + 4096, 9 * MIB + 1),
)
NAMES = (
    ("d", "dd", "ddd", "dddd", "ddddd"),
    ("vda", "vda1", "vda10", "vda 1", "vd"),
    tuple("p" * 254 + letter for letter in "abcde"),
    ("ä", "ää", "ä.raw", "a,b", "a=b"),
)
SHORT, LONG = 120, 1000
__all__ = ["many_barriers"]

Read = Callable[[], bytes]


def converted(source: Path, from_format: str, target: Path, to_format: str) -> Path:
    command = ["qemu-img", "convert", "-f", from_format, "-O", to_format, source, target]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return target


class Case:
    """One migration, drawn from `seed`; a file is in `folder`, or in the memory file system of `memory`."""

    def __init__(self, seed: int, folder: Path, memory: Path) -> None:
        self.seed, self._folder, self._memory = seed, folder, memory
        self._rng = rng = random.Random(seed)
        self._stack = contextlib.ExitStack()
        self.words: list[str] = [f"seed {seed}"]
        self._disks: list[LocalBackend] = []
        self._targets: dict[str, Any] = {}
        self._read: dict[str, Read] = {}
        self._held: dict[str, bytes] = {}
        self._old: dict[str, str] = {}
        self._mode = rng.choice(("plain", "plain", "plain", "delta", "in_place"))
        self._verify = rng.random() < 0.7

    def _said(self, word: str) -> str:
        self.words.append(word)
        return word

    def _prepare(self) -> None:
        rng = self._rng
        names = list(rng.choice(NAMES)[: rng.choice((1, 1, 2, 3, 5))])
        rng.shuffle(names)
        for name in names:
            content = lab.random_disk(rng, rng.choice(SIZES))
            self._said(f"{name[-8:]!r} of {len(content)}")
            self._disks.append(self._keeping(self._stack.enter_context(self._source(name, content))))
            self._add_target(name, content)
        self._receiving = {
            "verify": self._verify,
            "direct": rng.random() < 0.2,
            "delta": self._old,
            "in_place": self._mode == "in_place",
        }
        self._chosen: dict[str, Any] = {
            "digests": self._verify,
            "granularity": rng.choice(("auto", 4096, 8192, 65536, MIB)),
            "compress": rng.choice(("auto", "zstd", "off")),
            "connections": rng.choice(("auto", 1, 2, 5, 16)),
            "reading": rng.choice(("auto", "inline", "parallel")),
            "writers_after": rng.choice(("release", "refuse")),
            "max_bandwidth": rng.choice((0, 0, 60 * MIB)),
            "zero_blocks": rng.random() < 0.9,
            "downtime_limit": 5,
        }
        self._cuts: list[tuple[int, cutter.How]] = []
        total = sum(disk.size for disk in self._disks)
        if self._mode == "plain" and rng.random() < 0.4:
            hows: tuple[cutter.How, ...] = ("reset", "end")
            self._cuts = [(rng.randrange(3000, max(total, 4000)), rng.choice(hows)) for _ in range(rng.randrange(1, 4))]
        self._uri = rng.choice(("tcp:127.0.0.1:0", f"unix:{self._folder}/s", "tcp:[::1]:0"))
        if self._cuts:
            self._uri = "tcp:127.0.0.1:0"
        self._said(f"{self._mode}, {self._uri}, {self._receiving}, {self._chosen}, {self._cuts}")

    def _path(self, text: str) -> Path:
        return (self._memory if "memory fs" in self.words[-1] else self._folder) / text.format(len(self._disks))

    def _source(self, name: str, content: bytes) -> Any:
        kinds = ["memory", "file", "file", "memory fs", "direct"]
        kinds += ["qcow2"] * (not len(content) % 512 and bool(content)) + ["nbd"] * bool(content)
        kind = self._said(self._rng.choice(kinds))
        if kind == "memory":
            return blkmig.MemoryBackend(bytearray(content), name=name)
        path = lab.sparse_file(self._path("s{}.raw"), content)
        if kind == "qcow2":
            image = converted(path, "raw", path.with_suffix(".qcow2"), "qcow2")
            return blkmig.open_disk(f"{image},format=qcow2", name=name)
        if kind == "nbd":
            server = self._stack.enter_context(nbd_servers.nbdkit("file", path))
            return blkmig.open_disk(server.uri, name=name)
        return blkmig.FileBackend(path, name=name, direct=kind == "direct")

    def _keeping(self, disk: Any) -> Any:
        """Have a disk keep what it holds when its writers are held."""
        hold = disk.hold_writers

        def held() -> None:
            hold()
            self._held[disk.name] = disk.pread(0, disk.size)

        disk.hold_writers = held
        return disk

    def _add_target(self, name: str, content: bytes) -> None:
        old = bytearray(content)
        for _ in range(5 * bool(content)):
            at = self._rng.randrange(len(old))
            old[at : at + 4096] = self._rng.randbytes(len(old[at : at + 4096]))
        are_sectors, has_bytes = not len(content) % 512, bool(content)
        images = ["qcow2"] * (are_sectors and has_bytes)
        written = ["memory", "file", "memory fs"] + ["nbd"] * has_bytes + images
        kinds = {
            "plain": [*written, "new", "new", "new, memory fs", "empty", *["new qcow2"] * are_sectors],
            "delta": ["new with old", "new with old, memory fs", "new"],
            "in_place": written,
        }
        kind = self._said(self._rng.choice(kinds[self._mode]))
        path = self._path("t{}.raw")
        self._targets[name], self._read[name] = path, path.read_bytes
        if "with old" in kind:
            self._old[name] = str(self._path("o{}.raw"))
            some = self._rng.choice((len(old), len(old), self._rng.randrange(len(old) + 1)))
            Path(self._old[name]).write_bytes(old[:some] + self._rng.randbytes(self._rng.choice((0, 0, 700))))
        elif kind == "memory":
            self._targets[name], self._read[name] = blkmig.MemoryBackend(old, name=name), lambda: bytes(old)
        elif "qcow2" in kind:
            image = path.with_suffix(".qcow2")
            if kind == "qcow2":
                path.write_bytes(old)
                converted(path, "raw", image, "qcow2")
            self._targets[name] = f"{image},format=qcow2"
            self._read[name] = lambda: converted(image, "qcow2", path, "raw").read_bytes()
        elif "new" not in kind:
            path.write_bytes(b"" if kind == "empty" else old)
            if kind == "nbd":
                self._targets[name] = self._stack.enter_context(nbd_servers.nbdkit("file", path)).uri

    def run(self) -> None:
        with self._stack:
            self._prepare()
            self._migrate()

    def _migrate(self) -> None:
        receiver = lab.Receiver(self._uri, self._targets, **self._receiving)
        uri = receiver.uri
        if self._cuts:
            uri = self._stack.enter_context(cutter.Cutter(uri, self._cuts)).uri
        migration = blkmig.outgoing(self._disks, uri, blkmig.MigrationParameters(**self._chosen))
        written = [disk for disk in self._disks if disk.size]
        is_verified = self._verify
        try:
            with writing(written, self.seed) if written else contextlib.nullcontext(), migration:
                migration.run()
        except errors.NotVerified:  # what is proven after the word is not proven again
            assert self._cuts
            is_verified = False
        assert migration.stats.verified == is_verified
        try:
            came = receiver.result()
            assert all(disk.verified == self._verify for disk in came.disks.values())
        except errors.NotVerified:
            assert not is_verified
        for disk in self._disks:
            assert self._read[disk.name]() == self._held.get(disk.name, b""), f"disk {disk.name[-8:]} differs"
        left = [path.name for folder in (self._folder, self._memory) for path in folder.iterdir()]
        assert not [name for name in left if name.startswith(".")]


@pytest.fixture
def memory_fs() -> Iterator[Path]:
    """Yield a folder whose file system is memory."""
    if not Path("/dev/shm").is_dir():
        peers.lacking("no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("part", range(4))
def test_any_disk_to_any_target(tmp_path: Path, memory_fs: Path, part: int, is_long: bool) -> None:
    first, count = (secrets.randbits(30), LONG) if is_long else (0, SHORT)
    for seed in range(first + part, first + count, 4):
        folders = tmp_path / str(seed), memory_fs / str(seed)
        for folder in folders:
            folder.mkdir()
        case = Case(seed, *folders)
        try:
            case.run()
        except (errors.MigrationError, AssertionError) as error:
            error.add_note("; ".join(case.words))
            raise
        for folder in folders:
            for path in folder.iterdir():
                path.unlink()
