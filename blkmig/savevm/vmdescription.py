# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of the devices that follows the end of file, and how to find it behind device state.

FULL sections do not say how long they are; only the description, at the very end, does. So device state is read in
big pieces and thrown away, and the end is recognised from behind::

    FULL  FULL  ...  FULL  00  06 length {"page_size":4096,"devices":[{...},{...}, ... ]}
    └─── the sizes in the description add up to this ───┘

A QEMU's description proves by its sizes that it is the one. Another one, as ours, that has no sizes, is believed if
nothing follows it. JSON has neither 00 nor 06 bytes in it, so nothing inside a description looks like the start of
another: the right one is the last thing that looks like one (but for what its length field may look like).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from typing import Any, Final

from . import container

MAX_VMDESCRIPTION: Final = 8 << 20
"""Longer ones are skipped unread: a bare PC's has 98 KB, a busy one's a few MB."""

CANDIDATES: Final = 8
"""So many of the last places where a description may start are remembered: the last one, and its length field."""

_CANDIDATE: Final = re.compile(rb'\x00\x06(?=(.{4})\{[\s"}])', re.DOTALL)
_SHORTEST: Final = 8  # 00 06 00000002 {}
_FOOTER: Final = 1 + 4
_FULL_HEADER: Final = 1 + 4 + 1 + 4 + 4  # and the name
_SUBSECTION_HEADER: Final = 1 + 1 + 4  # and the name


def parse_vmdescription(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `text` is, None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def described_nbytes(description: dict[str, Any], *, has_footers: bool) -> int | None:
    """Return how many bytes of FULL sections `description` tells of, None if it does not tell sizes."""
    footer = _FOOTER if has_footers else 0
    try:
        devices = description["devices"]
        return sum(_FULL_HEADER + len(device["name"]) + _state_nbytes(device) + footer for device in devices)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def _state_nbytes(described: dict[str, Any]) -> int:
    """Return the bytes of a device's or a subsection's payload; the size of a structure is that of all it holds."""
    if "fields" not in described:
        return int(described["size"])
    fields = sum(int(field["size"]) * int(field.get("array_len", 1)) for field in described["fields"])
    subsections = described.get("subsections", ())
    return fields + sum(_SUBSECTION_HEADER + len(sub["vmsd_name"]) + _state_nbytes(sub) for sub in subsections)


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnd:
    """Where the stream ended, counted from where draining began."""

    eof_offset: int
    """Bytes before the end of file record."""

    description: dict[str, Any] | None = None
    description_nbytes: int = 0


class TailFinder:
    """Takes device state in pieces and finds the end of file record and the description that end it.

    Invariant: `_tail` is what came from `_start` on, at least the last eight bytes; it grows beyond that only while
    a description of at most 8 MiB may have begun in it. `_candidates` are where one may have begun, as (offset of its
    end of file record, offset of its end), in order, none of which ends before the last byte so far.
    """

    def __init__(self, already_read: int = 0, *, has_footers: bool) -> None:
        """Start with nothing received but the first `already_read` bytes of the device state."""
        self.nbytes = 0
        self.end: StreamEnd | None = None
        """The end, once it is proven; nothing that comes after it belongs to the stream."""

        self._already_read = already_read
        self._has_footers = has_footers
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

    def find_here(self) -> StreamEnd | None:
        """Return the end if the last byte so far completes a description, whatever that tells."""
        complete = [candidate for candidate in reversed(self._candidates) if candidate[1] == self.nbytes]
        return next((end for end in map(self._read, complete) if end is not None), None)

    def ends_like_eof(self) -> bool:
        """Tell whether the last byte so far may be the end of file record of a stream without description."""
        if self._has_footers:
            last = self._tail[-_FOOTER - 1 :]
            return len(last) == _FOOTER + 1 and last[0] == container.QEMU_VM_SECTION_FOOTER and last[-1] == 0
        return self._tail[-1:] == b"\0"

    def _add(self, found: list[tuple[int, int]]) -> None:
        """Look at what is complete by now, and at `found`, as (offset, length of description); keep what may come."""
        new = [(start, start + 6 + length) for start, length in found if length <= MAX_VMDESCRIPTION]
        candidates = self._candidates + new
        for candidate in candidates:
            if candidate[1] <= self.nbytes:
                self._prove(candidate)
        self._candidates = [candidate for candidate in candidates if candidate[1] >= self.nbytes][-CANDIDATES:]

    def _prove(self, candidate: tuple[int, int]) -> None:
        """Take a candidate as the end if its sizes add up to what came before it."""
        end = self._read(candidate)
        if end is None or end.description is None or self.end is not None:
            return
        if described_nbytes(end.description, has_footers=self._has_footers) == self._already_read + end.eof_offset:
            self.end = end

    def _read(self, candidate: tuple[int, int]) -> StreamEnd | None:
        """Return the end that a complete candidate is, None if it is no description."""
        start, end = (offset - self._start for offset in candidate)
        text = bytes(self._tail[start + 6 : end])
        description = parse_vmdescription(text)
        return None if description is None else StreamEnd(candidate[0], description, len(text))

    def _trim(self) -> None:
        """Forget what lies before the first candidate, but for the last few bytes."""
        first = self._candidates[0][0] if self._candidates else self.nbytes
        keep = min(first, max(self.nbytes - _SHORTEST, self._start))
        del self._tail[: keep - self._start]
        self._start = keep
