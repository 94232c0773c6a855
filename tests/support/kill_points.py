# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of two blkmigs, by the bytes that either end puts, and the migrations in which all of them are said."""

from __future__ import annotations

import pathlib
import random
import re
import shutil
import struct
from typing import NamedTuple

from blkmig import block, savevm
from blkmig.block import wire
from blkmig.savevm import bundles, container, digestwords, results, sessions, words

MIB = 1 << 20
IN_DOUBT = 7
LISTENS = "listening on", "its source is waited for"
"""What a receiver says that can be reached: for a migration, or by the source of disks that were taken."""

TAKEN = "the target has taken everything and is complete"
"""What a source says that has given its disk away, and fails all the same."""

RECOVERIES = ("resume", "anew", "changed")
"""What happens when one end was killed: both go on at once; both begin anew; the target is changed, and both go on."""


class Kind(NamedTuple):
    """A kind of migration: what both ends are told, and what has happened before."""

    send: tuple[str, ...] = ()
    receive: tuple[str, ...] = ()
    is_resumed: bool = False
    """A sender was killed before, and this one goes on."""

    loses_at: str = ""
    """The link is lost behind this message, and is opened again."""

    is_stopped: bool = False
    """The sender is told to stop behind its FLUSH, as by an operator: then it says good-bye."""

    is_refused: bool = False
    """The first receiver is to verify, and the sender is not: that ends with ERROR and SHUT."""

    only: tuple[str, ...] = ()
    """The messages for which it is there; none: all."""

    @property
    def moves(self) -> bool:
        """Whether the source gives its disk away."""
        return "--move" in self.send


KINDS = {
    "move": Kind(("--move",)),
    "copy": Kind(),
    "proven move": Kind(("--move", "--verify"), ("--verify",)),
    "proven copy": Kind(("--verify",), ("--verify",)),
    "resumed": Kind(("--move",), is_resumed=True),
    "link lost": Kind(("--move",), loses_at="COMMIT"),
    "connections": Kind(("--move", "--connections=3")),
    "stopped": Kind(("--move",), is_stopped=True, only=("goodbye",)),
    "refused": Kind(("--move",), is_refused=True, only=("ERROR", "SHUT")),
}

BLOCKS = {
    "put_block": "DEVICE_BLOCK",
    "put_file_blocks": "blocks",
    "put_zero_records": "ZERO_BLOCK",
    "put_pack": "PACK",
    "put_pack_header": "PACK",
}
"""Names of what is put by calls of its own."""

ANSWERS = {
    1: "SHUT",
    2: "PONG",
    words.MIG_RP_MSG_HELLO: "HELLO",
    words.MIG_RP_MSG_REPLY: "REPLY",
    words.MIG_RP_MSG_READY: "READY",
    words.MIG_RP_MSG_ERROR: "ERROR",
    words.MIG_RP_MSG_ACK: "ACK",
    words.MIG_RP_MSG_SESSION: "SESSION",
    words.MIG_RP_MSG_DONE: "DONE",
    words.MIG_RP_MSG_ALIVE: "ALIVE",
    digestwords.MIG_RP_MSG_DIGEST: "DIGEST",
    results.MIG_RP_MSG_PROOF_RESULT: "PROOF RESULT",
    bundles.MIG_RP_MSG_BUNDLE_READY: "BUNDLE READY",
    bundles.MIG_RP_MSG_BUNDLED: "BUNDLED",
    sessions.MIG_RP_MSG_RESUMED: "RESUMED",
}
PINGS = {savevm.ASK: "PING blk2", savevm.ASK_ALIVE: "PING aliv", savevm.ASK_TREES: "PING tree"}
SECTIONS = {
    container.QEMU_VM_SECTION_START: "START",
    container.QEMU_VM_SECTION_PART: "PART",
    container.QEMU_VM_SECTION_END: "section's end",
    container.QEMU_VM_VMDESCRIPTION: "description",
    container.QEMU_VM_CONFIGURATION: "configuration",
    container.QEMU_VM_SECTION_FOOTER: "",
}
RECORDS = {
    wire.FLAG_TABLE: "TABLE",
    wire.FLAG_FLUSH: "FLUSH",
    wire.FLAG_BARRIER: "BARRIER",
    2: "PART",
}

TOLD = "in doubt no more"
"""What a source says that has asked, and was told that the disk has moved."""

SETTLED = "To receive other disks over these, say the same once more"
"""What a receiver says that has found what became of a disk before."""

INSTRUCTIONS = re.compile(
    "look on the target|do not use|let the source's writers go on|say the same once more|migrate again|"
    "its own message says|start this command again|the target's messages",
    re.IGNORECASE,
)
"""One of these is in a message of doubt: what to do."""


def name_of(end: str, data: bytes) -> str:
    """Return what `data`, which an end puts at once, begins with; "" for what belongs to the message before it."""
    if end == "receive":
        (kind,) = struct.unpack_from(">H", data)
        return ANSWERS.get(kind, hex(kind))
    magic = data[:4]
    if magic == savevm.AGAIN_MAGIC:
        return "blkS" if struct.unpack_from(">I", data, savevm.AGAIN_NBYTES - 4)[0] else "goodbye"
    if magic in (savevm.QEMU_VM_FILE_MAGIC, savevm.RESUME_MAGIC, bundles.BUNDLE_MAGIC):
        return magic.decode()
    if data[0] == container.QEMU_VM_COMMAND:
        return _name_of_command(data)
    if data[0] == 0:
        return _name_of_record(data)
    section = SECTIONS.get(data[0], hex(data[0]))
    return _name_of_record(data[5:]) if section == "PART" and len(data) > 5 else section


def _name_of_command(data: bytes) -> str:
    (number,) = struct.unpack_from(">H", data, 1)
    if number == container.MIG_CMD_PING:
        (value,) = struct.unpack_from(">I", data, 5)
        return PINGS.get(value, hex(value))
    return container.COMMAND_NAMES.get(number, str(number))


def _name_of_record(data: bytes) -> str:
    (word,) = struct.unpack_from(">Q", data)
    flags, number = word & 0x1FF, word >> 9
    return block.ExtraKind(number).name if flags == wire.FLAG_EXTRA else RECORDS.get(flags, hex(flags))


def make_source(path: pathlib.Path, rng: random.Random) -> None:
    """Make a disk of data, zeros, a hole and a block with holes, whose size is not a whole number of blocks."""
    with path.open("wb") as source:
        source.write(rng.randbytes(MIB) + bytes(MIB) + rng.randbytes(2 * MIB))
        source.seek(4 * MIB + 256 * 1024)
        source.write(rng.randbytes(64 * 1024))
        source.seek(6 * MIB)
        source.write(rng.randbytes(700))


def faults_of(code: int | None, said: str) -> list[str]:
    """Return what is wrong with how a command has ended, whatever has happened to it."""
    found = []
    if code is not None and code not in (*range(8), 128 + 15, -9):
        found.append(f"crashes, exit code {code}")
    if "Traceback" in said or "Exception ignored" in said:
        found.append("shows a traceback")
    if code is not None and code > 0 and "blkmig: " not in said:
        found.append("does not say why")
    if code == IN_DOUBT and not INSTRUCTIONS.search(said):
        found.append("is in doubt, and does not say what to do")
    return found


def remove(place: pathlib.Path) -> None:
    """Remove a folder and all in it."""
    shutil.rmtree(place)
