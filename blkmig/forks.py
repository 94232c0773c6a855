# SPDX-License-Identifier: GPL-2.0-or-later
"""What a forked child must not have of its parent's connections.

A thread that serves a connection is not in the child, and what the child would say stands in the middle of its parent's
conversation. As long as it has the socket, the other side does not see that the parent has gone. So in the child
/dev/null takes the socket's place: the descriptor's number stays in use, and whoever closes it there closes that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref

_sockets: weakref.WeakKeyDictionary[object, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Descriptor and inode by who has it: in a child, the number may be that of another file by then."""


def leave_to_parent(owner: object, fd: int) -> None:
    """Have forked children lose the socket `fd`, as long as `owner` lives."""
    _sockets[owner] = fd, os.fstat(fd).st_ino


def not_here() -> OSError:
    """Return the error for a connection that is used in a forked child."""
    return OSError(errno.ECHILD, "the connection is the parent process's: open the disk after the fork")


def _forget_all() -> None:
    sockets = list(_sockets.values())
    _sockets.clear()
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd, inode in sockets:
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.dup2(null, fd, inheritable=False)
        os.close(null)


os.register_at_fork(after_in_child=_forget_all)
