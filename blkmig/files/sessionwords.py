# SPDX-License-Identifier: GPL-2.0-or-later
"""What the text of a session file may say: whoever reads one looks at all of it first, for it leads to files.

::

    says      {"state": one of `State`, "id": text, "disks": [disk, ...]}, or {} where nothing was stored
              {"key": 32 hex digits, "seconds": number, "end": number}, too, of a receiver whose source may ask again,
              {"secret": 128 hex digits}, too, if it had a token: what that was made of, see `channel.token`
    see       {"state": "see", "id": text, "first": [folder, name]}
    a disk    {"path": text, "inode": number, "replaces": number, "size": number}, the numbers where they are known
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["open", "noted", "committing", "committed", "see"]

OF_WHO_ASKS = ("seconds", "secret")
"""What is said only while a source may ask."""

_MOST = (1 << 64) - 1
"""Numbers of files are no larger."""


def is_sound(says: Mapping[str, Any]) -> bool:
    """Return whether a blkmig may have written that; keys that nobody knows are passed over."""
    if not says:
        return True
    state = says.get("state")
    if not isinstance(state, str) or state not in get_args(State) or not isinstance(says.get("id"), str):
        return False
    if state == "see":
        first = says.get("first")
        return isinstance(first, list) and len(first) == 2 and _is_text(first[0]) and _is_name(first[1])
    if not _is_session(says):
        return False
    disks = says.get("disks")
    return isinstance(disks, list) and all(map(_is_disk, disks))


def _is_session(says: Mapping[str, Any]) -> bool:
    if "seconds" not in says:
        return True
    are_keys = _is_hex(says.get("key"), 32) and ("secret" not in says or _is_hex(says["secret"], 128))
    return are_keys and all(_is_number(says.get(key)) and says[key] < 1 << 32 for key in ("seconds", "end"))


def _is_hex(value: object, count: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{count}}}", value) is not None


def _is_disk(about: object) -> bool:
    if not isinstance(about, dict) or not _is_text(about.get("path")):
        return False
    if not all(_is_number(about[key]) for key in ("inode", "replaces", "size") if key in about):
        return False
    return "inode" not in about or _is_path(about["path"])


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_path(value: object) -> bool:
    return _is_text(value) and Path(str(value)).is_absolute() and Path(str(value)).name not in ("..", "")


def _is_name(value: object) -> bool:
    return _is_text(value) and "/" not in str(value) and value not in (".", "..")


def _is_text(value: object) -> bool:
    """Return whether it is a text that the system takes in a path."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True
