# SPDX-License-Identifier: GPL-2.0-or-later
"""Images to migrate, and targets that show whether everything arrived.

An existing target is *stamped* before each run: a few bytes in every 1 MiB block are overwritten with what the source
does not have there, so a block that a side leaves out is found when the contents are compared. The page cache keeps the
rest warm. Data is random: nothing on the way may gain from zero pages or repetition.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import random
import shutil
import subprocess

import numpy

MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40
STAMP = b"stale!!\0" * 8


def create_random(path: pathlib.Path, size: int) -> pathlib.Path:
    """Write `size` bytes of random data."""
    generator = numpy.random.Generator(numpy.random.SFC64(size))
    with path.open("wb") as file:
        for _ in range(size // MiB):
            file.write(generator.bytes(MiB))
    return path


def create_text(path: pathlib.Path, size: int, every: int) -> pathlib.Path:
    """Write `size` bytes: one block of `every` so many is hexadecimal digits, which zstd halves, the others random."""
    generator = numpy.random.Generator(numpy.random.SFC64(size))
    with path.open("wb") as file:
        for block in range(size // MiB):
            file.write(generator.bytes(MiB) if block % every else generator.bytes(MiB // 2).hex().encode())
    return path


def create_rotated(path: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    """Copy `source` with every block in its neighbour's place: nothing is right, and it takes no time."""
    size = source.stat().st_size
    with source.open("rb") as file, path.open("wb") as copy:
        for start, end, to in ((MiB, size, 0), (0, min(MiB, size), max(0, size - MiB))):
            while start < end:
                done = os.copy_file_range(file.fileno(), copy.fileno(), end - start, start, to)
                start, to = start + done, to + done
    return path


def create_sparse(path: pathlib.Path, size: int, data: int, *, piece: int) -> pathlib.Path:
    """Make an image of `size` bytes: `data` bytes of random data in scattered pieces of `piece`, the rest holes."""
    places = random.Random(f"{size} {data} {piece}").sample(range(size // piece), data // piece)
    generator = numpy.random.Generator(numpy.random.SFC64(data))
    with path.open("wb") as file:
        file.truncate(size)
        for place in sorted(places):
            file.seek(place * piece)
            for _ in range(piece // MiB):
                file.write(generator.bytes(MiB))
    return path


def stamp(path: pathlib.Path) -> None:
    """Spoil every block of an existing target; its page cache stays as warm as it was."""
    with path.open("r+b", buffering=0) as file:
        for offset in range(MiB // 2, path.stat().st_size, MiB):
            os.pwrite(file.fileno(), STAMP, offset)


def renew(path: pathlib.Path, size: int) -> None:
    """Replace a target by a new one of `size` bytes that holds nothing."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def warm(path: pathlib.Path) -> None:
    """Bring the data of an image into the page cache."""
    buffer = bytearray(MiB)
    with path.open("rb", buffering=0) as file:
        for start, end in extents(file.fileno(), path.stat().st_size):
            for offset in range(start, end, MiB):
                os.preadv(file.fileno(), [buffer], offset)


def warm_memory(limit: int = 8 * GiB) -> None:
    """Touch memory that is free: what a virtual machine has given back is several times slower at its next use."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, max(MiB, min(limit, available // 2) // MiB * MiB)) as memory:
        pages = numpy.frombuffer(memory, dtype=numpy.uint8)[:: mmap.PAGESIZE]
        pages[:] = 1
        del pages


def extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Return what is not a hole."""
    found, offset = [], 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, offset))
    return found


class CannotRunHere(Exception):
    """This machine, or this kind of run, is not for whole copies; the text says why."""


def require_space(folder: pathlib.Path, nbytes: int) -> None:
    """Raise :class:`CannotRunHere` unless `folder` has room for `nbytes` and a reserve."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + GiB:
        needed = f"{nbytes / GiB:.1f} GiB and 1 GiB to spare are needed"
        raise CannotRunHere(f"{folder} has {free / GiB:.1f} GiB free; {needed}")


class Different(AssertionError):
    """The target does not hold what the source holds."""


def require_same(same: str, source: pathlib.Path, target: pathlib.Path, *, sample: int = MiB) -> None:
    """Raise :class:`Different` unless both files read the same; `same` is the compiled c/same.c.

    `sample`: compare only so many bytes of each block, where :func:`stamp` spoils it.
    """
    done = subprocess.run([same, str(source), str(target), str(sample)], capture_output=True, text=True)
    if done.returncode:
        raise Different(done.stderr.strip())
