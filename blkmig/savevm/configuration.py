# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration section: what the source's machine is, before anything else in the stream.

::

    07  u32 length, machine name  { 05  u8 length, name  u32 version  body }*

    configuration/target-page-bits   u32                                   RAM pages are 1 << bits bytes
    configuration/capabilities       u32 count, count * (u8 length, name)  x-ignore-shared, mapped-ram
    configuration/uuid               16 bytes

The subsections have no length of their own, so an unknown one cannot be skipped. They end where the next byte is not
05, which never starts a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import errors, params
from . import container

if TYPE_CHECKING:
    import uuid

    from ..channel import InputQEMUFile, OutputQEMUFile

MAX_CAPABILITIES: Final = 256
PAGE_BITS: Final = range(10, 25)
"""RAM records keep ten flag bits below the page address, so no page is smaller."""

DEFAULT_PAGE_BITS: Final = 12
FIXED_PAGE_BITS: Final = {"clipper": 13, "sun4u": 13, "sun4v": 13, "niagara": 13, "or1k-sim": 13}
"""Machines of the targets whose pages are always 8 KiB; they do not say so."""


class Configuration(NamedTuple):
    """The configuration section as read; the default is that of a stream without one."""

    machine: str | None = None
    """Machine type, None where the stream has no configuration section."""

    target_page_bits: int | None = None
    capabilities: tuple[str, ...] = ()
    vm_uuid: uuid.UUID | None = None

    @property
    def page_size(self) -> int:
        """Bytes of a RAM page."""
        implied = FIXED_PAGE_BITS.get(self.machine or "", DEFAULT_PAGE_BITS)
        return 1 << (self.target_page_bits or implied)


def put_configuration(f: OutputQEMUFile, machine: str) -> None:
    """Write a configuration section without subsections."""
    name = machine.encode()
    f.put_buffer(struct.pack(">BI", container.QEMU_VM_CONFIGURATION, len(name)) + name)


def get_configuration(f: InputQEMUFile) -> Configuration:
    """Read a configuration section; its type byte has been read."""
    found = Configuration(machine=_get_machine(f))
    seen: set[str] = set()
    while f.peek_byte() == container.QEMU_VM_SUBSECTION:
        position = f.position
        f.skip(1)
        name, version = get_counted_string(f), f.get_be32()
        if name not in _SUBSECTIONS or version != 1:
            raise errors.UnsupportedStream(
                f"unknown subsection {name!r}, version {version}, in the configuration section", position=position
            )
        if name in seen:
            raise errors.StreamError(f"subsection {name!r} comes twice", position=position)
        seen.add(name)
        field, read = _SUBSECTIONS[name]
        found = found._replace(**{field: read(f)})
    return found


def get_counted_string(f: InputQEMUFile) -> str:
    """Read u8 length and as many bytes; what is no UTF-8 is kept in escaped form."""
    return f.get_buffer(f.get_byte()).decode(errors="backslashreplace")


def _get_machine(f: InputQEMUFile) -> str:
    position = f.position
    length = f.get_be32()
    if length > params.MAX_MACHINE_NAME:
        raise errors.StreamError(f"the machine name claims {length} bytes", position=position)
    return f.get_buffer(length).decode(errors="backslashreplace")


def _get_page_bits(f: InputQEMUFile) -> int:
    position = f.position
    bits = f.get_be32()
    if bits not in PAGE_BITS:
        raise errors.StreamError(f"RAM pages of 2^{bits} bytes are impossible", position=position)
    return bits


def _get_capabilities(f: InputQEMUFile) -> tuple[str, ...]:
    position = f.position
    count = f.get_be32()
    if count > MAX_CAPABILITIES:
        raise errors.StreamError(f"the configuration section claims {count} capabilities", position=position)
    return tuple(get_counted_string(f) for _ in range(count))


def _get_uuid(f: InputQEMUFile) -> uuid.UUID:
    import uuid  # where it is used: few streams have one, and importing it takes 2 ms

    return uuid.UUID(bytes=f.get_buffer(16))


_SUBSECTIONS: Final[dict[str, tuple[str, Callable[[InputQEMUFile], Any]]]] = {
    "configuration/target-page-bits": ("target_page_bits", _get_page_bits),
    "configuration/capabilities": ("capabilities", _get_capabilities),
    "configuration/uuid": ("vm_uuid", _get_uuid),
}
