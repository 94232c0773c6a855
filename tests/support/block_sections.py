# SPDX-License-Identifier: GPL-2.0-or-later
"""A small stream with one block section."""

from __future__ import annotations

import savevm_streams as streams
from savevm_streams import EOF, EOS, HEADER, word

CONFIG = streams.configuration("pc-i440fx-7.2")


def block_stream(*, configured: bool = True, footers: bool = True, tail: bytes = EOF) -> bytes:
    sections = [
        streams.start(1, "block", word(100) + EOS, footers=footers),
        streams.part(1, word(20) + EOS, footers=footers),
        streams.part(1, footers=footers),
        streams.end(1, word(3) + EOS, footers=footers),
    ]
    return HEADER + (CONFIG if configured else b"") + b"".join(sections) + tail
