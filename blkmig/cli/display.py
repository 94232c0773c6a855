# SPDX-License-Identifier: GPL-2.0-or-later
"""stderr, which is for people, or with ``--progress=json`` for programs. It may be lost, full, or not be read any more,
and none of that reaches the work: nothing here raises, and nothing blocks for longer than `PATIENCE_SECONDS`.

Any thread may call. A line is written as a whole, unless stderr takes only its beginning: then its rest goes first when
something is written again, so that two lines are never mixed.
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
"""A pipe that can be written takes so many bytes without waiting."""

CLEAR = "\r\x1b[K"


class Display:
    """What is shown on stderr: lines, and below them on a terminal a status, which is drawn over and over."""

    def __init__(self) -> None:
        self.is_json = False
        self._lock = threading.RLock()
        # Under `_lock`. The status that is drawn, what stderr has not taken yet, and whether it let us wait in vain.
        self._status = ""
        self._rest = b""
        self._is_stuck = False

    def line(self, text: str, *, patience: float = PATIENCE_SECONDS) -> None:
        """Show one line; with JSON, as a message."""
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
        """Show `text` as the status, "" for none."""
        with self._lock:
            if text or self._status:
                self._status = text
                self._write(CLEAR + text, 0.0)

    def columns(self) -> int | None:
        """Return how wide a line may be; None for what is no terminal."""
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
                sys.stderr.write(rest.decode(encoding))  # no file at all, but something that stands for it
                sys.stderr.flush()
                return
            self._flush(fd, patience)

    def _has_room(self, patience: float) -> bool:
        """Return whether nothing is left of an earlier line, once it was tried to write that."""
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
            self._rest = b""  # whoever cannot take it now will not want it later
            raise


def is_writable(fd: int, seconds: float) -> bool:
    """Return whether a write would not wait, within `seconds`."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
