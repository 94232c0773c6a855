# SPDX-License-Identifier: GPL-2.0-or-later
"""Skipping the live sections that are not disks.

A live section has no length: to skip it is to parse it, as far as its lengths go. What is known here is every live
section that QEMU 2.2 to 9.0 writes beside `block`. A registered section of the same name takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .. import errors
from .handlers import SaveVMHandlers

if TYPE_CHECKING:
    from ..channel import InputQEMUFile
    from .configuration import Configuration

MAX_CHUNK: Final = 1 << 40
"""A length above this is taken for a broken stream. Nothing of it is ever held in memory."""


class NotSkippable(errors.UnsupportedStream):
    """From here on the section's payload has no lengths; whatever the stream holds after it is lost."""


def find_skipper(idstr: str, configuration: Configuration) -> SaveVMHandlers | None:
    """Return handlers whose `load_state` skips a section of this name, None if it is not a known one."""
    if idstr == "ram":
        from .skip_ram import RamSkipper  # here: disks alone come without it

        return RamSkipper(configuration)
    if idstr.endswith("/vfio"):
        return Skipper(idstr, 1, skip_vfio)
    if idstr in _SKIPPERS:
        version_id, skip_payload = _SKIPPERS[idstr]
        return Skipper(idstr, version_id, skip_payload)
    return None


class Skipper(SaveVMHandlers):
    """Handlers that skip payloads of versions up to `version_id`."""

    def __init__(self, idstr: str, version_id: int, skip_payload: Callable[[InputQEMUFile], None]) -> None:
        """Let `skip_payload` consume each payload."""
        self._idstr = idstr
        self._version_id = version_id
        self._skip_payload = skip_payload

    def load_state(self, f: InputQEMUFile, version_id: int) -> None:
        """Consume one payload."""
        if version_id > self._version_id:
            raise errors.UnsupportedStream(
                f"section {self._idstr!r} has version {version_id}, known is {self._version_id}", position=f.position
            )
        self._skip_payload(f)


# -- dirty-bitmap: {flags [u8+node] [u8+bitmap] [START | COMPLETE | BITS body]}* EOS -----------------------------------

BITMAP_EOS: Final = 0x01
BITMAP_ZEROES: Final = 0x02
BITMAP_BITMAP_NAME: Final = 0x04
BITMAP_DEVICE_NAME: Final = 0x08
BITMAP_START: Final = 0x10
BITMAP_BITS: Final = 0x40
BITMAP_EXTRA_FLAGS: Final = 0x80
_BITMAP_START_BODY: Final = 4 + 1  # granularity, flags
_BITMAP_RANGE: Final = 8 + 4  # first sector, sectors


def skip_dirty_bitmap(f: InputQEMUFile) -> None:
    """Consume a payload of `dirty-bitmap`."""
    flags = 0
    while not flags & BITMAP_EOS:
        flags = _get_bitmap_flags(f)
        for named in (BITMAP_DEVICE_NAME, BITMAP_BITMAP_NAME):
            if flags & named:
                f.skip(f.get_byte())
        if flags & BITMAP_START:
            f.skip(_BITMAP_START_BODY)
        elif flags & BITMAP_BITS:
            f.skip(_BITMAP_RANGE)
            if not flags & BITMAP_ZEROES:
                skip_chunk(f, "dirty-bitmap")


def _get_bitmap_flags(f: InputQEMUFile) -> int:
    """Read one byte of flags, two if its top bit is set, four if the second one's is too; the last has the flags."""
    flags = f.get_byte()
    if flags & BITMAP_EXTRA_FLAGS:
        flags = f.get_byte()
        if flags & BITMAP_EXTRA_FLAGS:
            flags = f.get_be16() & 0xFF
    return flags


# -- spapr/htab: START u32 shift; then u32 0, {u32 index, u16 nvalid, u16 ninvalid, nvalid * 16}*, zeros end -----

HASH_PTE_SIZE: Final = 16


def skip_spapr_htab(f: InputQEMUFile) -> None:
    """Consume a payload of `spapr/htab`: the hash page table of a POWER guest."""
    if f.get_be32() != 0:
        return
    while True:
        index, nvalid, ninvalid = f.get_be32(), f.get_be16(), f.get_be16()
        if index == nvalid == ninvalid == 0:
            return
        f.skip(nvalid * HASH_PTE_SIZE)


# -- s390-storage_attributes: {u64 flags; MORE: u64 length, bytes}* EOS ------------------------------------------------

STATTR_FLAG_EOS: Final = 0x01
STATTR_FLAG_MORE: Final = 0x02
STATTR_FLAG_DONE: Final = 0x08
_STATTR_FLAGS: Final = 0xFFF


def skip_s390_stattrib(f: InputQEMUFile) -> None:
    """Consume a payload of `s390-storage_attributes`."""
    while True:
        position = f.position
        flags = f.get_be64() & _STATTR_FLAGS
        if flags == STATTR_FLAG_EOS:
            return
        if flags == STATTR_FLAG_MORE:
            skip_chunk(f, "s390-storage_attributes")
        elif flags != STATTR_FLAG_DONE:
            raise errors.StreamError(f"section 's390-storage_attributes': unknown flags {flags:#x}", position=position)


# -- vfio: {u64 tag; DATA: u64 length, bytes}* END_OF_STATE ------------------------------------------------------------

VFIO_MIG_FLAG_END_OF_STATE: Final = 0xFFFFFFFFEF100001
VFIO_MIG_FLAG_DEV_CONFIG_STATE: Final = 0xFFFFFFFFEF100002
VFIO_MIG_FLAG_DEV_SETUP_STATE: Final = 0xFFFFFFFFEF100003
VFIO_MIG_FLAG_DEV_DATA_STATE: Final = 0xFFFFFFFFEF100004
VFIO_MIG_FLAG_DEV_INIT_DATA_SENT: Final = 0xFFFFFFFFEF100005


def skip_vfio(f: InputQEMUFile) -> None:
    """Consume a payload of a passed-through device's section; its configuration, at the very end, has no length."""
    while True:
        position = f.position
        tag = f.get_be64()
        if tag == VFIO_MIG_FLAG_END_OF_STATE:
            return
        if tag == VFIO_MIG_FLAG_DEV_DATA_STATE:
            skip_chunk(f, "vfio")
        elif tag == VFIO_MIG_FLAG_DEV_CONFIG_STATE:
            raise NotSkippable("a vfio device's configuration, which has no length", position=position)
        elif tag not in (VFIO_MIG_FLAG_DEV_SETUP_STATE, VFIO_MIG_FLAG_DEV_INIT_DATA_SENT):
            raise errors.StreamError(f"section of a vfio device: unknown tag {tag:#x}", position=position)


def skip_chunk(f: InputQEMUFile, idstr: str) -> None:
    """Consume u64 length and as many bytes."""
    position = f.position
    nbytes = f.get_be64()
    if nbytes > MAX_CHUNK:
        raise errors.StreamError(f"section {idstr!r} claims a chunk of {nbytes} bytes", position=position)
    f.skip(nbytes)


_SKIPPERS: Final[dict[str, tuple[int, Callable[[InputQEMUFile], None]]]] = {
    "dirty-bitmap": (1, skip_dirty_bitmap),
    "spapr/htab": (1, skip_spapr_htab),
    "s390-storage_attributes": (0, skip_s390_stattrib),
}
