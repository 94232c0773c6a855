# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of one run of the command, for programs: a file of JSON Lines, to which each run appends.

A thread of its own writes. So a file system that hangs holds nobody up: what is put while it does waits in memory, up
to a bound.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
from typing import Any

from .. import errors, ownfile

MARK = b'{"event": '
"""How every line begins, so that nothing else is appended to."""

REGULAR = ("Progressed", "Received")
REGULAR_SECONDS = 1.0
"""Regular reports come ten times a second; the log has one in so many seconds, and one at each end of a phase."""

MOST_BYTES = 4 << 20
CLOSING_SECONDS = 2.0


def opened(path: str | None) -> LogFile | None:
    """Return the log at `path`; None without a path. Raises :class:`~blkmig.errors.ParameterError`."""
    if path is None:
        return None
    from ..disk import identity  # here: most commands write no log
    from ..migration import endpoints

    try:
        endpoints.check_is_free(f"--log-json {path!r}", identity.KnownFile.of(path))
        ownfile.check(path, MARK)
        return LogFile(path)
    except OSError as error:
        raise errors.ParameterError(f"--log-json {path!r}: {error.strerror or error}") from error


class LogFile:
    """Appends lines to a file. Any thread may put them. Raises OSError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO is not waited for
        self.path = path
        self._fd = os.open(path, flags, 0o666)
        about = os.fstat(self._fd)
        if not stat.S_ISREG(about.st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "it is no file")
        is_cut = about.st_size > 0 and os.pread(self._fd, 1, about.st_size - 1) != b"\n"  # its run was killed
        # Under `_changed`: what is to be written, what has gone wrong, and whether no more will come.
        self._changed = threading.Condition()
        self._waiting = bytearray(b"\n" * is_cut)
        self._why = ""
        self._is_closing = False
        # Under `_changed`, too: the phase of the last regular report, and when it was.
        self._last = ("", -REGULAR_SECONDS)
        self._thread = threading.Thread(target=self._run, name="blkmig-log", daemon=True)
        self._is_started = False
        with contextlib.suppress(RuntimeError):
            self._thread.start()
            self._is_started = True

    def put(self, record: dict[str, Any]) -> None:
        """Have one record written. Blocks for nobody."""
        line = json.dumps(record, allow_nan=False, default=str).encode() + b"\n"
        with self._changed:
            if self._is_left_out(record):
                return
            if len(self._waiting) + len(line) > MOST_BYTES:
                self._why = self._why or "the file system was too slow"
                return
            self._waiting += line
            self._changed.notify_all()

    def _is_left_out(self, record: dict[str, Any]) -> bool:
        if record["event"] not in REGULAR:
            return False
        phase, elapsed = record["phase"], record["elapsed"]
        if phase == self._last[0] and elapsed - self._last[1] < REGULAR_SECONDS:
            return True
        self._last = phase, elapsed
        return False

    def close(self) -> str:
        """Have the rest written; return why the log is not complete, "" if it is. Blocks for `CLOSING_SECONDS`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if not self._is_started:
            self._run()  # no thread was had
        else:
            self._thread.join(CLOSING_SECONDS)
            if self._thread.is_alive():
                return "the file system is slow"
        return self._why

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                lines, self._waiting, is_last = self._waiting, bytearray(), self._is_closing
            self._write(lines)
        os.close(self._fd)

    def _write(self, lines: bytearray) -> None:
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._why = self._why or error.strerror or str(error)
