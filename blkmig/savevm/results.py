# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver says of the proofs of its source: how far it is with them, and what it has found.

::

    PROOF RESULT 0x8009   u8 outcome, u64 records, u64 due, u16 disk, u64 offset, u32 bytes, u16 n, n bytes of text
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from .. import errors, texts

MIG_RP_MSG_PROOF_RESULT: Final = 0x8009

MAX_TEXT: Final = 1000

_HEAD: Final = struct.Struct(">BQQHQIH")

LENGTHS: Final = {MIG_RP_MSG_PROOF_RESULT: (_HEAD.size, _HEAD.size + MAX_TEXT)}


class Outcome(enum.IntEnum):
    """What a receiver has found: not all yet, no difference, a difference, or that it cannot tell."""

    UNDER_WAY = 0
    EQUAL = 1
    DIFFERS = 2
    FAILED = 3


class ProofResult(NamedTuple):
    """How far a receiver is, or what it has found: the first difference, or why it cannot tell."""

    outcome: Outcome
    records: int = 0
    """Records PROOF that came."""

    due: int = 0
    """How many of them are still to be compared before the pause."""

    disk: int = 0
    """Its number in the table."""

    offset: int = 0
    nbytes: int = 0
    text: str = ""

    def encode(self) -> bytes:
        """Return the message's data; of a text that is too long, the beginning."""
        text = texts.cut(self.text, MAX_TEXT)
        numbers = self.outcome, self.records, self.due, self.disk, self.offset, self.nbytes
        return _HEAD.pack(*numbers, len(text)) + text


def parse_proof_result(data: bytes, position: int) -> ProofResult:
    """Return what a PROOF RESULT says. Raises :class:`~blkmig.errors.StreamError` for what no blkmig says."""
    outcome, records, due, disk, offset, nbytes, length = _HEAD.unpack_from(data)
    text = data[_HEAD.size :]
    if outcome not in iter(Outcome) or len(text) != length:
        raise errors.StreamError("what comes back from the target is no PROOF RESULT as it must be", position=position)
    said = texts.printable(text.decode("utf-8", "backslashreplace"))
    return ProofResult(Outcome(outcome), records, due, disk, offset, nbytes, said)
