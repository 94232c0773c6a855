# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that keeps a log of every write to it and of every flush, and what is left of it when the power is lost.

A qemu-storage-daemon mounts the file by FUSE, above its driver ``blklogwrites``. The log is as dm-log-writes has it.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import peers
import storage_daemon

SECTOR = 512
_ENTRY = struct.Struct("<4Q")
_FLUSH, _DISCARD = 1, 4

Write = tuple[int, bytes] | None
"""An offset and what was written there; None is a flush, which everything before it has reached."""


class LoggedFile:
    """The file at `path`, of so many bytes, all zero at first."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path, self.size = folder / "mounted.raw", size
        self._log = folder / "log"

    @property
    def log_length(self) -> int:
        """How long the log is by now."""
        return self._log.stat().st_size

    def writes(self, length: int) -> list[Write]:
        """Return what the log's first `length` bytes hold."""
        log, found, position = self._log.read_bytes()[:length], [], SECTOR
        while position + SECTOR <= len(log):
            sector, sectors, flags, _ = _ENTRY.unpack_from(log, position)
            position += SECTOR
            nbytes = sectors * SECTOR
            if flags & _FLUSH:
                found.append(None)
            if flags & _DISCARD:
                found.append((sector * SECTOR, bytes(nbytes)))
            elif nbytes:
                found.append((sector * SECTOR, log[position : position + nbytes]))
                position += nbytes
        return found


def after_power_loss(size: int, writes: list[Write], rng: random.Random) -> bytearray:
    """Return what a disk holds after these writes: all before the last flush, and of the others any sectors."""
    disk = bytearray(size)
    flushed = max((number for number, write in enumerate(writes) if write is None), default=-1)
    kept = rng.random()
    for number, write in enumerate(writes):
        if write is None:
            continue
        offset, data = write
        for start in range(0, len(data), len(data) if number < flushed else SECTOR):
            if number < flushed or rng.random() < kept:
                piece = data if number < flushed else data[start : start + SECTOR]
                disk[offset + start : offset + start + len(piece)] = piece
    return disk


def _failing(number: int) -> str:
    """Return the options that have blkdebug fail one flush: each flush before it is a state of its own."""
    event = "event=flush_to_disk"
    options = []
    for before in range(1, number):
        rule = f"set-state.{before - 1}"
        options += [f"{rule}.{event}", f"{rule}.state={before}", f"{rule}.new_state={before + 1}"]
    if number:
        options.append(f"inject-error.0.{event},inject-error.0.state={number},inject-error.0.once=on")
    return "".join(f",{option}" for option in options)


@contextlib.contextmanager
def logged_file(size: int, *, failing_flush: int = 0) -> Iterator[LoggedFile]:
    """Mount such a file, of whose flushes this one fails with EIO (0: none does); skip where that cannot be."""
    peers.require("qemu-storage-daemon")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
        peers.lacking("/dev/fuse, and root to mount a file")
    with tempfile.TemporaryDirectory() as folder:
        file = LoggedFile(Path(folder), size)
        for name, nbytes in (("base", size), ("log", 0), ("mounted.raw", 0)):
            with (Path(folder) / name).open("wb") as made:
                made.truncate(nbytes)
        with storage_daemon.StorageDaemon(
            Path(folder),
            *("--blockdev", f"file,node-name=file,filename={folder}/base"),
            *("--blockdev", f"blkdebug,node-name=base,image=file{_failing(failing_flush)}"),
            *("--blockdev", f"file,node-name=log,filename={folder}/log"),
            *("--blockdev", "blklogwrites,node-name=logged,file=base,log=log"),
            *("--export", f"fuse,id=mounted,node-name=logged,mountpoint={file.path},writable=on"),
            nbd_server=False,
        ) as daemon:
            try:
                yield file
            finally:
                daemon.process.terminate()  # on its way out it unmounts the file
                daemon.process.wait(30)
