# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognise image formats that are not raw by their first bytes, or their last sector; files without a size, and those
for which a server answers.

Reading such a file as raw would copy its tables instead of the guest's disk, and writing it would destroy it. A raw
disk whose guest wrote such bytes itself is opened by saying that the format is raw.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .. import errors

_HEAD = (
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vmdk", 0, b"\xbe\xba\xfe\xca\0\0\0\0"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
)
_TAIL = (("vpc", b"conectix"), ("dmg", b"koly"))
_SECTOR = 512
_SERVED = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "lustre", "virtiofs")


def size_of(fd: int) -> int:
    """Return the size of a file. Raises OSError for one whose size is not what can be read, as in /proc and /sys.

    Behind the end of a file everything is zero: a file that says it has more bytes than it has would be sent so.
    """
    nbytes = os.fstat(fd).st_size
    if bool(nbytes) != bool(os.pread(fd, 1, max(nbytes - 1, 0))):
        raise OSError(errno.EINVAL, "its file system does not say how large it is: copy it into a file, and use that")
    return nbytes


def probe_format(fd: int, size: int) -> str:
    """Return the format, by QEMU's name for it, of the image of `size` bytes open at `fd`; "raw" if none is known."""
    head = os.pread(fd, _SECTOR, 0)
    for name, offset, magic in _HEAD:
        if head.startswith(magic, offset):
            return name
    tail = os.pread(fd, _SECTOR, size - _SECTOR) if size >= _SECTOR else b""
    return next((name for name, magic in _TAIL if tail.startswith(magic)), "raw")


def require_raw(fd: int, size: int, *, device: str) -> None:
    """Raise :class:`~blkmig.errors.FormatError` unless the image looks raw."""
    found = probe_format(fd, size)
    if found != "raw":
        raise errors.FormatError(
            "cannot be opened as a raw disk",
            device=device,
            cause=f"it looks like a {found} image; say format={found} to use it as one, or format=raw if it is a raw "
            f"disk whose contents happen to look so",
        )


def is_served(fd: int) -> bool:
    """Return whether another program or machine answers for the file system of a file: FUSE, NFS and others.

    Such a file is not mapped. If its server stops, the thread hangs that reads; one that meets a page which is not
    there may keep the lock of the process's memory meanwhile, and then no other thread can begin, or go on for long.
    """
    with contextlib.suppress(OSError):
        return file_system_of(os.fstat(fd).st_dev).startswith(_SERVED)
    return False


def file_system_of(device: int, process: Path = Path("/proc/self")) -> str:
    """Return the type of the file system with this `st_dev` as `process` has it mounted, say fuse.sshfs; "" for none.

    Asks no file system but /proc. Raises OSError.
    """
    for line in os.fsdecode((process / "mountinfo").read_bytes()).split("\n")[:-1]:
        mount, _, source = line.partition(" - ")
        major, minor = map(int, mount.split(" ")[2].split(":"))
        if os.makedev(major, minor) == device:
            return source.partition(" ")[0]
    return ""
