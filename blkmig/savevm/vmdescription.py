# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of the devices that follows the end of file, and how to find it behind device state.

FULL sections do not say how long they are; only the description, at the very end, does. So device state is read in
big pieces and thrown away, and the end is recognised from behind::

    ... device state ...  [7e section id]  00  06 length {"page_size":4096,"devices":[...]}  end of stream
                                          └── at this distance from the end ──┘

JSON has neither 00 nor 06 bytes in it, so nothing inside a description looks like the start of another one: if there is
a description at the end, it is the last thing that looks like one (but for what its length field may look like).
"""

from __future__ import annotations

import collections
import json
import re
from typing import Any, Final

from . import container

MAX_VMDESCRIPTION: Final = 16 << 20
"""Longer ones are skipped unread: a bare PC's has 98 KB, a busy one's a few MB."""

CANDIDATES: Final = 8
"""So many of the last places where a description may start are remembered: the last one, and its length field."""

_CANDIDATE: Final = re.compile(rb'\x00\x06(?=(.{4})\{[\s"}])', re.DOTALL)
_SHORTEST: Final = 8  # 00 06 00000002 {}
_EOF_AND_FOOTER: Final = 6


def parse_vmdescription(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `text` is, None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class TailFinder:
    """Takes device state in pieces and finds the end of file record and the description that end it.

    Invariant: `_tail` is what came from `_start` on, at least the last eight bytes; it grows beyond that only while
    a description of at most 16 MiB may have begun in it. `_candidates` are where one may have begun, as (offset of its
    end of file record, offset of its end), in order, none of which ends before the last byte so far.
    """

    def __init__(self) -> None:
        """Start with nothing received."""
        self.nbytes = 0
        self._tail = bytearray()
        self._start = 0
        self._candidates: list[tuple[int, int]] = []

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        unscanned = max(len(self._tail) - _SHORTEST + 1, 0)
        self._tail += piece
        self.nbytes += len(piece)
        matches = collections.deque(_CANDIDATE.finditer(self._tail, unscanned), maxlen=CANDIDATES)
        self._add([(self._start + match.start(), int.from_bytes(match[1])) for match in matches])
        self._trim()

    def find(self) -> tuple[int, dict[str, Any], int] | None:
        """Return (offset of the end of file record, description, its length) if the last byte so far ends one."""
        for start, end in reversed(self._candidates):
            if end == self.nbytes:
                text = bytes(self._tail[start - self._start + 6 :])
                description = parse_vmdescription(text)
                if description is not None:
                    return start, description, len(text)
        return None

    def ends_like_eof(self, *, has_footers: bool) -> bool:
        """Tell whether the last byte so far may be the end of file record of a stream without description."""
        if has_footers:
            last = self._tail[-_EOF_AND_FOOTER:]
            return len(last) == _EOF_AND_FOOTER and last[0] == container.QEMU_VM_SECTION_FOOTER and last[-1] == 0
        return self._tail[-1:] == b"\0"

    def _add(self, found: list[tuple[int, int]]) -> None:
        """Remember those of `found`, as (offset, length of the description), that may come to an end."""
        new = [(start, start + 6 + length) for start, length in found if length <= MAX_VMDESCRIPTION]
        alive = [candidate for candidate in self._candidates + new if candidate[1] >= self.nbytes]
        self._candidates = alive[-CANDIDATES:]

    def _trim(self) -> None:
        """Forget what lies before the first candidate, but for the last few bytes."""
        first = self._candidates[0][0] if self._candidates else self.nbytes
        keep = min(first, max(self.nbytes - _SHORTEST, self._start))
        del self._tail[: keep - self._start]
        self._start = keep
