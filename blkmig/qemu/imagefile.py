# SPDX-License-Identifier: GPL-2.0-or-later
"""The file behind a raw disk of a QEMU on this machine: what QEMU would read for us, read without QEMU.

A raw image on a plain file, without ``cache.direct``, is what the page cache says it is, for QEMU and for everybody
else. What QEMU's bitmaps have marked was written there before it was marked, so our reads need to come after the
marks, as reads through QEMU do; nothing else changes.

A QMP socket may lead anywhere: into a container, or through ssh to another machine, where a file of the same name is
another one. So its name alone is not enough: a process that listens at that socket must have the file open.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .. import errors
from ..disk import identity
from ..files import rawfile
from . import discover, graph

_PROC = Path("/proc")


class ImageFile(rawfile.RawFile):
    """The file that `disk` is, opened again through a descriptor of QEMU's; `name` is what QEMU calls it.

    No lock is taken: QEMU holds its own, and knows of us.
    """

    def __init__(self, name: str, descriptor: Path, *, disk: discover.QemuDisk) -> None:
        super().__init__(str(descriptor), device=disk.name, writable=False, format="raw", permissions=None)
        self.name = name
        self.known = identity.KnownFile.of(name if name.startswith("/") else descriptor, fd=self.fd)  # QEMU tracks it


def open_file(socket_path: str, facts: graph.BlockGraph, disk: discover.QemuDisk) -> ImageFile | None:
    """Open the file of a disk of the QEMU at `socket_path`; None unless it is sure to be that one, and readable."""
    name = file_name(facts, disk.node)
    if name is None:
        return None
    for process in _users_of(socket_path):
        with contextlib.suppress(OSError, errors.DeviceError):  # it may end, or be none of ours to look into
            descriptor = _descriptor_of(process, name)
            if descriptor is not None:
                file = ImageFile(name, descriptor, disk=disk)
                if file.size == disk.size:
                    return file
                file.close()
    return None


def file_name(facts: graph.BlockGraph, node: str) -> str | None:
    """Return the name of the file whose bytes are those of `node`; None if they are not, or not in the page cache."""
    entry, children = facts.nodes.get(node, {}), [facts.nodes.get(name, {}) for name in facts.children(node)]
    if [part.get("drv") for part in (entry, *children)] != ["raw", "file"]:
        return None
    [child] = children
    is_plain = entry["file"] == child["file"]  # with an offset or a size of its own QEMU writes json:{...}
    return str(child["file"]) if is_plain and not child["cache"]["direct"] else None


def _users_of(socket_path: str) -> Iterator[Path]:
    """Yield the processes, as folders of /proc, that have a socket of that path: QEMU, maybe also who started it."""
    path, rows = Path(socket_path).resolve(), []
    with contextlib.suppress(OSError):
        rows = [line.split(maxsplit=7) for line in (_PROC / "net" / "unix").read_text().splitlines()]
    named = (row for row in rows if len(row) == 8 and row[7].endswith(path.name))
    wanted = {f"socket:[{row[6]}]" for row in named if Path(row[7]).resolve() == path}
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # somebody else's, or gone
                if any(str(descriptor.readlink()) in wanted for descriptor in (process / "fd").iterdir()):
                    yield process


def _descriptor_of(process: Path, name: str) -> Path | None:
    """Return a descriptor of the plain file `name` in that process; None if it has none, or one past the page cache."""
    wanted = (process / "cwd" / name).stat()
    if not stat.S_ISREG(wanted.st_mode) or _is_on_fuse(process, wanted.st_dev):
        return None
    found = [entry for entry in (process / "fd").iterdir() if _is_open_at(entry, wanted)]
    is_cached = not any(_flags(process / "fdinfo" / entry.name) & os.O_DIRECT for entry in found)
    return found[0] if found and is_cached else None


def _is_open_at(descriptor: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(FileNotFoundError):  # closed since it was listed
        return os.path.samestat(descriptor.stat(), wanted)
    return False


def _is_on_fuse(process: Path, device: int) -> bool:
    """Return whether a file system is FUSE, whose server may pass the page cache by for one of two openings."""
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        major, minor = map(int, mount.split()[2].split(":"))
        if os.makedev(major, minor) == device:
            return source.startswith("fuse")
    return False


def _flags(fdinfo: Path) -> int:
    """Return the flags that a descriptor was opened with."""
    fields = dict(line.split(":\t", 1) for line in fdinfo.read_text().splitlines() if ":\t" in line)
    return int(fields["flags"], 8)
