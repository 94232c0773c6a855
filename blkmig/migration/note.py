# SPDX-License-Identifier: GPL-2.0-or-later
"""The note of a move, in the source's session file: COMMIT n may have left, and the target may own the disks.

It is on stable storage before the pause begins, in which COMMIT may leave. It says so until there are more rounds after
all, or the target has said that it has not taken them, or, if it has, until the migration is over and tells that. One
that ends in doubt leaves it, and so does a process that is killed: then no other move begins with these disks before a
person has looked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import disk, errors, logs
from ..files import sessionfile, taken
from . import sessions

logger = logs.Logger(__name__)


class Note:
    """The note of one migration, which may never be stored. All of it belongs to the migration thread."""

    def __init__(self, state_dir: str | None) -> None:
        self._state_dir = state_dir
        self._files = sessions.SessionFiles("source", state_dir)
        self._stays = False
        """The target may own the disks, or an attempt is under way."""

    def look(self, disks: Sequence[disk.BlockBackend], *, settled: bytes | None = None) -> list[sessionfile.Disk]:
        """Look for earlier notes of disks that are to move, in whatever section and to whom; return the disks. Blocks.

        One of the session that is `settled` counts no more: its target has said that it has not taken the disks.
        Raises :class:`~blkmig.errors.InDoubt` if one says that its disk may have moved, and
        :class:`~blkmig.errors.DeviceError`.
        """
        found = [(backend.name, backend.files[0]) for backend in disks if backend.files]
        paths = [(name, str(Path(file.path).resolve()), file.is_regular) for name, file in found]
        if self._state_dir is not None:  # elsewhere there is no place for that of an export
            paths += [(backend.name, uri, False) for backend in disks if (uri := sessions.uri_of(backend))]
        for name, path, _ in paths:
            with errors.failing("cannot look for its session file", device=name):
                taken.meet(path, device=name, state_dir=self._state_dir, settled=settled)
        return [sessionfile.Disk(path, is_file=is_file) for _, path, is_file in paths]

    def begin(
        self, disks: Sequence[disk.BlockBackend], *, key: bytes | None = None, settled: bytes | None = None
    ) -> None:
        """Find a place for it, which will say the `key` of the session: beside the disks that outlive this process.

        Blocks; raises as `look`.
        """
        if key is not None:
            self._files.has_key(key)
        self._files.begin(self.look(disks, settled=settled))

    def store(self, number: int) -> None:
        """Store it for END `number`, or a later one, unless it says so already. Blocks.

        Raises :class:`~blkmig.errors.DeviceError`: then COMMIT must not leave.
        """
        if self._files.state != "noted":
            self._files.store("noted", number)

    @contextlib.contextmanager
    def standing(self, number: int, may_be_owned: Callable[[], bool]) -> Iterator[None]:
        """Say it for the length of the body, and behind it if the disks `may_be_owned` by the target.

        Blocks; raises as `store`.
        """
        self.store(number)
        self._stays = True
        try:
            yield
        finally:
            self._stays = may_be_owned()
            if not self._stays:
                self.withdraw()

    def drop(self) -> None:
        """Have `close` remove it though an attempt is under way, whose thread hangs: nothing was handed over."""
        self._stays = False

    def withdraw(self) -> None:
        """Have it say nothing, until it is stored again. Never raises: what is not withdrawn says too much."""
        if self._files.state == "noted":
            try:
                self._files.store("open", 0)
            except errors.DeviceError as error:
                logger.warning("%s: until this sender ends it says that disks may have moved, which have not", error)

    def close(self, *, is_settled: bool = False) -> None:
        """Let it go; it stays if the target may own the disks, unless that `is_settled`: the caller is told who has
        them. Twice does no harm."""
        if self._stays and not is_settled:
            self._files.close()
        else:
            self._files.remove()
