# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver makes for its disks, files and the folders around them, and what becomes of it.

::

    prepare ─┬─ publish ─ (the source is told) ─ confirm     it stays
             ├─ check, keep ─ give_names ─ confirm           it stays: the source has handed it over
             ├─ leave, discard                               it stays under its hidden name, for who resumes
             └─ discard                                      it is removed, but for what the source may know of

`TargetSet` says when.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping

from .. import block, errors, sources
from ..files import folder, sessionfile


class MadeTargets:
    """The files that were prepared, in the order in which they were, and the folders that were made for them."""

    def __init__(self) -> None:
        self.folders: list[pathlib.Path] = []
        """Those that were made, the outermost first."""

        self.is_whole = False
        """Everything has come, and stays: the source has handed it over, or may have our word."""

        self._targets: list[sources.TargetFile] = []
        self._is_left = False

    def prepare(self, target: sources.TargetFile) -> None:
        """Prepare a file; from now on it is one of these."""
        self._targets.append(target)
        target.prepare()

    def abouts(self) -> list[sessionfile.Disk]:
        """Return what a session file says of them; their hidden names are on stable storage then."""
        self.sync()
        return [target.about() for target in self._targets]

    def check(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if one of the files could not get its name now."""
        for target in self._targets:
            target.check()

    def keep(self) -> None:
        """Remove nothing from now on: what was made may be the only owner's disk."""
        self.is_whole = True
        self._stay()

    def leave(self) -> None:
        """Remove nothing from now on: a source may resume."""
        self._is_left = True
        self._stay()

    def _stay(self) -> None:
        self.folders.clear()
        for target in self._targets:
            target.keep()

    def give_names(self) -> dict[str, errors.MigrationError]:
        """Give every file its name, on stable storage; return why those that did not get theirs did not, by label.

        Those have no other name any more: `sync` brings that to stable storage, too, which nobody has to wait for.
        """
        nameless: dict[str, errors.MigrationError] = {}
        for give in (sources.TargetFile.publish, sources.TargetFile.sync):  # the first flush makes the others quick
            for target in self._targets:
                try:
                    give(target)
                except errors.MigrationError as error:
                    nameless.setdefault(target.label, error)
        for target in self._targets:
            if target.label not in nameless:
                target.unmark()
        return nameless

    def publish(self) -> None:
        """Give every file its name, once all were looked at; all of it is on stable storage when this returns."""
        self.check()
        for target in self._targets:
            target.publish()
        self.sync()

    def confirm(self) -> None:
        """Take note that everything stays."""
        self.is_whole = True
        self.folders.clear()
        had_marks = [target.confirm() for target in self._targets]
        if any(had_marks):
            self.sync()

    def discard(self, exc: BaseException | None, came: Mapping[sources.TargetFile | None, block.BlkLoadDevice]) -> None:
        """Remove what does not stay after a body that has raised `exc`, and note it there.

        `came` are those that were opened for a disk, and how it was received. What fails is raised when all was tried.
        """
        targets, self._targets = self._targets, []
        is_known = self.is_whole and not isinstance(exc, errors.InDoubt)  # to the source: then there is no more to say
        discard = functools.partial(_discard, exc=exc, is_left=self._is_left, is_known=is_known)
        each = [functools.partial(discard, target, received=came.get(target)) for target in reversed(targets)]
        errors.each([*each, lambda: folder.remove_empty(self.folders)])  # those that were made for nothing

    def sync(self) -> None:
        """Return when the names that were given, and those that were removed, are so on stable storage."""
        for target in self._targets:  # the first flush makes the others quick
            target.sync()


def _discard(
    target: sources.TargetFile,
    exc: BaseException | None,
    received: block.BlkLoadDevice | None,
    *,
    is_left: bool,
    is_known: bool,
) -> None:
    with errors.keeping(exc):
        is_written = received is not None and received.statistics.has_come
        is_gone = target.discard(withdraw=isinstance(exc, errors.MigrationError), is_written=is_written)
        if isinstance(exc, Exception) and target.is_new and received is not None and not is_known:
            exc.add_note(_became(target.path, is_gone=is_gone, is_left=is_left))


def _became(path: str, *, is_gone: bool, is_left: bool) -> str:
    if is_gone:
        return f"{path!r} was not made: what had come of it is removed"
    if is_left:
        return (
            f"{path!r} was not made, and what had come of it is kept under a hidden name: start this command again, "
            "and send with --resume; whatever else is received there begins anew"
        )
    if not os.path.lexists(path):
        return f"all of {path!r} has come, and is there under a hidden name; the source may not know"
    return f"{path!r} is complete, but the source may not know"
