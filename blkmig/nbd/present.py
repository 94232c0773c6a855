# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether libnbd is here, and which one; nothing is connected to."""

from __future__ import annotations

import ctypes

from . import _libnbd


def version() -> str:
    """Return the version of libnbd, "" if it is not here."""
    try:
        library = ctypes.CDLL(_libnbd.LIBRARY)
        library.nbd_create.restype, library.nbd_create.argtypes = ctypes.c_void_p, ()
        library.nbd_close.argtypes = (ctypes.c_void_p,)
        library.nbd_get_version.restype, library.nbd_get_version.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
    except (OSError, AttributeError):
        return ""
    handle = library.nbd_create()
    try:
        said: bytes | None = library.nbd_get_version(handle)
        return said.decode(errors="replace") if said else ""
    finally:
        library.nbd_close(handle)
