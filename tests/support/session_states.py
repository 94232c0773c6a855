# SPDX-License-Identifier: GPL-2.0-or-later
"""What the session file beside a disk says, also one that a migration has locked."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from blkmig.files import folder, sessionfile


def state_of(disk: Path) -> str | None:
    """Return the state in the session file of `disk`; None if there is none. Raises what its reader raises."""
    found = disk.with_name(sessionfile.session_name(disk.name))
    if not found.exists():
        return None
    with tempfile.TemporaryDirectory() as copies, contextlib.closing(folder.Folder(copies)) as place:
        Path(copies, found.name).write_bytes(found.read_bytes())
        file = sessionfile.SessionFile(place, disk.name, device=disk.name, create=False)
        file.close()
    return str(file.says.get("state"))
