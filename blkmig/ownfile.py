# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that blkmig writes for people and monitoring: replaced as a whole, and never anything that is not such a file.

A name that is mistyped may be that of a disk. So a file is replaced only if it is empty, or begins with the mark that
every file of its kind begins with.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat


def check(path: str | os.PathLike[str], mark: bytes) -> None:
    """Raise OSError unless `path` may be replaced: nothing is there, or nothing is in it, or it begins with `mark`.

    Blocks as the file system does.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not is_regular or file.read(len(mark)) not in (b"", mark):
            raise FileExistsError(errno.EEXIST, "something else is there; say another name", os.fspath(path))


def replace(path: str | os.PathLike[str], content: bytes, mark: bytes) -> None:
    """Make `path` hold `content`, which begins with `mark`; a reader sees the old file or the new one, each whole.

    A symlink stays: the file that it leads to is replaced. A file that is replaced keeps its mode, and a new one may be
    read by everybody. Raises OSError as `check` does, and if it cannot be written. Blocks.
    """
    check(path, mark)
    target = pathlib.Path(os.path.realpath(path))
    made = target.with_name(f".{target.name}.blkmig-new")
    made.unlink(missing_ok=True)
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
            file.write(content)
        made.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink()
        raise
