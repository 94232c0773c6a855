# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of every local kind with known contents, for tests that hold for all of them."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import peers

from blkmig import disk, files

MiB = 1 << 20
SIZES = [512, 1000, MiB - 512, MiB, MiB + 512, 3 * MiB + 1000, 4 * MiB + 77 * 512]
KINDS = ["file", "direct", "overlay", "overlay of a short base", "device", "memory", "mmap"]


def patchy(rng: random.Random, size: int) -> bytes:
    """Return `size` bytes with data in some places and zeros in others."""
    contents = bytearray(size)
    for _ in range(rng.randrange(4)):
        start = rng.randrange(size)
        nbytes = min(size - start, rng.randrange(1, 200_000))
        contents[start : start + nbytes] = rng.randbytes(nbytes)
    return bytes(contents)


def write_sparse(path: Path, contents: bytes) -> None:
    """Write a file whose zeros are holes, as far as 4 KiB blocks allow."""
    with path.open("wb") as file:
        for start in range(0, len(contents), 4096):
            part = contents[start : start + 4096]
            if any(part):
                file.seek(start)
                file.write(part)
        file.truncate(len(contents))


@contextlib.contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    """Show the file at `path` as a block device for the length of a ``with``."""
    peers.require("losetup")
    setup = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True, check=False)
    if setup.returncode:
        peers.lacking(f"no loop devices: {setup.stderr.strip()}")
    device = setup.stdout.strip()
    try:
        # Whoever made the device read-only before is remembered by it: that outlives a detach.
        if not {"-r", "--read-only"} & set(options):
            subprocess.run(["blockdev", "--setrw", device], check=True)
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mounted(image: Path, folder: Path, size: int) -> Iterator[None]:
    """Mount a new file system at `folder` that the file `image` holds, of `size` bytes, below a loop device."""
    peers.require("mkfs.ext4", "mount")
    if os.getuid() != 0:
        peers.lacking("mounting a file system takes root")
    with image.open("wb") as file:
        file.truncate(size)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with loop_device(image) as device:
        done = subprocess.run(["mount", device, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            peers.lacking(f"no file system can be mounted: {done.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)  # the errors of a test keep its disks


@contextlib.contextmanager
def mounted_memory(folder: Path, size: int, *, inodes: int = 0) -> Iterator[None]:
    """Mount a new tmpfs of `size` bytes at `folder`, for so many files and folders, itself included, 0: for any."""
    peers.require("mount")
    if os.getuid() != 0:
        peers.lacking("mounting a file system takes root")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        peers.lacking(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def open_disk(kind: str, folder: Path, contents: bytes, *, below: bytes = b"") -> Iterator[disk.LocalBackend]:
    """Open a disk of `kind` that shows `contents`, or for an overlay shows them where `below` is not shown."""
    path = folder / f"{kind}.raw"
    with contextlib.ExitStack() as stack:
        backend: disk.LocalBackend
        if kind == "memory":
            backend = files.MemoryBackend(bytearray(contents), name=kind)
        elif kind == "mmap":
            buffer = mmap.mmap(-1, len(contents))
            buffer[:] = contents
            backend = files.MemoryBackend(buffer, name=kind)
        else:
            write_sparse(path, contents)
            if kind == "device":
                backend = files.FileBackend(stack.enter_context(loop_device(path)), name=kind)
            elif kind.startswith("overlay"):
                write_sparse(folder / "base.raw", below)
                backend = files.FileBackend(path, name=kind, base=folder / "base.raw")
            else:
                backend = files.FileBackend(path, name=kind, direct=kind == "direct")
        yield stack.enter_context(backend)
