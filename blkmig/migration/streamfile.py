# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a stream. One that is sent to is made beside its name, which it gets when the stream is complete.

So a stream that ends too early, whatever ended it, SIGKILL included, is never found under its name, and the same
command begins again (see ``files/partial.py``). A file that exists is replaced when the new one is complete.

A file on which something is mounted, as on each that a container is given, cannot be replaced: it is written in place,
and is empty after a failure.

Other things cannot be made beside their name, either, and the channel writes them in place: a pipe or a device, a file
before whose ``offset=`` something stays, what somebody holds open (``/dev/stdout``, ``/dev/fd/3``), and a file of
somebody else or in a folder that is not ours to write in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .. import errors
from ..channel import uri as address
from ..disk import identity
from ..files import folder, locks, partial

STDIN, STDOUT, STDERR = 0, 1, 2
MAX_LINKS = 40
"""Symlinks that the system follows in one path."""
IN_USE = "another program is using it"


class StreamFile:
    """The file of the stream to `uri`, if it goes to one. For the migration thread.

    Whoever has begun it ends it with `discard`, also after `complete`.
    """

    def __init__(self, uri: str) -> None:
        parsed = address.parse_uri(uri)
        self._uri = uri
        self._named = parsed.path if isinstance(parsed, address.FileAddress) else None
        self._path = parsed.path if isinstance(parsed, address.FileAddress) and not parsed.offset else None
        self._folder: folder.Folder | None = None
        self._partial: partial.Partial | None = None

    def mark(self) -> identity.KnownFile | None:
        """Return what has its hidden name now, which `begin` removes; None if nothing is made beside its name."""
        with contextlib.suppress(OSError, ValueError):  # whoever opens it says why it cannot be
            real = self._to_be_made()
            return None if real is None else identity.KnownFile.of(real.with_name(partial.partial_name(real.name)))
        return None

    def _to_be_made(self) -> Path | None:
        """Return where the file is made; None where the channel opens what there is. Raises OSError."""
        if self._path is None or self._path.endswith("/") or is_held_open(self._path):
            return None
        real = Path(os.path.realpath(self._path))
        return real if _is_ours(real) else None

    def _check_can_be_made(self) -> None:
        """Refuse a device that is missing, also where the channel would make a file. Raises OSError."""
        if self._named is not None and not is_held_open(self._named):
            real = Path(os.path.realpath(self._named))
            if not os.path.lexists(real):
                partial.check_takes_files(real)

    def check(self) -> None:
        """Raise :class:`~blkmig.errors.LocalFileError` for a file that cannot be opened, as far as permissions and
        locks tell.

        Nothing is made or locked, and a pipe, which somebody may read, is not opened.
        """
        with self._failing("opening"):
            if self._named is not None and not is_held_open(self._named):
                self._check_can_be_made()
                self._check_permissions(self._named)
                self._check_is_free()

    def _check_permissions(self, named: str) -> None:
        real, mode = Path(os.path.realpath(named)), _mode_of(named)
        if named.endswith("/") or (mode is not None and stat.S_ISDIR(mode)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if mode is None or (self._to_be_made() is None and not os.access(real, os.W_OK, effective_ids=True)):
            with contextlib.closing(folder.Folder(real.parent)) as place:
                place.check_writable()
            if mode is not None:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _check_is_free(self) -> None:
        """Raise DeviceBusy if another program uses what would be replaced, or makes a file of that name."""
        real = self._to_be_made()
        if real is None:
            return
        with contextlib.closing(folder.Folder(real.parent)) as place:
            for name in (partial.partial_name(real.name), real.name):
                with contextlib.suppress(FileNotFoundError), os.fdopen(place.open(name, os.O_RDONLY)) as file:
                    if locks.is_taken(file.fileno()):
                        raise errors.DeviceBusy("cannot be opened", device=str(real), cause=IN_USE)

    def begin(self) -> int | None:
        """Make the file; return the descriptor that the stream is written to, which stays ours.

        None: the channel opens what there is. Raises :class:`~blkmig.errors.LocalFileError`.
        """
        with self._failing("opening"):
            self._check_can_be_made()
            real = self._to_be_made()
            if real is None:
                return None
            self._folder = folder.Folder(real.parent)
            self._partial = partial.Partial(self._folder, real.name, device=str(real), replace=True)
        return self._partial.fd

    def complete(self) -> None:
        """Give the file its name: all of the stream is on stable storage. Raises LocalFileError."""
        if self._partial is not None:
            with self._failing("giving the stream its name"):
                self._partial.publish()
                self._partial.sync()
                self._partial.confirm()

    def discard(self) -> None:
        """Leave nothing of a file that is not complete, and release everything. Safe twice; raises LocalFileError."""
        made, self._partial = self._partial, None
        place, self._folder = self._folder, None
        with self._failing("removing what there is of the stream"), contextlib.ExitStack() as stack:
            if place is not None:
                stack.callback(place.close)
            if made is not None:
                made.discard(withdraw=False)

    @contextlib.contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        try:
            yield
        except errors.DeviceBusy as error:
            raise errors.LocalFileError(doing, uri=self._uri, cause=IN_USE) from error
        except OSError as error:
            raise errors.LocalFileError(doing, uri=self._uri, cause=error) from error


def _mode_of(path: str) -> int | None:
    """Return what is at `path`, or where it leads; None if there is nothing. Raises OSError if nothing can be."""
    try:
        return Path(path).stat().st_mode
    except FileNotFoundError:
        return None


def _is_ours(real: Path) -> bool:
    """Return whether the file can be made, or replaced by one that is made: as far as permissions tell."""
    if not os.access(real.parent, os.W_OK | os.X_OK, effective_ids=True):
        return False
    try:
        there = real.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(there.st_mode) and os.geteuid() in (0, there.st_uid)


def is_held_open(path: str) -> bool:
    """Return whether `path` leads through a descriptor, as /dev/stdout does: to an open file, and not to a name."""
    for _ in range(MAX_LINKS):
        place = os.path.realpath(Path(path).parent)
        if place.startswith("/proc/"):
            return True
        here = os.path.join(place, os.path.basename(path))  # noqa: PTH118, PTH119 - "." and ".." stay as they are
        if not Path(here).is_symlink():
            return False
        path = os.path.join(place, os.readlink(here))  # noqa: PTH115, PTH118
    return False


def known_file(uri: str, *, writing: bool) -> identity.KnownFile | None:
    """Return the file or device that holds the stream of `uri`, None if it is in none."""
    match address.parse_uri(uri):
        case address.FileAddress(path=path):
            return _known(path)
        case address.FdAddress(fd=fd):
            return known_fd(fd)
        case address.StdioAddress():
            return known_fd(STDOUT if writing else STDIN)
    return None


def known_fd(fd: int) -> identity.KnownFile | None:
    """Return what is open at `fd`, under the name that it was opened with, if it has that still."""
    try:
        return _known(os.readlink(f"/proc/self/fd/{fd}"), fd)  # noqa: PTH115 - what is no path stays as it is
    except OSError:
        return None


def _known(path: str, fd: int | None = None) -> identity.KnownFile | None:
    try:
        found = identity.KnownFile.of(path, fd=fd)
    except (OSError, ValueError):
        return None  # whoever opens it says why it cannot be
    return found if found.about is None or found.holds_bytes else None
