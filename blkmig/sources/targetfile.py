# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the disk of a migration arrives: a file, a device or an export that exists, or a file that is made for it.

A target that exists is opened, locked and checked in `prepare`, before anybody connects. A target that does not exist
is made under a hidden name (see `partial.py`), and gets its size when its disk comes. ::

    prepare ─ open ─ (the disk is written and flushed) ─ check ─ publish ─ sync ─ confirm ─ sync ─ discard
       └──────────────────────────── discard: at any moment, and after a failure ────────────────────┘
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import errors, units
from ..disk import backend, identity
from ..files import folder, partial, sessionfile, taken
from . import leftover, oldcopy, opening, refusing

FOLDER_SUFFIX = ".raw"


class TargetFile:
    """The target that `text` names, for the disk that messages call `label`.

    With a folder `into`, `text` is the name of a file in it. Such a file is never reached through a link. If it exists,
    it is refused without `overwrite`, and with it replaced when the new file is complete; an `incremental` migration
    writes into the existing file. Nothing is touched before `prepare`. Raises :class:`~blkmig.errors.ParameterError`
    for a text that cannot be a target, later :class:`~blkmig.errors.DeviceError`.
    """

    def __init__(
        self,
        text: str | os.PathLike[str],
        *,
        label: str,
        into: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        incremental: bool = False,
        direct: bool = False,
        old: str | os.PathLike[str] | None = None,
        in_place: bool = False,
        idle_timeout: float = opening.IDLE_SECONDS,
        state_dir: str | None = None,
    ) -> None:
        units.check_flags(overwrite=overwrite, incremental=incremental, direct=direct)
        self.label = label
        self.is_new = False  # whether the file is made for the disk, or was an empty file before
        self.may_be_left = False  # what has come of it may be, for a source that resumes
        self._into = into
        self._overwrite = overwrite
        self._incremental = incremental
        self._text = text
        self._idle_timeout, self._state_dir = idle_timeout, state_dir
        self._left: Mapping[str, Any] | None = None  # what a killed receiver has noted of this target
        self._disk_size: int | None = None
        self._backend: backend.BlockBackend | None = None
        self._partial: partial.Partial | None = None
        self.reuse = oldcopy.Reuse(old, in_place=in_place, label=label, idle_timeout=idle_timeout)
        self._folder: folder.Folder | None = None
        if opening.is_live(text):
            raise errors.ParameterError(f"{text!r} can only be a source: give the target as a file or an NBD export")
        self._is_nbd = into is None and opening.is_nbd(text)
        self._described = opening.FileDescription(path=os.fspath(text), direct=direct)
        if into is None and not self._is_nbd:
            self._described = opening.describe(text, direct=direct)

    @property
    def path(self) -> str:
        """Return the path of the complete disk, for messages."""
        return str(self._text) if self._is_nbd else str(Path(self._into or "", self._described.path))

    @property
    def size(self) -> int | None:
        """Return the size of a target that exists and keeps it, once it is prepared; None for any other one."""
        return None if self._backend is None or self._backend.is_growable else self._backend.size

    @property
    def size_unit(self) -> int:
        """Return of how many bytes the size of a target that exists is a multiple, once it is prepared."""
        return 1 if self._backend is None else self._backend.size_unit

    @property
    def is_fixed_file(self) -> bool:
        """Whether the target is a file that exists and keeps its size."""
        return self._backend is not None and bool(self._backend.files) and self._backend.files[0].is_regular

    def files(self) -> Iterator[identity.KnownFile]:
        """Yield the file that will be written, then its base. Raises :class:`~blkmig.errors.DeviceError`."""
        if not self._is_nbd:
            with self._failing("look at"):
                yield identity.KnownFile.of(self.path)
                if self._described.base is not None:
                    yield identity.KnownFile.of(self._described.base)
                yield from self.reuse.files()

    def mark(self) -> identity.KnownFile | None:
        """Return the file at the hidden name, which `prepare` would remove; None if no file is made under such a
        name."""
        if self._is_nbd:
            return None
        with contextlib.suppress(OSError, ValueError):  # whoever opens it says why it cannot be
            path = Path(self.path if self._into is not None else os.path.realpath(self.path))
            return identity.KnownFile.of(path.with_name(partial.partial_name(path.name)))
        return None

    def layers(self) -> Sequence[identity.KnownFile]:
        """Return the backing files of a target that exists, once it is prepared. They are only read."""
        return () if self._backend is None else self._backend.files[1:]

    # -- before the disk comes ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Open a target that exists, or make the file that becomes the target."""
        with self._failing("look at"):
            self._left = taken.meet(self.about().path, device=self.label, state_dir=self._state_dir)
        if self._is_nbd:
            self._backend = opening.open_disk(str(self._text), name=self.label, idle_timeout=self._idle_timeout)
            return
        with self._failing("look at"):
            there = identity.KnownFile.of(self.path)
        self.is_new = there.about is None or (self._has_mark() and not self.reuse.in_place)
        if there.about is not None and there.is_regular:
            self.is_new = self.is_new or not there.about.st_size
        self.reuse.check(self.path, exists=there.about is not None, is_new=self.is_new)
        if self._into is not None:
            self._prepare_in_folder(self._into, there)
        elif self.is_new:
            if self._incremental and self._described.base is None:
                refusing.check_holds_base(there, self.path, self.label)
            if there.about is None:
                opening.check_can_be_made(self._described)
            real = Path(os.path.realpath(self._described.path))
            refusing.check_is_a_name(self._described.path, real, self.path, self.label)
            self._begin(str(real.parent), real.name)
            self.reuse.fill(self._partial, self.path, is_raw=self._described.is_raw)
        else:
            refusing.check_is_no_folder(there, self.path, self.label)
            self._backend = opening.open_file(self._described, name=self.label)
            self.reuse.take(self._backend, self.path)

    def _real(self) -> Path:
        """Return where the disk is, or will be; what a folder has under its name is never followed."""
        if self._into is None:
            return Path(os.path.realpath(self.path))
        return Path(os.path.realpath(self._into), self._described.path)

    def _prepare_in_folder(self, into: str | os.PathLike[str], there: identity.KnownFile) -> None:
        name = self._described.path
        if self._incremental:
            if self._incremental and self._described.base is None and self.is_new:
                refusing.check_holds_base(there, self.path, self.label)
            self._open_in_folder(into, name)
        else:
            if self._overwrite:
                refusing.check_can_be_replaced(there, self.path, self.label)
            self._begin(into, name, replace=self._overwrite)

    def _open_in_folder(self, into: str | os.PathLike[str], name: str) -> None:
        """Open a file of the folder that holds the base already."""
        if not self._overwrite:
            raise self._exists()
        with self._failing("open"):
            self._folder = folder.Folder(into)
            opened = self._folder.open(name, os.O_RDWR)
        self._backend = opening.open_file(self._described, name=self.label, path=self.path, opened=opened)

    def _has_mark(self) -> bool:
        """Return whether an earlier run has left the file half made, or unconfirmed."""
        real = Path(os.path.realpath(self.path))
        try:
            return real.samefile(real.with_name(partial.partial_name(real.name)))
        except (OSError, ValueError):
            return False

    def _begin(self, place: str | os.PathLike[str], name: str, *, replace: bool = False) -> None:
        self.is_new = True
        self.may_be_left = self._described.is_raw and not (self.reuse.is_filled or self._incremental)
        try:
            with self._failing("create"):
                self._folder = folder.Folder(place, create=self._into is not None)
                self._partial = partial.Partial(
                    self._folder, name, device=self.label, replace=replace, take_up=self.may_be_left
                )
        except errors.DeviceError as error:
            is_refused = isinstance(error.__cause__, FileExistsError) and not Path(self.path).is_symlink()
            if is_refused and self._into is not None and not replace:
                raise self._exists() from error
            raise

    def _exists(self) -> errors.DeviceError:
        cause = "it exists already: say --overwrite to replace what the folder holds, or NAME=PATH for this disk"
        return errors.DeviceError(f"cannot create {self.path!r}", device=self.label, cause=cause)

    def check_size_is_known(self, size: int | None) -> None:
        """Raise :class:`~blkmig.errors.ParameterError` if the target is made in a format that needs a `size`."""
        if self.is_new:
            opening.check_size_is_known(self._described, size)

    # -- when it comes -----------------------------------------------------------------------------------------------

    def open(self, name: str, size: int | None, *, resumes: bool = False) -> backend.BlockBackend:
        """Return the disk, called `name`. A new disk has `size` bytes; if that is None, it grows.

        With `resumes` it holds what an earlier run has left; raises :class:`~blkmig.errors.DeviceError` if there is
        nothing that is certainly that. Whoever opens it closes it.
        """
        taken, self._backend = self._backend, None
        self._disk_size = size
        if taken is not None:
            taken.name = name
            if resumes:
                from ..files import inplace

                inplace.settle(taken)
            return taken
        assert self._partial is not None
        if resumes:
            leftover.check(self._partial, self._left, size, self.path, self.label)
            with self._failing("open"):
                self._partial.settle()
        else:
            self._partial.begin_anew()
        opening.check_size_is_known(self._described, size)
        with self._failing("open"):
            opened = self._partial.reopen()
        return opening.open_file(
            self._described, name=name, create_size=size or 0, path=self._partial.path, opened=opened
        )

    def about(self) -> sessionfile.Disk:
        """Return what a session file says of it; of a file that is made, once it is prepared."""
        if self._partial is not None:
            return self._partial.about()._replace(size=self._disk_size)
        if self._is_nbd:
            return sessionfile.Disk(self.path, is_file=False)
        real = self._real()
        return sessionfile.Disk(str(real), is_file=real.is_file(), inode=self.reuse.inode)

    # -- when it is complete, or not ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if the new file was moved, removed or replaced meanwhile."""
        if self._partial is not None:
            with self._failing("complete"):
                self._partial.check()

    def publish(self) -> None:
        """Give the new file its name."""
        with self._failing("complete"):
            if self._partial is not None:
                self._partial.publish()
            self.reuse.end()

    def unmark(self) -> None:
        """Have nothing but a session file say that the new file is not complete: its name is on stable storage."""
        if self._partial is not None:
            self._partial.unmark()

    def sync(self) -> None:
        """Return when the new file's name is on stable storage."""
        if self._partial is not None:
            with self._failing("complete"):
                self._partial.sync()

    def keep(self) -> None:
        """Have `discard` remove nothing: the disk may be this host's, and no other one's."""
        if self._partial is not None:
            self._partial.keep()

    def confirm(self) -> bool:
        """Take note that nothing takes it back any more: the other end knows. Return whether a name has changed."""
        with self._failing("close"):
            return self._partial is not None and self._partial.confirm()

    def discard(self, *, withdraw: bool, is_written: bool = True) -> bool:
        """Release everything, and remove a new file that is not complete; return whether a new file was removed.

        A published file stays, unless `withdraw` takes it back. Safe after `confirm`, and twice; see `Reuse.discard`.
        """
        taken, self._backend = self._backend, None
        made, self._partial = self._partial, None
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._failing("clean up"))
            stack.callback(self._close_folder)
            if taken is not None:
                stack.callback(taken.close)
            stack.callback(self.reuse.discard, is_written=is_written)
            return made is not None and made.discard(withdraw=withdraw)

    def _close_folder(self) -> None:
        if self._folder is not None:
            self._folder.close()

    def _failing(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return errors.failing(f"cannot {doing} {self.path!r}", device=self.label)
