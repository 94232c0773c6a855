# SPDX-License-Identifier: GPL-2.0-or-later
"""What an earlier migration has left of a new target, and whether it is certainly that.

Its contents are never trusted: they are compared. What is looked at here keeps a source that resumes from meeting the
leftover of another disk, which would be lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..files import partial


def check(made: partial.Partial, noted: Mapping[str, Any] | None, size: int | None, path: str, label: str) -> None:
    """Raise :class:`~blkmig.errors.DeviceError` unless the file is the one that the session file has `noted`, of a
    disk of `size` bytes."""
    cause = ""
    if not made.is_taken_up:
        cause = "nothing of it is here"
    elif noted is None or "inode" not in noted:
        cause = "no session file says what its hidden file is"
    elif noted["inode"] != os.fstat(made.fd).st_ino:
        cause = "its hidden file is another one than was being received"
    elif noted.get("size", size) != size:
        cause = f"it was begun for a disk of {noted['size']} bytes, and this one has {size}"
    if cause:
        raise errors.DeviceError(
            f"cannot resume {path!r}", device=label, cause=f"{cause}; to begin anew, send without --resume"
        )
