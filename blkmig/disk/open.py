# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a user calls a disk to the disk."""

from __future__ import annotations

import os
import pathlib

from . import backend, file


def open_target(
    path: str | os.PathLike[str], *, name: str, size: int | None = None, direct: bool = False
) -> backend.BlockBackend:
    """Open the target of a migration, or create it.

    What exists keeps its size. A missing or empty file becomes a disk of `size` bytes, or, where nobody knows that,
    one that grows. Raises :class:`~blkmig.errors.DeviceError`.
    """
    if not pathlib.Path(path).exists():
        return file.FileBackend(path, name=name, create_size=size or 0, direct=direct)
    target = file.FileBackend(path, name=name, direct=direct)
    if target.is_growable and size is not None:
        target.resize(size)
    return target
