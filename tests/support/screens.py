# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal that a test reads: a pseudo-terminal, with an emulator of its screen behind it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import command
import pyte

TIMEOUT = 60.0


class Terminal:
    """A terminal of so many columns and lines; `follower` is the descriptor that programs write to."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.leader, self.follower = os.openpty()
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        self._is_reading = threading.Event()
        self._is_reading.set()
        self._size(columns, lines)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        with self._changed:
            self._screen.resize(lines, columns)
            self._size(columns, lines)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(self.leader, 65536):
                with self._changed:
                    self._stream.feed(piece)
                    self._changed.notify_all()

    def rows(self) -> list[str]:
        """Return what is on the screen, without what is blank."""
        with self._changed:
            rows = [row.rstrip() for row in self._screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def history(self) -> list[str]:
        """Return what has scrolled away above the screen."""
        with self._changed:
            top = list(self._screen.history.top)
        return ["".join(line[column].data for column in sorted(line)).rstrip() for line in top]

    @property
    def is_cursor_shown(self) -> bool:
        """Whether the cursor is shown."""
        with self._changed:
            return not self._screen.cursor.hidden

    @property
    def is_cursor_at_begin(self) -> bool:
        """Whether the cursor is shown, at the beginning of a line."""
        return self.is_cursor_shown and self._screen.cursor.x == 0

    def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the rows of the screen are so, and return them."""
        found: list[str] = []

        def look() -> bool:
            found[:] = self.rows()
            return holds(found)

        with self._changed:
            assert self._changed.wait_for(look, TIMEOUT), "\n".join(found)
        return [*found]

    def hang_up(self) -> None:
        """Have the terminal go away, as when its window is closed."""
        with contextlib.suppress(OSError):
            os.close(self.leader)

    def finish(self) -> None:
        """Read what is left, after everybody else has closed it."""
        with contextlib.suppress(OSError):
            os.close(self.follower)
        self._thread.join(TIMEOUT)

    def show(self) -> str:
        """Return the screen, for messages."""
        return "\n".join(self.rows())


@contextlib.contextmanager
def running(
    terminal: Terminal, *words: str | os.PathLike[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``blkmig`` with `terminal` as its stderr."""
    environment = {"TERM": "xterm-256color", **command.environment(), **(env or {})}
    environment = {name: value for name, value in environment.items() if value}
    with subprocess.Popen(
        command.command(*words), stdout=subprocess.DEVNULL, stderr=terminal.follower, env=environment, cwd=cwd
    ) as process:
        os.close(terminal.follower)
        try:
            yield process
        finally:
            process.kill()
