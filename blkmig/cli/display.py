# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages on stderr: for people, or with ``--progress=json`` for programs.

stderr may be closed or full, or nobody may read it. None of that disturbs the work: nothing here raises, and nothing
blocks for longer than `PATIENCE_SECONDS`.

Any thread may call. A line is written as a whole. If stderr takes only its beginning, the next write begins with the
rest, so that two lines are never mixed.

::

    a line     a line              they stay, and scroll away
    a line
    ─────────────────────────
    status     lines that are drawn again and again in the same place; the cursor waits behind the last of them

The cursor is never hidden and there is no other screen, so a process that is killed leaves a terminal that works.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import texts

PATIENCE_SECONDS = 2.0
"""How long an error waits for a reader of stderr; progress does not wait at all."""

AT_ONCE = select.PIPE_BUF
"""A pipe that is ready for writing takes so many bytes without blocking."""

RETRY_SECONDS = 0.01
"""How soon a terminal is asked again that is ready, but not for as much as it is to take."""

CLEAR = "\r\x1b[K"
TO_LINE_END, TO_SCREEN_END = "\x1b[K", "\x1b[J"

CLOSING_SECONDS = 0.2
"""How long a signal waits for whoever is writing."""


class Display:
    """What stderr shows: lines, and on a terminal a status below them, which is drawn again and again."""

    def __init__(self) -> None:
        self.is_json = False
        self.is_journal = False
        """Each line begins with its priority, as the journal of systemd takes it."""

        self._lock = threading.RLock()
        # Under `_lock`: the status on the screen, and how many columns each of its lines has; bytes that stderr has
        # not taken yet; whether the last wait was in vain; the terminal, where it is opened once more.
        self._status: Sequence[str] = ()
        self._widths: Sequence[int] = ()
        self._rest = b""
        self._is_stuck = False
        self._is_closed = False
        self._terminal: int | None = None

    def line(self, text: str, *, patience: float = PATIENCE_SECONDS, priority: int = 6) -> None:
        """Show one line; with ``--progress=json`` as a message in JSON. `priority` is syslog's: 6 for information."""
        if self.is_json:
            self.record({"event": "Message", "message": text}, patience=patience)
            return
        with self._lock:
            cleared = self._cleared() if self._status else ""
            status = f"{TO_LINE_END}\n".join(self._status)
            prefix = f"<{priority}>" if self.is_journal else ""
            self._write(f"{cleared}{prefix}{texts.printable(text)}\n{status}", patience)

    def record(self, value: dict[str, Any], *, patience: float = PATIENCE_SECONDS) -> None:
        """Show one JSON object, on a line."""
        with self._lock:
            self._write(json.dumps(value, allow_nan=False, default=str) + "\n", patience)

    def status(self, text: str) -> None:
        """Show `text`, a line, as the status; "" removes the status."""
        self.frame([text] if text else [], [len(text)] if text else [])

    def frame(self, lines: Sequence[str], widths: Sequence[int]) -> None:
        """Show `lines` as the status, each so many columns wide; none of them remove it. A frame that stderr has no
        room for is left out."""
        with self._lock:
            if self._is_closed or not (lines or self._status):
                return
            up = self._rows_above()
            if not up and len(lines) <= 1:
                text = CLEAR + "".join(lines)
            else:
                text = _to_first_line(up) + f"{TO_LINE_END}\n".join(lines) + TO_SCREEN_END
            if self._write(text, 0.0 if lines else PATIENCE_SECONDS):
                self._status, self._widths = lines, widths

    def interject(self, text: str) -> bool:
        """Show one line while another thread may be writing; return False if it does not come to an end with that."""
        if not self._status or not self._lock.acquire(timeout=CLOSING_SECONDS):
            return False
        self.line(text)
        self._lock.release()
        return True

    def close(self) -> None:
        """Remove the status for good, as far as that is had at once: the process ends."""
        if self._lock.acquire(timeout=CLOSING_SECONDS):
            self.frame([], [])
            self._is_closed = True
            self._lock.release()

    @contextlib.contextmanager
    def unblocked(self) -> Iterator[None]:
        """Write to the terminal that stderr is without ever waiting for it, in the body of a ``with``.

        A terminal that says it takes a byte may block on the second one. The flag against that belongs to everybody who
        has the terminal, the shell included; so it is opened once more. Where that is refused, nothing changes.
        """
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                fd = sys.stderr.fileno()
                self._terminal = os.open(f"/proc/self/fd/{fd}", flags) if os.isatty(fd) else None
                stack.callback(self._block_again)
            yield

    def _block_again(self) -> None:
        with self._lock:
            fd, self._terminal = self._terminal, None
            if fd is not None:
                os.close(fd)

    def size(self) -> tuple[int, int] | None:
        """Return the columns and the lines of the terminal; None if stderr is none. One that does not know has 80 by
        24."""
        try:
            columns, lines = os.get_terminal_size(self._fd())
        except (OSError, ValueError, AttributeError):
            return None
        return columns or 80, lines or 24

    def columns(self) -> int | None:
        """Return how wide a line may be; None if stderr is no terminal."""
        size = self.size()
        return None if size is None else size[0]

    def is_in_background(self) -> bool:
        """Return whether the terminal belongs to other commands at present, as after ``blkmig ... &``."""
        try:
            return os.tcgetpgrp(self._fd()) != os.getpgrp()
        except (OSError, ValueError, AttributeError):
            return False

    def _fd(self) -> int:
        return sys.stderr.fileno() if self._terminal is None else self._terminal

    def _rows_above(self) -> int:
        """Return how many rows of the status are above the cursor.

        Most terminals break lines again that have become too long for them.
        """
        columns, lines = self.size() or (sys.maxsize, sys.maxsize)
        rows = sum(max(-(-width // columns), 1) for width in self._widths)
        return max(min(rows, lines) - 1, 0)

    def _cleared(self) -> str:
        """Return what removes the status from the screen."""
        up = self._rows_above()
        return _to_first_line(up) + TO_SCREEN_END if up else CLEAR

    def _write(self, text: str, patience: float) -> bool:
        """Write `text`, as far as stderr takes it; return whether the rest will follow, as far as there is one."""
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        if not self._has_room(patience):
            return False
        self._rest = text.encode(encoding, "backslashreplace")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            try:
                fd = self._fd()
            except (OSError, ValueError, AttributeError):
                rest, self._rest = self._rest, b""
                sys.stderr.write(rest.decode(encoding))  # an object without a descriptor, as in a test
                sys.stderr.flush()
                return True
            self._flush(fd, patience)
        return True

    def _has_room(self, patience: float) -> bool:
        """Try to write what is left of an earlier line, and return whether nothing is left."""
        if self._rest:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._flush(self._fd(), patience)
        return not self._rest

    def _flush(self, fd: int, patience: float) -> None:
        deadline = time.monotonic() + (0.0 if self._is_stuck else patience)
        try:
            while self._rest:
                self._is_stuck = not is_writable(fd, max(deadline - time.monotonic(), 0.0))
                if self._is_stuck:
                    return
                try:
                    self._rest = self._rest[os.write(fd, self._rest[:AT_ONCE]) :]
                except BlockingIOError:  # it takes a byte, but not the two of a line's end
                    self._is_stuck = time.monotonic() >= deadline
                    if self._is_stuck:
                        return
                    time.sleep(RETRY_SECONDS)
        except OSError:
            self._rest = b""  # stderr is broken: there is no use in trying again
            raise


def _to_first_line(up: int) -> str:
    return f"\r\x1b[{up}A" if up else "\r"


def is_writable(fd: int, seconds: float) -> bool:
    """Wait up to `seconds` for `fd` to be ready for writing, and return whether it is."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
