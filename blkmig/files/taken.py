# SPDX-License-Identifier: GPL-2.0-or-later
"""What session files say, and what to do about one that a killed process has left.

::

    says        the file of a                means
    open        sender, receiver             nothing was decided
    noted       sender of a move             COMMIT may have left: the target may own the disks
    committing  receiver                     the disks are this host's; some of them may still have their hidden names
    committed   receiver                     the disks are this host's, with their names
    see         receiver, beside each        what to do about this disk is in the file of the first one
                other disk

The owner of the disks of a move is decided by the receiver's file, and by nothing else: it is the target from the
moment when ``committing`` is on stable storage. So whoever meets that gives the names that are missing before anything
else happens to such a disk, and removes nothing: the hidden file is the only owner's disk. A file that says what no
blkmig says is an error: nobody can tell what it stands for.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import errors
from . import folder, partial, sessionfile, sessionwords


def meet(
    disk: str, *, device: str, state_dir: str | None = None, settled: bytes | None = None
) -> Mapping[str, Any] | None:
    """Look for a session file of `disk`, a path or a URI, which a migration wants to make, write or send. Blocks.

    It may be beside the disk, or in `state_dir`. A path leads through no link. Returns if nothing speaks against that
    migration: what the file of a receiver that had decided nothing says of this disk, if there is one. Raises
    :class:`~blkmig.errors.InDoubt` for a disk that may have moved, and for one that has moved here: then all disks of
    that session have their names. Raises :class:`~blkmig.errors.DeviceBusy` if the other migration still runs, and
    :class:`OSError`.
    """
    places = [sessionfile.where(disk, state_dir)] if state_dir is not None else []
    if Path(disk).is_absolute():
        places.append(sessionfile.where(disk, None))
    found = [_meet(place, name, disk, device=device, settled=settled) for place, name in places]
    return next(filter(None, found), None)


def _meet(place: Path, name: str, disk: str, *, device: str, settled: bytes | None) -> Mapping[str, Any] | None:
    with contextlib.ExitStack() as stack:
        found = _find(place, name, stack, device=device)
        if found is None:
            return None
        if found.says.get("state") == "noted":
            if settled is not None and found.says.get("key") == settled.hex():
                return None
            raise errors.InDoubt(_NOTED.format(disk, found.path))
        said, left = found.says, _seconds_left(found)
        is_asked = left > 0
        if said.get("state") == "committed":
            for about in said["disks"]:
                _unmark(about)
        if said.get("state") == "committing" or (said.get("state") == "committed" and is_asked):
            nameless = give_names(found) if said["state"] == "committing" else {}
            is_asked = is_asked and not nameless
            if is_asked:  # by whoever meets this now, and nobody later
                found.store(_settled(found.says))
            taken = {**said, "seconds": left} if is_asked else None
            raise errors.InDoubt(_describe_taken(found, nameless), taken=taken)
        is_left = found.says.get("state") == "open" and found.says.get("side") == "target"
        return next((about for about in found.says["disks"] if about["path"] == disk), None) if is_left else None


def _find(place: Path, name: str, stack: contextlib.ExitStack, *, device: str) -> sessionfile.SessionFile | None:
    """Return the session file that counts for a disk, if it says anything that counts."""
    found = _open(place, name, stack, device=device)
    if found is not None and found.says.get("state") == "see":
        where, first_name = found.says["first"]
        first = _open(Path(where), first_name, stack, device=device)
        return first if first is not None and first.says.get("id") == found.says["id"] else None
    return found


def _open(where: Path, name: str, stack: contextlib.ExitStack, *, device: str) -> sessionfile.SessionFile | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        place = stack.enter_context(contextlib.closing(folder.Folder(where)))
        if place.stat(sessionfile.session_name(name)) is None:
            return None
        found = sessionfile.SessionFile(place, name, device=device, create=False)
        stack.callback(found.close)
        if not sessionwords.is_sound(found.says):
            raise found.damaged()
        return found
    return None


def give_names(found: sessionfile.SessionFile) -> dict[int, str]:
    """Give the disks of a session that says ``committing`` the names that are missing; it says ``committed`` then.

    Returns why which disks have not got theirs: they keep their hidden names, and the file says ``committing``.
    """
    found.store(found.says)  # what was read may only stand in the page cache, of a store that failed
    nameless: dict[int, str] = {}
    for index, about in enumerate(found.says["disks"]):
        try:
            give_name(about)
        except OSError as error:
            nameless[index] = error.strerror or str(error)
    if not nameless:
        found.store({**found.says, "state": "committed"})
    return nameless


def _seconds_left(found: sessionfile.SessionFile) -> int:
    """Return for how long a source may still ask what was decided, by a clock that may have been set meanwhile."""
    seconds: int = found.says.get("seconds", 0)
    return math.ceil(min(seconds, found.stored_at + seconds - time.time()))


def _settled(says: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same without the words that a source may ask."""
    return {key: value for key, value in says.items() if key not in sessionwords.OF_WHO_ASKS}


