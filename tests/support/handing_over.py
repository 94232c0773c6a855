# SPDX-License-Identifier: GPL-2.0-or-later
"""What a source says by hand that hands one disk `d` of 1 MiB over, and what a target says then."""

from __future__ import annotations

import struct
from typing import Any

import lab
import savevm_streams as streams
import scripted

from blkmig import savevm
from blkmig.block import ExtraKind, TableDisk, extra, records, table
from blkmig.savevm import words

ASKING = streams.HEADER + streams.configuration() + scripted.OPEN_RETURN_PATH + scripted.ASK
TABLE = table.encode([TableDisk(b"d", lab.MIB)])
ZERO = struct.pack(">Q", 9) + b"\x01d"
WHOLE = {"page_size": 4096, "devices": [], "blkmig": {
    "version": 2, "incremental": False, "disks": [{"name": "d", "size": lab.MIB, "resent": [0, 0]}]}}  # fmt: skip


def start(*behind_the_table: bytes) -> bytes:
    return streams.start(1, "blkmig", TABLE + b"".join(behind_the_table) + streams.EOS)


def part(*each: bytes) -> bytes:
    return streams.part(1, records(*each))


def end(number: int, about: dict[str, Any] = WHOLE) -> bytes:
    return part(extra(ExtraKind.END, savevm.End.encode(number, about)))


def commit(number: int, kind: int = 1) -> bytes:
    return part(extra(ExtraKind.COMMIT, struct.pack(">IB", number, kind)))


def ready(number: int) -> bytes:
    return scripted.message(words.MIG_RP_MSG_READY, number)


def done(number: int) -> bytes:
    return scripted.message(words.MIG_RP_MSG_DONE, words.Done(number).encode())
