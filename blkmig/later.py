# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a room that are loaded when they are first used: a migration loads only what it needs.

See docs/decisions/loaded-when-used.md.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable


def opener(room: str, **files: str) -> Callable[[str], object]:
    """Return the `__getattr__` of the module `room`: it loads each name from its file, once.

    Each of `files` is in the package `room`, or beside a module that is no package, and says its names, with spaces
    between. No name may be that of a file, too: when that is loaded, the room would have the file in its place.
    """
    file_of = {name: file for file, names in files.items() for name in names.split()}
    package = sys.modules[room].__package__

    def load(name: str) -> object:
        if name not in file_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f".{file_of[name]}", package), name)
        setattr(sys.modules[room], name, value)  # from now on it is an attribute like any other
        return value

    return load
