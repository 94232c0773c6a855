# SPDX-License-Identifier: GPL-2.0-or-later
"""The container of a migration stream: its record types, and what depends on the machine type.

::

    "QEVM" u32 version                                     file header
    07 configuration                                       machines of 2.4 and later
    { 01 START | 02 PART | 03 END | 04 FULL                 sections: header, payload, [7e footer]
    | 08 command }*
    00                                                     end of file
    06 u32 length, JSON                                    description of the devices, machines of 2.3 and later

Section headers: START and FULL are type, u32 section id, u8 length + idstr, u32 instance, u32 version;
PART and END are type, u32 section id. A footer is 7e and the same section id. All integers are big-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .. import errors
from . import bundles

if TYPE_CHECKING:
    from ..channel import InputQEMUFile
    from ..params import MachineCompat

QEMU_VM_FILE_MAGIC: Final = b"QEVM"
QEMU_VM_FILE_VERSION: Final = 3

QEMU_VM_EOF: Final = 0x00
QEMU_VM_SECTION_START: Final = 0x01
QEMU_VM_SECTION_PART: Final = 0x02
QEMU_VM_SECTION_END: Final = 0x03
QEMU_VM_SECTION_FULL: Final = 0x04
QEMU_VM_SUBSECTION: Final = 0x05
QEMU_VM_VMDESCRIPTION: Final = 0x06
QEMU_VM_CONFIGURATION: Final = 0x07
QEMU_VM_COMMAND: Final = 0x08
QEMU_VM_SECTION_FOOTER: Final = 0x7E

GIVEN_UP: Final = bytes((QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION, 0, 0, 0, 2)) + b"{}"
"""The end of a stream whose sections have none: its source has given up, between two records."""

NOTHING: Final = QEMU_VM_FILE_MAGIC + QEMU_VM_FILE_VERSION.to_bytes(4, "big") + GIVEN_UP
"""A stream whose source has given up before it has begun one."""

MIG_CMD_OPEN_RETURN_PATH: Final = 1
MIG_CMD_PING: Final = 2
MIG_CMD_PACKAGED: Final = 7

COMMAND_NAMES: Final = {
    1: "OPEN_RETURN_PATH",
    2: "PING",
    3: "POSTCOPY_ADVISE",
    4: "POSTCOPY_LISTEN",
    5: "POSTCOPY_RUN",
    6: "POSTCOPY_RAM_DISCARD",
    7: "PACKAGED",
    8: "ENABLE_COLO",
    9: "POSTCOPY_RESUME",
    10: "RECV_BITMAP",
    bundles.MIG_CMD_BUNDLE: "BUNDLE",
}
"""Numbers since QEMU 3.1; in 3.0, 8 and 9 are POSTCOPY_RESUME and RECV_BITMAP."""

COMMAND_LENGTHS: Final = {MIG_CMD_OPEN_RETURN_PATH: 0, MIG_CMD_PING: 4, MIG_CMD_PACKAGED: 4} | {
    bundles.MIG_CMD_BUNDLE: bundles.BODY_NBYTES
}
"""Bytes of data of the commands that are understood. A package's content comes behind its command."""


class ContainerFormat(NamedTuple):
    """Which optional parts of the container a stream is written with. The default suits every QEMU since 2.4."""

    machine: str = ""
    """Machine type in the configuration section; every QEMU takes "" (it compares as far as the name goes)."""

    configuration: bool = True
    footers: bool = True
    vmdescription: bool = True

    @classmethod
    def for_machine_compat(cls, machine_compat: MachineCompat | None, *, machine: str = "") -> ContainerFormat:
        """Return what a loader whose machine type is as old as `machine_compat` expects; None is 2.4 and later."""
        modern = machine_compat is None
        return cls(machine=machine, configuration=modern, footers=modern, vmdescription=machine_compat != "2.2")


def check_command(command: int, nbytes: int, position: int) -> None:
    """Raise :class:`~blkmig.errors.StreamError` unless `nbytes` is what the command's data must have."""
    expected = COMMAND_LENGTHS.get(command, nbytes)
    if nbytes != expected:
        raise errors.StreamError(
            f"command {COMMAND_NAMES[command]} has {nbytes} bytes of data, not {expected}", position=position
        )


def looks_like_footer(f: InputQEMUFile) -> bool:
    """Tell whether a section footer stands where a payload's next word should: the source closed the section early.

    QEMU does that when it cannot read its disk: footer, no EOS word, end of stream. One byte decides: 7e as the top
    byte of a word would be an address near 2^63. Blocks until a byte is there; nothing is consumed.
    """
    return f.peek_byte() == QEMU_VM_SECTION_FOOTER
