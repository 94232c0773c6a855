# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target refuses before anything is touched; `path` and `label` are what messages call it."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from .. import errors
from ..disk import identity
from ..files import folder, partial


def check_can_be_replaced(there: identity.KnownFile, path: str, label: str) -> None:
    """Refuse a file that would have to be emptied before the new one is complete, because it cannot be replaced."""
    if there.about is not None and there.about.st_size and folder.is_mount_point(Path(there.path)):
        cause = "something is mounted on it, so it cannot be replaced: say NAME=PATH to have it written in place"
        raise errors.DeviceError(f"cannot create {path!r}", device=label, cause=cause)


def check_holds_base(there: identity.KnownFile, path: str, label: str) -> None:
    """Refuse a file that is made, where only what stands above a base comes."""
    exists = "it does not exist" if there.about is None else "it is empty or half made"
    cause = f"{exists}, and a new one does not hold the base: begin with a copy of the base"
    raise errors.DeviceError(f"cannot open {path!r}", device=label, cause=cause)


def check_is_no_folder(there: identity.KnownFile, path: str, label: str) -> None:
    """Refuse a folder in the place of a disk."""
    if there.about is not None and stat.S_ISDIR(there.about.st_mode):
        cause = f"it is a folder: name a file in it, or say --into {path!r} for all disks of the stream"
        raise errors.DeviceError(f"cannot open {path!r}", device=label, cause=OSError(errno.EISDIR, cause))


def check_is_a_name(described: str, real: Path, path: str, label: str) -> None:
    """Refuse the name of a folder, one in a folder that is missing, and a device that is missing."""
    if described.endswith("/"):
        raise errors.ParameterError(f"{described!r} is no name for a file: say --into for a folder")
    with errors.failing(f"cannot open {path!r}", device=label):
        partial.check_takes_files(real)
    if not real.parent.exists():
        cause = OSError(errno.ENOENT, "its folder does not exist: make it first")
        raise errors.DeviceError(f"cannot create {path!r}", device=label, cause=cause)
