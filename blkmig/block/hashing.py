# SPDX-License-Identifier: GPL-2.0-or-later
"""BLAKE3, which two blkmigs compare their disks with. It is a library of its own, and only they need it.

It comes with ``pip install 'blkmig[verify]'``. What a QEMU, an older blkmig or a file gets are the digests of
`digests`, for which Python has all it takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_SIZE = 32
"""Bytes of a hash. The wire fixes it: whoever could choose it could choose a length that proves nothing."""

MISSING = "the Python library blake3 is missing: pip install 'blkmig[verify]'"


def _library() -> Any:
    """Return the library; raises ImportError. After the first time it is a look into a dictionary."""
    return importlib.import_module("blake3")


def can_hash() -> bool:
    """Return whether `hash_of` can do its work here."""
    try:
        _library()
    except ImportError:
        return False
    return True


def hash_of(data: Buffer) -> bytes:
    """Return the 32 bytes of BLAKE3 over `data`. It drops the GIL for all but the shortest data.

    Raises :class:`~blkmig.errors.ParameterError` where the library is missing.
    """
    try:
        return bytes(_library().blake3(data).digest())
    except ImportError as error:
        raise errors.ParameterError(MISSING) from error


def hashes_of(data: memoryview, piece: int) -> bytes:
    """Return the hashes of the pieces of `data`, one behind the other; the last piece may be shorter."""
    try:
        blake3 = _library().blake3
    except ImportError as error:
        raise errors.ParameterError(MISSING) from error
    return b"".join([blake3(data[start : start + piece]).digest() for start in range(0, data.nbytes, piece)])
