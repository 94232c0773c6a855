#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""An nbdkit plugin for a raw file that keeps a dirty map, so that blkmig can migrate the file while it is written.

    nbdkit --unix nbd.sock --filter=pause python nbdkit_dirty_map.py file=disk.raw map=disk.map pause-control=pause.sock

    ME=$PWD/nbdkit_dirty_map.py
    blkmig send "dirtymap:disk.map,disk=disk.raw,hold=python3 $ME p pause.sock,release=python3 $ME r pause.sock" URI

The pause filter holds the clients and waits for what they have in flight: ``p`` pauses it, ``r`` resumes it. nbdkit
brings its own Python, so this file needs nothing but the standard library; the layout of the map is that of
blkmig.files.dirtymap.
"""

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import socket
import struct
import sys

API_VERSION = 2
GRANULARITY = 65536
MAP_OFFSET = 4096

paths: dict[str, pathlib.Path] = {}
disk = -1  # file descriptor
size = 0
dirty: mmap.mmap


def config(key: str, value: str) -> None:
    """Take file= and map=."""
    if key not in ("file", "map"):
        raise ValueError(f"unknown parameter {key}: say file=DISK map=MAP")
    paths[key] = pathlib.Path(value).absolute()


def config_complete() -> None:
    """Refuse to start without them."""
    if set(paths) != {"file", "map"}:
        raise ValueError("say file=DISK map=MAP")


def get_ready() -> None:
    """Open the disk and make its map, all clean."""
    global disk, size, dirty
    disk = os.open(paths["file"], os.O_RDWR)
    size = os.lseek(disk, 0, os.SEEK_END)
    length = MAP_OFFSET + -(-size // GRANULARITY)
    new = paths["map"].with_name(paths["map"].name + ".new")
    with new.open("w+b") as file:
        file.write(struct.pack("<8sIIQ", b"BLKDIRTY", 1, GRANULARITY, size))
        file.truncate(length)
        file.flush()
        dirty = mmap.mmap(file.fileno(), length)
    new.rename(paths["map"])


def mark(offset: int, count: int) -> None:
    """Say that a range was written: always after the write, also after one that failed."""
    first, last = offset // GRANULARITY, (offset + count - 1) // GRANULARITY
    dirty[MAP_OFFSET + first : MAP_OFFSET + last + 1] = b"\1" * (last - first + 1)


def thread_model() -> int:
    """Let nbdkit call from several threads at once; the plugin has no state that changes."""
    import nbdkit  # type: ignore[import-not-found] # only nbdkit has it

    return int(nbdkit.THREAD_MODEL_PARALLEL)


def open(readonly: bool) -> int:
    """Begin a client's connection."""
    return 1


def get_size(h: int) -> int:
    return size


def can_trim(h: int) -> bool:
    return True


def can_zero(h: int) -> bool:
    return True


def can_fua(h: int) -> int:
    import nbdkit

    return int(nbdkit.FUA_EMULATE)


def pread(h: int, buf: bytearray, offset: int, flags: int) -> None:
    view = memoryview(buf)
    while view:
        count = os.preadv(disk, [view], offset)
        if count == 0:
            raise OSError(errno.EIO, "the file has become shorter")
        view, offset = view[count:], offset + count


def pwrite(h: int, buf: bytes | bytearray, offset: int, flags: int) -> None:
    view = memoryview(buf)
    try:
        done = 0
        while done < len(view):
            done += os.pwrite(disk, view[done:], offset + done)
    finally:
        mark(offset, len(view))


def zero(h: int, count: int, offset: int, flags: int) -> None:
    pwrite_zeros(count, offset)


def trim(h: int, count: int, offset: int, flags: int) -> None:
    pwrite_zeros(count, offset)


def pwrite_zeros(count: int, offset: int) -> None:
    """Write zeros. A real server would punch a hole; the map does not care how."""
    for start in range(offset, offset + count, 1 << 20):
        pwrite(1, bytes(min(1 << 20, offset + count - start)), start, 0)


def flush(h: int, flags: int) -> None:
    os.fdatasync(disk)


def control(command: str, path: str) -> None:
    """Tell the pause filter at the socket `path` to pause (``p``) or to resume (``r``), and wait until it has."""
    with socket.socket(socket.AF_UNIX) as pause:
        pause.connect(path)
        pause.sendall(command.encode())
        answer = pause.recv(1).decode()
    if answer != command.upper():
        raise SystemExit(f"the pause filter at {path} answered {answer!r} to {command!r}")


if __name__ == "__main__" and len(sys.argv) == 3:  # nbdkit calls it that, too
    control(*sys.argv[1:])
