# SPDX-License-Identifier: GPL-2.0-or-later
"""Something done in a forked child of this process."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import blkmig
from blkmig import cli

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


def import_everything() -> None:
    """Load all modules: a thread that loads one while its process forks leaves it locked for good in the child."""
    for module in pkgutil.walk_packages(blkmig.__path__, "blkmig."):
        if not module.name.startswith(("blkmig.gates", "blkmig.__main__")):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module.name)


def start(body: Callable[[], object]) -> int:
    """Run `body` in a forked child and return its pid; the child never comes back, and exits with 1 if it raised."""
    import_everything()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def command(words: list[str], log: Path, *, result: str = "", begin: Callable[[], object] = lambda: None) -> int:
    """Run ``blkmig``'s own main in a forked child and return its pid; `begin` is called there before.

    What it says is in `log`, but its standard output is where `result` is, if that is said.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 2)
        os.dup2(os.open(result, os.O_WRONLY) if result else fd, 1)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)  # type: ignore[misc]
        begin()
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 2
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def lose_the_link() -> None:
    """Shut down every connection of this process; what it has sent before still arrives."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            fd = int(link.name)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as found:
                    found.getpeername()
                    found.shutdown(socket.SHUT_RDWR)


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


def wait(pid: int, deadline: float) -> int | None:
    """Return the exit code of a child, or None if it had to be killed because it did not end."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def has_ended(pid: int) -> bool:
    """Return whether a child has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def text_of(path: Path) -> str:
    """Return what is in a file; nothing if a process did not even get to make it."""
    return path.read_text(errors="replace") if path.exists() else ""
