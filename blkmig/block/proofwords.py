# SPDX-License-Identifier: GPL-2.0-or-later
"""How proofs travel: the bodies of the records EXTRA of the kinds PROOF and PROVEN.

::

    PROOF    u16 disk, u8 form, u64 block
             form 0, BLOCKS     32 bytes for each block from there on
             form 1, ZEROS      u64 count: so many blocks from there on hold zeros
             form 2, PIECES     u32 bytes, then 32 bytes for each piece of so many bytes of this one block
    PROVEN   u64 count          so many records PROOF have gone before; no more come

A disk is its number in the table. A hash is BLAKE3 of what lies inside the exact size. Of a block, the last PROOF
counts.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import Literal

from .. import _core, errors
from ..disk import geometry
from . import hashing

Form = Literal["blocks", "zeros", "pieces"]
_FORMS: tuple[Form, ...] = ("blocks", "zeros", "pieces")

MAX_BLOCKS = 4096
"""Hashes of blocks in one record."""

MIN_PIECE = 4096

_HEAD, _COUNT, _PIECE = struct.Struct(">HBQ"), struct.Struct(">Q"), struct.Struct(">I")


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """What a source says of `count` blocks of a disk from `block` on."""

    disk: int
    form: Form
    block: int
    count: int
    hashes: bytes = b""
    piece: int = _core.BLOCK_SIZE

    def encode(self) -> bytes:
        """Return the body of a PROOF."""
        head = _HEAD.pack(self.disk, _FORMS.index(self.form), self.block)
        if self.form == "zeros":
            return head + _COUNT.pack(self.count)
        return head + (_PIECE.pack(self.piece) if self.form == "pieces" else b"") + self.hashes


def decode(body: bytes, shapes: Sequence[geometry.BlockGeometry], position: int) -> Proof:
    """Return what the body of a PROOF says of disks of these shapes.

    Raises :class:`~blkmig.errors.StreamError` for what no blkmig says.
    """
    if len(body) < _HEAD.size:
        raise damaged("PROOF", position)
    disk, form, block = _HEAD.unpack_from(body)
    rest = body[_HEAD.size :]
    if disk >= len(shapes) or form >= len(_FORMS):
        raise damaged("PROOF", position)
    proof = _parse(disk, _FORMS[form], block, rest, position)
    if proof.count < 1 or block + proof.count > shapes[disk].nblocks:
        raise damaged("PROOF", position)
    if proof.form == "pieces":
        offset, nbytes = shapes[disk].block_range(block)
        pieces = -(-shapes[disk].clip(offset, nbytes) // proof.piece)
        if len(proof.hashes) != pieces * hashing.HASH_SIZE:
            raise damaged("PROOF", position)
    return proof


def _parse(disk: int, form: Form, block: int, rest: bytes, position: int) -> Proof:
    if form == "zeros":
        if len(rest) != _COUNT.size:
            raise damaged("PROOF", position)
        return Proof(disk, form, block, _COUNT.unpack(rest)[0])
    if form == "pieces":
        piece = _PIECE.unpack_from(rest)[0] if len(rest) >= _PIECE.size else 0
        if not MIN_PIECE <= piece <= _core.BLOCK_SIZE or piece & (piece - 1):
            raise damaged("PROOF", position)
        return Proof(disk, form, block, 1, rest[_PIECE.size :], piece)
    count, left = divmod(len(rest), hashing.HASH_SIZE)
    if left or count > MAX_BLOCKS:
        raise damaged("PROOF", position)
    return Proof(disk, form, block, count, rest)


def encode_proven(count: int) -> bytes:
    """Return the body of a PROVEN."""
    return _COUNT.pack(count)


def decode_proven(body: bytes, position: int) -> int:
    """Return how many records PROOF a PROVEN says there were."""
    if len(body) != _COUNT.size:
        raise damaged("PROVEN", position)
    return int(_COUNT.unpack(body)[0])


def damaged(name: str, position: int) -> errors.StreamError:
    """Return the error for a record that no blkmig writes."""
    return errors.StreamError(f"EXTRA {name} is not as it must be", position=position)
