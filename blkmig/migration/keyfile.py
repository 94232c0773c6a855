# SPDX-License-Identifier: GPL-2.0-or-later
"""The key of a session, beside the source's first disk that is a file: what another process needs to go on with it.

::

    a session begins    ".vda.raw.source.blkmig": key, incarnation 1, the disks
    killed              it stays
    --resume            incarnation 2 is stored, then said to the receiver

A process that has it keeps it locked, stopped or not, so a second one on this host is refused while the first one
lives. It is no promise: nothing is flushed for it, and without a place for it only a receiver that is started anew
takes a source that resumes. It goes when the migration is complete, or when the receiver knows that nobody comes again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from .. import disk, errors, files, logs, savevm
from ..files import folder, sessionfile
from . import sessions

logger = logs.Logger(__name__)

SUFFIX: Final = ".source"
_MOST: Final = (1 << 32) - 1


NO_PLACE: Final = (
    "there is no place for the key of this session (%s): should this process be killed, end its receiver, which keeps "
    "what has come, start it again as before, and send with --resume%s"
)


class Known(NamedTuple):
    """A session, and which of its processes the present one is."""

    key: bytes
    incarnation: int


class KeyFile:
    """That of one migration. All of it belongs to the migration thread."""

    def __init__(self, state_dir: str | None) -> None:
        self._state_dir = state_dir
        self._stack = contextlib.ExitStack()
        self._file: sessionfile.SessionFile | None = None
        self._why_not = ""

    def begin(self, disks: Sequence[disk.BlockBackend], known: Known) -> None:
        """Store what is `known` of a session of `disks`. Never raises: without a place for it, nobody goes on with it,
        which `warn` tells."""
        self.close()  # a file of a session that is not gone on with
        try:
            self._file = self._open(disks, create=True)
            if self._file is None:
                which = "file" if self._state_dir is None else "file, device or export"
                raise OSError(errno.ENOTSUP, f"no disk is a {which}")
            if not self._file.is_private:
                why = f"others may open {self._file.path}"
                if not self._file.says:  # it was made just now, where files have no permissions
                    self.remove()
                raise OSError(errno.EPERM, why)
            with contextlib.ExitStack() as undo:
                undo.callback(self.remove)  # one with nothing in it is of no use
                self._store(disks, known, begins=True)
                undo.pop_all()
        except (OSError, errors.DeviceBusy) as error:
            is_of_this_process = all(isinstance(backend, files.MemoryBackend) for backend in disks)
            self._why_not = "" if is_of_this_process else getattr(error, "strerror", None) or str(error)
            self.close()

    def warn(self) -> None:
        """Say, if it is so, that there is no place for it, and what to do about that."""
        if self._why_not:
            logger.warning(NO_PLACE, self._why_not, "" if self._state_dir else "; --state-dir DIR is a place for it")

    def find(self, disks: Sequence[disk.BlockBackend]) -> Known | None:
        """Return the session of `disks` that a killed process has left, with this process as the next one of it.

        None if there is none that is known. Raises :class:`~blkmig.errors.DeviceBusy` if that process still lives, and
        :class:`~blkmig.errors.ParameterError` if it had other disks.
        """
        try:
            self._file = self._open(disks, create=False)
            found = None if self._file is None else _known(self._file.says)
            if found is None:
                self.close()
                return None
            self._check(disks)
            known = found._replace(incarnation=found.incarnation + 1)
            self._store(disks, known)
            return known
        except errors.DeviceBusy as error:
            raise errors.DeviceBusy(
                "cannot be resumed",
                device=error.device,
                cause="the sender that began this migration still runs, or is stopped: it goes on by itself, or end it",
            ) from error
        except OSError as error:
            logger.info("what a killed process has left of a session cannot be used: %s", error)
            self.close()
            return None
        except BaseException:
            self.close()
            raise

    def remove(self) -> None:
        """Remove it: nobody is to go on with that session. Never raises."""
        file, self._file = self._file, None
        if file is not None:
            file.remove()
        self.close()

    def close(self) -> None:
        """Let it go as it is. Twice does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._stack.close()

    def _open(self, disks: Sequence[disk.BlockBackend], *, create: bool) -> sessionfile.SessionFile | None:
        for backend, where, name in self._places(disks):
            place = self._stack.enter_context(contextlib.closing(folder.Folder(where)))
            with contextlib.suppress(FileNotFoundError):
                return sessionfile.SessionFile(place, name + SUFFIX, device=backend.name, create=create)
        return None

    def _places(self, disks: Sequence[disk.BlockBackend]) -> Iterator[tuple[disk.BlockBackend, Path, str]]:
        for backend in disks:
            for file in backend.files[:1]:
                if file.is_regular or self._state_dir is not None:
                    yield backend, *sessionfile.where(os.path.realpath(file.path), self._state_dir)
            if self._state_dir is not None and (uri := sessions.uri_of(backend)):
                yield backend, *sessionfile.where(uri, self._state_dir)

    def _store(self, disks: Sequence[disk.BlockBackend], known: Known, *, begins: bool = False) -> None:
        assert self._file is not None
        says = {"key": known.key.hex(), "incarnation": known.incarnation, "sent": _described(disks)}
        if begins:
            self._file.begin(says, is_durable=False)
        else:
            self._file.store(says, is_durable=False)

    def _check(self, disks: Sequence[disk.BlockBackend]) -> None:
        assert self._file is not None
        had, has = self._file.says.get("sent"), _described(disks)
        if had != has:
            raise errors.ParameterError(
                f"what is to go on had other disks, or other sizes of them: {had}, and these are {has}; send without "
                f"--resume to begin anew, or remove {self._file.path}"
            )


def _described(disks: Sequence[disk.BlockBackend]) -> list[list[Any]]:
    return sorted([backend.name, backend.size] for backend in disks if backend.size and not backend.is_read_only)


def _known(says: Mapping[str, Any]) -> Known | None:
    """Return what such a file says; None if no blkmig has written that."""
    key, incarnation = says.get("key"), says.get("incarnation")
    if not isinstance(key, str) or not re.fullmatch(f"[0-9a-f]{{{2 * savevm.KEY_NBYTES}}}", key):
        return None
    if type(incarnation) is not int or not 1 <= incarnation < _MOST:
        return None
    return Known(bytes.fromhex(key), incarnation)
