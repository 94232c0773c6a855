# SPDX-License-Identifier: GPL-2.0-or-later
"""Which names of files a power failure may leave, on a file system that brings them to stable storage in any order.

Without a journal each entry of a folder is a write of its own: until the folder is flushed, any of the changes since
the last flush may have got there, and any may not. A rename is two: the new name is there, the old one is not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, int]
"""The number of the file that each name stands for."""

MOST_CHANGES = 10


class NameLog:
    """What becomes of the names in `place`, all of which are on stable storage at first."""

    def __init__(self, place: Path, patched: pytest.MonkeyPatch) -> None:
        self._place = place
        self._stored = self._now()
        self._changes: list[tuple[str, int | None]] = []
        self.cuts: list[list[Names]] = [[self._stored]]
        """Behind each change: all that a power failure may leave then."""

        for name in ("link", "rename", "unlink", "open"):
            self._watch(patched, name)
        fsync = os.fsync

        def flush(fd: int) -> None:
            fsync(fd)
            if os.path.samestat(os.fstat(fd), place.stat()):
                self._stored, self._changes = self._now(), []
                self.cuts.append([self._stored])

        patched.setattr(os, "fsync", flush)

    def _now(self) -> Names:
        return {entry.name: entry.inode() for entry in os.scandir(self._place)}

    def _watch(self, patched: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            before = self._now()
            try:
                return original(*args, **options)
            finally:
                self._changed(before, self._now())

        patched.setattr(os, name, call)

    def _changed(self, before: Names, after: Names) -> None:
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                self._changes.append((name, after.get(name)))
        assert len(self._changes) <= MOST_CHANGES
        self.cuts.append(list(self._possible()))

    def _possible(self) -> Iterator[Names]:
        for chosen in itertools.product((False, True), repeat=len(self._changes)):
            names = dict(self._stored)
            for (name, inode), is_stored in zip(self._changes, chosen, strict=True):
                if is_stored and inode is None:
                    names.pop(name, None)
                elif is_stored and inode is not None:
                    names[name] = inode
            yield names

    def never_loses(self, inode: int) -> bool:
        """Return whether the file had a name whenever the power might have failed since it had its first one."""
        with_it = itertools.dropwhile(lambda cut: not all(inode in names.values() for names in cut), self.cuts)
        return all(inode in names.values() for cut in with_it for names in cut)

    def at_last(self) -> list[Names]:
        """Return all that a power failure may leave now."""
        return self.cuts[-1]
