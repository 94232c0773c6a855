# SPDX-License-Identifier: GPL-2.0-or-later
"""The file header: is this a migration stream at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .. import errors
from . import container

if TYPE_CHECKING:
    from ..channel import InputQEMUFile

HEADER_NBYTES: Final = 8
"""Magic and version: what a source says first, before it knows anything else."""

_OTHER_FILES: Final = {
    b"QFI\xfb": "a qcow2 image",
    b"KDMV": "a VMDK image",
    b"\x1f\x8b\x08": "a gzip file: decompress it first",
    b"\xfd7zX": "an xz file: decompress it first",
    b"\x28\xb5\x2f\xfd": "a zstd file: decompress it first",
    b"\x11\x22\x33\x44": "an extra connection of a multifd migration: switch the capability `multifd` off",
    b"Libv": "a libvirt save file",
}


def get_header(f: InputQEMUFile) -> int:
    """Read the file header and return the version of the stream, which is 3.

    Raises :class:`~blkmig.errors.StreamError`, with what the file is instead if that is easily seen.
    """
    magic = f.get_buffer(4)
    if magic != container.QEMU_VM_FILE_MAGIC:
        other = next((what for start, what in _OTHER_FILES.items() if magic.startswith(start)), None)
        hint = "" if other is None else f": this looks like {other}"
        raise errors.StreamError(f"not a migration stream, it starts with {magic.hex(' ')}{hint}", position=0)
    version = f.get_be32()
    if version == 2:
        raise errors.UnsupportedStream("stream version 2, obsolete since QEMU 0.10", position=4)
    if version != container.QEMU_VM_FILE_VERSION:
        raise errors.UnsupportedStream(f"stream version {version}, not 3", position=4)
    return version
