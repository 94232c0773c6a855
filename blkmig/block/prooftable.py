# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for proofs that does not grow with the disks: what is more than 16 MiB is in a temporary file.

The file has no name, is as sparse as the table, and is read and written by system calls, so it takes no memory of this
process.
"""

from __future__ import annotations

import collections
import contextlib
import os
import tempfile
from collections.abc import Iterator

from .. import errors
from . import hashing

MAX_BYTES = 16 << 20
"""So much is kept in memory."""


class HashTable:
    """`count` hashes by number, all zero bytes at first. Its owner calls one at a time, and closes it."""

    def __init__(self, count: int) -> None:
        nbytes = count * hashing.HASH_SIZE
        self._memory = bytearray(nbytes) if nbytes <= MAX_BYTES else None
        self._file = None if self._memory is not None else _temporary()
        if self._file is not None:
            with _failing():
                os.ftruncate(self._file, nbytes)

    def put(self, first: int, hashes: bytes) -> None:
        """Keep hashes from number `first` on."""
        at = first * hashing.HASH_SIZE
        if self._memory is not None:
            self._memory[at : at + len(hashes)] = hashes
            return
        assert self._file is not None
        with _failing():
            while hashes:
                done = os.pwrite(self._file, hashes, at)
                hashes, at = hashes[done:], at + done

    def get(self, first: int, count: int) -> bytes:
        """Return `count` hashes from number `first` on."""
        at, nbytes = first * hashing.HASH_SIZE, count * hashing.HASH_SIZE
        if self._memory is not None:
            return bytes(self._memory[at : at + nbytes])
        assert self._file is not None
        with _failing():
            return os.pread(self._file, nbytes, at)

    def close(self) -> None:
        """Let the memory and the file go. Twice does no harm."""
        self._memory, file = bytearray(), self._file
        self._file = None
        if file is not None:
            os.close(file)


class Backlog:
    """Records that wait, in their order. Its owner calls one at a time, and closes it."""

    def __init__(self) -> None:
        self._records: collections.deque[bytes] = collections.deque()
        self._nbytes = 0
        self._file: int | None = None
        self._start = self._end = 0  # of what is in the file, which comes after the records in memory
        self._in_file: collections.deque[int] = collections.deque()  # their lengths

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._records) + len(self._in_file)

    def append(self, record: bytes) -> None:
        """Have a record wait."""
        if not self._in_file and self._nbytes + len(record) <= MAX_BYTES:
            self._records.append(record)
            self._nbytes += len(record)
            return
        if self._file is None:
            self._file = _temporary()
        self._in_file.append(len(record))
        with _failing():
            while record:
                done = os.pwrite(self._file, record, self._end)
                record, self._end = record[done:], self._end + done

    def pop(self) -> bytes:
        """Return the first one."""
        if self._records:
            record = self._records.popleft()
            self._nbytes -= len(record)
            return record
        assert self._file is not None
        nbytes = self._in_file.popleft()
        with _failing():
            record = os.pread(self._file, nbytes, self._start)
            self._start += nbytes
            if not self._in_file:
                self._start = self._end = 0
                os.ftruncate(self._file, 0)
        return record

    def close(self) -> None:
        """Let all of it go. Twice does no harm."""
        self._records.clear()
        self._in_file.clear()
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _temporary() -> int:
    """Return a descriptor of a new file without a name; not in /tmp, which often is memory."""
    with _failing(), tempfile.TemporaryFile(prefix="blkmig-proof-", dir=_folder()) as file:
        return os.dup(file.fileno())


def _folder() -> str:
    return os.environ.get("TMPDIR") or "/var/tmp"


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.MigrationError(
            f"what proves the disks cannot be kept in a temporary file in {_folder()}: {error.strerror}; make room "
            "there, or name another folder by TMPDIR"
        ) from error