def give_name(about: Mapping[str, Any]) -> None:
    """Give a disk its name, on stable storage; nothing is done to one that has it, or was never hidden."""
    if "inode" not in about:  # it was there before
        return
    path = Path(about["path"])
    with contextlib.closing(folder.Folder(path.parent)) as place:
        mark = partial.partial_name(path.name)
        hidden, there = place.stat(mark), place.stat(path.name)
        if there is not None and there.st_ino == about["inode"]:
            pass
        elif hidden is None or hidden.st_ino != about["inode"]:
            raise OSError(errno.ENOENT, f"neither {path} nor {place.path / mark} is the disk that came")
        elif there is not None and there.st_ino != about.get("replaces"):
            raise OSError(errno.EEXIST, f"somebody else has made {path} meanwhile, so it is {place.path / mark}")
        elif there is None:
            place.give_name(mark, path.name)
        else:
            _look_like(place, mark, there)
            place.give_name(mark, path.name, replace=True)
        place.sync()  # first: else both names may be lost
        _remove_mark(place, mark, about["inode"])


def _unmark(about: Mapping[str, Any]) -> None:
    """Remove the mark of a disk that has its name, which a power failure may have brought back."""
    path = Path(about["path"])
    with contextlib.suppress(OSError), contextlib.closing(folder.Folder(path.parent)) as place:
        there = place.stat(path.name)
        if there is not None and there.st_ino == about.get("inode"):
            _remove_mark(place, partial.partial_name(path.name), there.st_ino)


def _look_like(place: folder.Folder, mark: str, replaced: os.stat_result) -> None:
    fd = place.open(mark, os.O_RDWR)
    try:
        folder.look_like(fd, replaced)
    finally:
        os.close(fd)


def _remove_mark(place: folder.Folder, mark: str, inode: int) -> None:
    """Remove the second name of a disk that has its own, on stable storage."""
    with contextlib.suppress(FileNotFoundError):
        fd = place.open(mark, os.O_PATH)
        try:
            if os.fstat(fd).st_ino == inode:
                place.unlink(mark, fd)
                place.sync()
        finally:
            os.close(fd)


def _describe_taken(found: sessionfile.SessionFile, nameless: Mapping[int, str]) -> str:
    """Say what became of the disks of a session whose receiver was killed."""
    paths = [about["path"] for about in found.says["disks"]]
    whole = ", ".join(repr(path) for index, path in enumerate(paths) if index not in nameless)
    broken = "".join(f"; {paths[index]!r} has not got its name: {why}" for index, why in nameless.items())
    return (
        "a migration before this one had taken its disks when its receiver was killed, or lost its source: they are "
        "here, and complete: "
        f"{whole or 'none with its own name'}{broken}. Nothing was received now. If it was a move, do not use the "
        "source's copies any more. To receive other disks over these, say the same once more"
    )


_NOTED = (
    "the disk at {0} may have moved: a move of it, which was killed or lost its link, had handed it over, and the "
    "target's word did not come. Look on the target: if its receiver ended with exit code 0, or said that the disk is "
    "complete there, the disk has moved, do not use it here. If it was killed, start `blkmig receive` there once more "
    "with the same disk, which settles it. Only if the target has not taken the disk, it is this host's: remove {1} "
    "then"
)
