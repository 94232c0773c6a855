# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages on stderr: for people, or with ``--progress=json`` for programs.

stderr may be closed or full, or nobody may read it. None of that disturbs the work: nothing here raises, and nothing
blocks for longer than `PATIENCE_SECONDS`.

Any thread may call. A line is written as a whole. If stderr takes only its beginning, the next write begins with the
rest, so that two lines are never mixed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from typing import Any

from .. import texts

PATIENCE_SECONDS = 2.0
"""How long an error waits for a reader of stderr; progress does not wait at all."""

AT_ONCE = select.PIPE_BUF
"""A pipe that is ready for writing takes so many bytes without blocking."""

CLEAR = "\r\x1b[K"


class Display:
    """What stderr shows: lines, and on a terminal a status below them, which is drawn again and again."""

    def __init__(self) -> None:
        self.is_json = False
        self._lock = threading.RLock()
        # Under `_lock`: the status on the screen, bytes that stderr has not taken yet, whether the last wait was in
        # vain.
        self._status = ""
        self._rest = b""
        self._is_stuck = False

    def line(self, text: str, *, patience: float = PATIENCE_SECONDS) -> None:
        """Show one line; with ``--progress=json`` as a message in JSON."""
        if self.is_json:
            self.record({"event": "Message", "message": text}, patience=patience)
            return
        with self._lock:
            cleared, status = (CLEAR, self._status) if self._status else ("", "")
            self._write(f"{cleared}{texts.printable(text)}\n{status}", patience)

    def record(self, value: dict[str, Any], *, patience: float = PATIENCE_SECONDS) -> None:
        """Show one JSON object, on a line."""
        with self._lock:
            self._write(json.dumps(value, allow_nan=False, default=str) + "\n", patience)

    def status(self, text: str) -> None:
        """Show `text` as the status; "" removes the status."""
        with self._lock:
            if text or self._status:
                self._status = text
                self._write(CLEAR + text, 0.0)

    def columns(self) -> int | None:
        """Return how wide a line may be; None if stderr is no terminal."""
        try:
            return max(os.get_terminal_size(sys.stderr.fileno()).columns, 1)
        except (OSError, ValueError, AttributeError):
            return None

    def _write(self, text: str, patience: float) -> None:
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        self._rest += text.encode(encoding, "backslashreplace") if self._has_room(patience) else b""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            try:
                fd = sys.stderr.fileno()
            except (OSError, ValueError, AttributeError):
                rest, self._rest = self._rest, b""
                sys.stderr.write(rest.decode(encoding))  # an object without a descriptor, as in a test
                sys.stderr.flush()
                return
            self._flush(fd, patience)

    def _has_room(self, patience: float) -> bool:
        """Try to write what is left of an earlier line, and return whether nothing is left."""
        if self._rest:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._flush(sys.stderr.fileno(), patience)
        return not self._rest

    def _flush(self, fd: int, patience: float) -> None:
        try:
            while self._rest:
                self._is_stuck = not is_writable(fd, 0.0 if self._is_stuck else patience)
                if self._is_stuck:
                    return
                self._rest = self._rest[os.write(fd, self._rest[:AT_ONCE]) :]
        except OSError:
            self._rest = b""  # stderr is broken: there is no use in trying again
            raise


def is_writable(fd: int, seconds: float) -> bool:
    """Wait up to `seconds` for `fd` to be ready for writing, and return whether it is."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
