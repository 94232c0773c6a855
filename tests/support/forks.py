# SPDX-License-Identifier: GPL-2.0-or-later
"""Something done in a forked child of this process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

SECONDS = 30
"""A child that hangs is ended after that."""


@contextlib.contextmanager
def living_child() -> Iterator[None]:
    """Have a child that has all descriptors of this process, and does nothing, for the length of a ``with``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        yield
    finally:
        os.close(reading)
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0


def in_a_child(call: Callable[[], object]) -> str:
    """Run in a forked child; return what went wrong there, "" if nothing did. The child ends without cleaning up."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            call()
            said = ""
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 4096), b"")).decode()
    os.close(reader)
    assert os.waitpid(child, 0)[1] == 0, "the child hung"
    return said
