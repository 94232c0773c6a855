# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user is told of bytes that follow the end of a stream: the stream is complete without them."""

from __future__ import annotations

from .. import channel, savevm
from ..channel import uri as address


def describe(behind: savevm.Behind, uri: str) -> str:
    """Return what follows the stream that came from `uri`, and what to do about it."""
    where = f"behind the end of the stream, at byte {behind.position}, more follows, which was not read"
    if not behind.is_stream:
        return f"{where}: it is no other stream, so look at who has written it"
    parsed = channel.parse_uri(uri)
    if isinstance(parsed, address.FileAddress):
        return f"{where}: another stream, {parsed._replace(offset=parsed.offset + behind.position)}"
    return f"{where}: another stream; each stream needs a receiver of its own"
