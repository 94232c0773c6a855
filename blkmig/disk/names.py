# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk may be called on the wire."""

from __future__ import annotations

from .. import errors

MAX_NAME_BYTES = 255
"""A name's length is one byte on the wire."""


def check_name(name: str) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` unless `name` can stand on the wire."""
    if not isinstance(name, str):
        raise errors.ParameterError(f"a disk's name must be a text, not {name!r}")
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise errors.ParameterError(f"a disk's name must be a text that UTF-8 can say: {name!r}") from None
    if not 0 < len(name.encode(errors="surrogateescape")) <= MAX_NAME_BYTES:
        raise errors.ParameterError(f"a disk's name must have 1 to {MAX_NAME_BYTES} bytes: {name!r}")
