# SPDX-License-Identifier: GPL-2.0-or-later
"""The file behind a raw disk of a QEMU on this machine, read without QEMU.

The contents of a raw image in a plain file, without ``cache.direct``, are what the page cache holds, for QEMU and for
every other process. QEMU marks a write in its bitmaps after it has written it. So blkmig must read after it has taken
the marks, exactly as if it read through QEMU.

A QMP socket may lead anywhere: into a container, or through ssh to another machine, where the same name is another
file. So the name is not enough: a process that listens at that socket must have the file open.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import errors
from ..disk import identity
from ..files import probe, rawfile
from . import discover, graph

PROC = Path("/proc")


class ImageFile(rawfile.RawFile):
    """The file of `disk`, opened again through a descriptor of QEMU; `name` is QEMU's name for it.

    No lock is taken, because QEMU holds its own, and knows of blkmig.
    """

    def __init__(self, name: str, descriptor: Path, *, disk: discover.QemuDisk) -> None:
        super().__init__(str(descriptor), device=disk.name, writable=False, format="raw", permissions=None)
        self.name = name
        self.known = identity.KnownFile.of(name if name.startswith("/") else descriptor, fd=self.fd)  # QEMU tracks it


def open_files(
    socket_path: str, facts: graph.BlockGraph, disks: Sequence[discover.QemuDisk]
) -> Iterator[ImageFile | None]:
    """Open the file of each disk of the QEMU at `socket_path`; None if it is not certainly that file, or not
    readable."""
    names = [file_name(facts, disk.node) for disk in disks]
    processes = [_Process(folder) for folder in users_of(socket_path)] if any(names) else []
    for disk, name in zip(disks, names, strict=True):
        yield None if name is None else _open_one(processes, name, disk)


def _open_one(processes: Sequence[_Process], name: str, disk: discover.QemuDisk) -> ImageFile | None:
    for process in processes:
        with contextlib.suppress(OSError, errors.DeviceError):  # the process may end, or belong to another user
            wanted = process.stat(name)
            descriptor = process.descriptor_of(wanted)
            if descriptor is not None:
                file = ImageFile(name, descriptor, disk=disk)
                if file.size == disk.size and os.path.samestat(os.fstat(file.fd), wanted):  # not another one by now
                    return file
                file.close()
    return None


def absolute_names(socket_path: str, names: list[str]) -> list[str]:
    """Return the names of files of the QEMU at `socket_path`, with its current folder before the relative ones.

    A relative name stays as it is if this process may not look at that QEMU.
    """
    if all(name.startswith("/") for name in names):
        return names
    folders: list[Path] = []
    for process in users_of(socket_path):
        with contextlib.suppress(OSError):
            folders.append((process / "cwd").readlink())
    found = [name for name in names if name.startswith("/") or not folders]
    return found + [str(folder / name) for name in names if not name.startswith("/") for folder in folders]


def file_name(facts: graph.BlockGraph, node: str) -> str | None:
    """Return the name of the file whose bytes are those of `node`; None if there is none, or not in the page cache."""
    entry, children = facts.nodes.get(node, {}), [facts.nodes.get(name, {}) for name in facts.children(node)]
    if [part.get("drv") for part in (entry, *children)] != ["raw", "file"]:
        return None
    [child] = children
    is_plain = entry["file"] == child["file"]  # with an offset or a size of its own QEMU writes json:{...}
    return str(child["file"]) if is_plain and not child["cache"]["direct"] else None


def users_of(socket_path: str) -> Iterator[Path]:
    """Yield the processes, as folders of /proc, that have a socket of that path: QEMU, maybe its parent, too."""
    path, rows = Path(socket_path).resolve(), []
    with contextlib.suppress(OSError):
        listed = os.fsdecode((PROC / "net" / "unix").read_bytes())
        rows = [line.split(maxsplit=7) for line in listed.split("\n")]
    named = (row for row in rows if len(row) == 8 and row[7].endswith(path.name))
    wanted = {f"socket:[{row[6]}]" for row in named if Path(row[7]).resolve() == path}
    for process in PROC.iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # somebody else's, or gone
                if any(target in wanted for target in _descriptors(process)):
                    yield process


def _descriptors(process: Path) -> Iterator[str]:
    """Yield what the descriptors of a process lead to. A machine has thousands: no object is made for each."""
    folder = f"{process}/fd/"
    for number in os.listdir(folder):  # noqa: PTH208
        yield os.readlink(folder + number)  # noqa: PTH115


class _Process:
    """The open files of a process, a folder of /proc. They are listed once, because that takes a while."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_fuse: dict[int, bool] = {}
        self._open: dict[tuple[int, int], list[Path]] = {}
        with contextlib.suppress(OSError):  # somebody else's, or gone
            for entry in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed since it was listed
                    about = entry.stat()
                    self._open.setdefault((about.st_dev, about.st_ino), []).append(entry)

    def stat(self, name: str) -> os.stat_result:
        """Return the stat of `name` as that process sees it. Raises OSError."""
        return (self._folder / "cwd" / name).stat()

    def descriptor_of(self, wanted: os.stat_result) -> Path | None:
        """Return a descriptor of that plain file; None if there is none, or one that bypasses the page cache."""
        if not stat.S_ISREG(wanted.st_mode) or self._is_on_fuse(wanted.st_dev):
            return None
        found = self._open.get((wanted.st_dev, wanted.st_ino), [])
        is_cached = not any(_flags(self._folder / "fdinfo" / entry.name) & os.O_DIRECT for entry in found)
        return found[0] if found and is_cached else None

    def _is_on_fuse(self, device: int) -> bool:
        if device not in self._is_fuse:
            self._is_fuse[device] = is_on_fuse(self._folder, device)
        return self._is_fuse[device]


def is_on_fuse(process: Path, device: int) -> bool:
    """Return whether a file system is FUSE. Its server may have some openings of a file bypass the page cache."""
    return probe.file_system_of(device, process).startswith("fuse")


def _flags(fdinfo: Path) -> int:
    """Return the flags that a descriptor was opened with."""
    fields = dict(line.split(":\t", 1) for line in fdinfo.read_text().splitlines() if ":\t" in line)
    return int(fields["flags"], 8)
