# SPDX-License-Identifier: GPL-2.0-or-later
"""No input is ever an output: all files of a migration are compared, that of its stream among them.

A stream to a file, or from one, names it by a path that may lead to one of the disks: by the same name, by a link, by a
descriptor that the shell has redirected. Nothing is opened for writing before all of them were compared.

A file that is made has a hidden name beside its own until it is complete (``files/partial.py``). What has that name is
taken for what an earlier run has left, and removed; so it counts as written, too.

Of a running QEMU's disk the files of the whole chain are known, where they are on this machine: QMP tells their names.
Out of sight are what a command of ``exec:`` does, and what an NBD server has open: the protocol names an export and no
file, so a stream, or a target, in the very file that some server exports cannot be told from any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .. import disk, errors
from ..disk import identity
from ..files import folder, partial, sessionfile
from . import displays, streamfile

if TYPE_CHECKING:
    from .. import sources


class Sources:
    """The files of the disks that are sent, and the file that the stream goes to, if it is one."""

    def __init__(self, uri: str, disks: Iterable[disk.BlockBackend]) -> None:
        self._uri = uri
        self._disks = list(disks)
        self._read: list[tuple[str, identity.KnownFile]] = []
        self._output: identity.KnownFile | None = None
        self._stream = streamfile.StreamFile(uri)

    def check(self) -> None:
        """Take note of what is read, before anything is opened for writing.

        Raises :class:`~blkmig.errors.ParameterError` if the stream would be written over a disk, or over its base.
        """
        self._read = [(backend.name, file.as_it_is_now()) for backend in self._disks for file in backend.files]
        output = streamfile.known_file(self._uri, writing=True)
        if output is not None:
            check_is_free("the stream", output)
        self._check_mark()
        for name, file in self._read:
            if output is not None and identity.is_same(file, output):
                raise errors.ParameterError(
                    f"disk {name!r} is read from {file.path!r}, and the stream would be written over it "
                    f"({self._uri}): send it to another file"
                )
            displays.check(f"disk {name!r}", [file])
        displays.check_writing(self._uri)

    def _check_mark(self) -> None:
        """Refuse a stream whose file is made under the name of something that is in use."""
        mark = self._stream.mark()
        for label, other in ((f"disk {name!r}", file) for name, file in self._read):
            _check_is_not_mark(mark, "the stream", label, other)
        for label, other in (*displays.stdin(), *displays.known()):
            _check_is_not_mark(mark, "the stream", label, other)

    def check_output(self) -> None:
        """Raise :class:`~blkmig.errors.LocalFileError` if the file that the stream goes to cannot be opened; see
        `StreamFile.check`. After `check`."""
        self._stream.check()

    def open_output(self) -> int | None:
        """Return the descriptor of the file that is made for the stream, None where the channel opens what there is.

        After `check`. Raises :class:`~blkmig.errors.LocalFileError`.
        """
        return self._stream.begin()

    def output_is_open(self) -> None:
        """Take note of the file that the stream goes to: it is there by now."""
        output = streamfile.known_file(self._uri, writing=True)
        self._output = output if output is not None and output.is_still_named() else None

    @property
    def is_stream_in_a_file(self) -> bool:
        """Return whether the stream goes to a file or a device, where it only lies."""
        return self._output is not None

    def named(self, path: str) -> tuple[str, identity.KnownFile] | None:
        """Return the disk whose file has this path, in the kernel's words, and that file; without a path, or where none
        has it, that of the only disk. None where nobody knows. Asks no file system."""
        found = [(name, file) for name, file in self._read if file.path == path]
        if not found and len(self._disks) == 1:
            found = self._read
        return found[0] if found else None

    def apart_from(self, file: identity.KnownFile | None) -> list[disk.BlockBackend]:
        """Return the disks that have no file on the file system of `file`; None: that have none at all."""
        near = {
            name
            for name, other in self._read
            if file is None or file.about is None or other.about is None or other.about.st_dev == file.about.st_dev
        }
        return [backend for backend in self._disks if backend.name not in near]

    def changes(self, *, strict: bool) -> list[str]:
        """Return what other programs have done to the sources since `check`; call it after the last read.

        With `strict`, contents that nobody tracks and that changed are a :class:`~blkmig.errors.ContentMismatch`: what
        was read is not what is there, and parts of it may be of different times.
        """
        notes = []
        for name, file in self._read:
            what = file.change()
            if what is None:
                continue
            if strict and not file.is_tracked:
                raise errors.ContentMismatch(
                    f"disk {name!r}: {file.path!r} {what} while it was sent, so the copy cannot be verified: send it "
                    "again when nobody writes it, or through whoever does (qemu:, nbd:, dirtymap:)",
                    device=name,
                )
            notes.append(f"disk {name!r}: {file.path!r} {what} while it was sent")
        return notes

    def complete_output(self) -> None:
        """Give the stream's file its name; call it at the end.

        Raises :class:`~blkmig.errors.MigrationError` if the file is not where it was.
        """
        if self._output is not None and not self._output.is_still_named():
            raise errors.MigrationError(
                f"the stream was written, but its file is gone: {self._output.path!r} was removed or replaced "
                "meanwhile; send it again"
            )
        self._stream.complete()

    def close(self) -> None:
        """Leave no file with a stream that is not complete. Safe twice."""
        self._stream.discard()


class Targets:
    """The files that a receiver writes, and those that it only reads; each is compared with all before it."""

    def __init__(self, uri: str) -> None:
        """Begin with the file that the stream of `uri` comes from, if it is one.

        Raises :class:`~blkmig.errors.DisplayInUse` if results or messages go there.
        """
        displays.check_reading(uri)
        source = streamfile.known_file(uri, writing=False)
        self._read = displays.stdin() if source is None else [("the stream", source), *displays.stdin()]
        self._written: list[tuple[str, identity.KnownFile]] = []
        self._marks: list[tuple[str, identity.KnownFile]] = []
        self._exports: dict[object, str] = {}
        self._memory: list[tuple[str, range]] = []

    def add_target(self, label: str, target: disk.BlockBackend | sources.TargetFile) -> None:
        """Add what somebody named, called `label`: a file and its bases, an NBD export, or memory.

        Raises :class:`~blkmig.errors.ParameterError`; of exports as far as their URIs tell that they are the same.
        """
        if isinstance(target, disk.BlockBackend):
            files, mark, uri = list(target.files), None, getattr(target, "uri", None)
        else:
            files, mark, uri = list(target.files()), target.mark(), target.path
        self.add(label, files[:1], files[1:], mark=mark)
        self._add_memory(label, getattr(target, "byte_addresses", lambda: range(0))())
        if files or not isinstance(uri, str):
            return
        from ..nbd import uri as nbd_uri

        place = nbd_uri.place_of(uri) if nbd_uri.is_nbd_uri(uri) else label
        if (other := self._exports.setdefault(place, label)) != label:
            raise errors.ParameterError(f"{label} and {other} are the same NBD export, {uri}: give each one of its own")

    def _add_memory(self, label: str, here: range) -> None:
        for other, there in self._memory:
            if here and max(here.start, there.start) < min(here.stop, there.stop):
                raise errors.ParameterError(f"{label} and {other} are in the same memory: give each some of its own")
        self._memory.append((label, here))

    def add(
        self,
        label: str,
        written: Iterable[identity.KnownFile],
        read: Iterable[identity.KnownFile] = (),
        *,
        mark: identity.KnownFile | None = None,
    ) -> None:
        """Add the files of one target, called `label`, and what has its hidden name.

        Raises :class:`~blkmig.errors.ParameterError`.
        """
        written, read, shown = list(written), list(read), displays.known()
        for file in written:
            check_is_free(label, file)
        for other, known in (*shown, *self._written, *self._read, *((f"the base of {label}", base) for base in read)):
            _check_is_not_mark(mark, label, other, known)
        for other, known in self._marks:
            for file in (*written, *read):
                _check_is_not_mark(known, other, label, file)
        if mark is not None:
            self._marks.append((label, mark))
        for file in written:
            for other, known in (*shown, *self._written, *self._read, *((label, base) for base in read)):
                if identity.is_same(file, known):
                    raise _same(label, file, other, known)
        for file in read:
            for other, known in (*shown, *self._written):
                if identity.is_same(file, known):
                    raise _same(label, file, other, known)
        self._written += [(label, file) for file in written]
        self._read += [(f"the base of {label}", file) for file in read]


def check_is_free(label: str, file: identity.KnownFile) -> None:
    """Refuse to write `label` at a name that belongs to the migration of another disk, which makes and removes it."""
    for name in (os.path.basename(file.path), os.path.basename(os.path.realpath(file.path))):  # noqa: PTH119
        if any(folder.is_hidden_name(name, suffix) for suffix in (sessionfile.SUFFIX, partial.SUFFIX)):
            raise errors.ParameterError(
                f"{label} cannot be at {file.path!r}: a name like {name!r} is that of what blkmig makes beside another "
                "disk while it arrives or moves, and removes: say another one"
            )


def _check_is_not_mark(mark: identity.KnownFile | None, label: str, other: str, known: identity.KnownFile) -> None:
    """Refuse to make `label` if `known`, which is `other`, has the hidden name under which it is made."""
    if mark is None or not identity.is_same(mark, known):
        return
    why = f"{label} is made under the name {mark.path!r}, and {other} is there: rename that"
    if other in (displays.STDOUT_LABEL, displays.STDERR_LABEL):
        raise errors.DisplayInUse(why, display=other)
    raise errors.ParameterError(why)


def _same(label: str, file: identity.KnownFile, other: str, known: identity.KnownFile) -> errors.ParameterError:
    why = f"{label} at {file.path!r} and {other} at {known.path!r} are the same file: give each a file of its own"
    if other in (displays.STDOUT_LABEL, displays.STDERR_LABEL):
        return errors.DisplayInUse(why, display=other)
    return errors.ParameterError(why)
