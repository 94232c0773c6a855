# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of the devices that follows the end of file, and how to find it behind device state.

FULL sections do not say how long they are; only the description, at the very end, does. So device state is read in
big pieces and thrown away, and the end is recognised from behind::

    FULL  FULL  ...  FULL  00  06 length {"page_size":4096,"devices":[{...},{...}, ... ]}
    └─── the sizes in the description add up to this ───┘

A QEMU's description proves by its sizes that it is the one. Another one, as ours, that has no sizes, is believed if
nothing follows it. JSON has neither 00 nor 06 bytes in it, so nothing inside a description looks like the start of
another: the right one is the last thing that looks like one (its own length field may look like one more).

A description of blkmig ends with a checksum of its own text, the *seal*, so that whatever damages it is found, also
where nobody asked for digests::

    {"page_size":4096, ... ,"checksum":"0123abcd"}
    └────── CRC-32 of this ──────┘

Descriptions are read with a bound on memory, for JSON of small pieces takes 25 times its size: `parse_cost` estimates
from above what parsing takes, and one that takes too much is not read.
"""

from __future__ import annotations

import collections
import json
import re
import zlib
from typing import Any, Final, Literal, NamedTuple

from . import container

MAX_VMDESCRIPTION: Final = 8 << 20
"""Longer ones are skipped unread: a bare PC's has 98 KB, a busy one's a few MB."""

MAX_PARSE_COST: Final = 40 << 20
"""Bytes of memory that parsing may take at most; a QEMU's description of 4 MiB takes about as much."""

State = Literal["none", "unread", "damaged", "read", "sealed"]
"""What became of a description: none came, it was too long to be read, it is no JSON object, it was read; sealed: and
its checksum is right."""

CANDIDATES: Final = 8
"""So many of the last places where a description may start are remembered: the last one, and its length field."""

_CANDIDATE: Final = re.compile(rb'\x00\x06(?=(.{4})\{[\s"}])', re.DOTALL)
_SHORTEST: Final = 8  # 00 06 00000002 {}
_SEAL: Final = len(',"checksum":"01234567"}')
_QEMU_KEYS: Final = (
    *("name", "type", "size", "version", "fields"),
    *("instance_id", "vmsd_name", "array_len", "struct", "subsections"),
)
_KNOWN_KEYS: Final = [f'"{key}":'.encode() for key in _QEMU_KEYS]
_FOOTER: Final = 1 + 4
_FULL_HEADER: Final = 1 + 4 + 1 + 4 + 4  # and the name
_SUBSECTION_HEADER: Final = 1 + 1 + 4  # and the name


def put_vmdescription(description: dict[str, Any]) -> bytes:
    """Return `description` as a record, sealed; an empty one as the shortest that there is."""
    text = seal(json.dumps(description, separators=(",", ":")).encode()) if description else b"{}"
    return bytes([container.QEMU_VM_VMDESCRIPTION]) + len(text).to_bytes(4) + text


def seal(text: bytes) -> bytes:
    """Return the JSON object `text`, which is not empty, with the checksum of all but its closing brace."""
    body = text[:-1]
    return body + b',"checksum":"%08x"}' % zlib.crc32(body)


def parse_vmdescription(text: bytes) -> tuple[State, dict[str, Any] | None]:
    """Return the JSON object that `text` is, and what became of it; None unless it was read."""
    if not text.isascii():  # every writer escapes what is not
        return "damaged", None
    if parse_cost(text) > MAX_PARSE_COST:
        return "unread", None
    try:
        value = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return "damaged", None
    if seal(text[:-_SEAL] + b"}") != text:
        return "read", value
    del value["checksum"]
    return "sealed", value


def parse_cost(text: bytes) -> int:
    """Return how many bytes of memory it takes at most to parse `text`, as JSON.

    Its punctuation tells how many pieces it has. QEMU's own keys are kept once each; others may all be different.
    """
    known = sum(map(text.count, _KNOWN_KEYS))
    costs = {b"{": 200, b"[": 80, b",": 70, b"\\": 120, b":": 250}
    return sum(text.count(mark) * nbytes for mark, nbytes in costs.items()) - 210 * known


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


class StreamEnd(NamedTuple):
    """Where the stream ended, counted from where draining began."""

    eof_offset: int
    """Bytes before the end of file record."""

    description: dict[str, Any] | None = None
    description_nbytes: int = 0
    is_sealed: bool = False

    @property
    def stop(self) -> int:
        """Return where the description ends, if there is one."""
        return self.eof_offset + _SHORTEST - 2 + self.description_nbytes


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
        with memoryview(self._tail) as tail:
            text = bytes(tail[start + 6 : end])
        state, description = parse_vmdescription(text)
        if description is None:
            return None
        return StreamEnd(candidate[0], description, len(text), is_sealed=state == "sealed")

    def _trim(self) -> None:
        """Forget what lies before the first candidate, but for the last few bytes."""
        first = self._candidates[0][0] if self._candidates else self.nbytes
        keep = min(first, max(self.nbytes - _SHORTEST, self._start))
        del self._tail[: keep - self._start]
        self._start = keep
