# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands, open descriptors, files and the standard streams.

A pipe is used non-blocking, so that cancelling wakes a blocked call; its flag belongs to the open description, which
other processes may share, so an inherited pipe is opened again for ourselves. Descriptors that were given stay open and
stay the caller's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import stat
import time

from .. import errors, units
from . import link, sockets, uri

PIPE_BUFFERS = (4 * units.MiB, 2 * units.MiB, units.MiB)
"""Sizes to ask for; the first that the system grants is taken. It grants 1 MiB to everybody. But that holds one page
less than a block, because the record's head takes a page: so both ends wait for each other once for each block. With
the default, 64 KiB, they wait sixteen times."""

FIFO_RETRY_SECONDS = 0.02

# Without O_NONBLOCK opening a named pipe waits for its other end, and nothing but a signal ends that.
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC

StreamAddress = uri.ExecAddress | uri.FdAddress | uri.FileAddress | uri.StdioAddress


def open_stream(
    connection: link.Link,
    address: StreamAddress,
    *,
    writing: bool,
    timeout: float | None = None,
    opened: int | None = None,
) -> link.Transport:
    """Return the transport of an address that is opened, not connected to. Raises ChannelError.

    Most go one way. Both ways go a socket behind ``fd:`` or ``-``, and a command that says that a blkmig answers.

    Only writing to a named pipe waits, up to `timeout` seconds, for somebody who reads it. A file that somebody has
    opened already, `opened`, is written instead of what has its name, and stays theirs to close.
    """
    try:
        match address:
            case uri.ExecAddress():
                if address.is_answered(writing=writing):
                    return _open_two_way_command(connection, address.command)
                return _open_command(connection, address.command, writing=writing)
            case uri.FileAddress():
                return _open_file(connection, address, writing=writing, timeout=timeout, opened=opened)
            case uri.FdAddress():
                return _open_fd(connection, address.fd, writing=writing)
            case uri.StdioAddress():
                return _open_fd(connection, 1 if writing else 0, writing=writing)
    except OSError as error:
        kind = errors.LocalFileError if isinstance(address, uri.FileAddress) else errors.ChannelError
        raise kind("opening", uri=str(address), cause=error) from error


def _open_command(connection: link.Link, command: str, *, writing: bool) -> link.Transport:
    """Start `command` with a pipe to its standard input or from its standard output.

    Of its other streams, what it prints goes to our standard error, because our standard output may be read by a
    program, and its standard input is empty, because ssh and others swallow what they find there.
    """
    import subprocess  # here, and in the next one: only commands need them

    from .. import children

    children.require_statuses()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    ours, theirs = (write_end, read_end) if writing else (read_end, write_end)
    try:
        stdin, stdout = (theirs, 2) if writing else (subprocess.DEVNULL, theirs)
        child, _ = children.start(["/bin/sh", "-c", command], stdin=stdin, stdout=stdout)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    os.set_blocking(ours, False)
    _enlarge_pipe(ours)
    return link.Transport(connection, ours, child=child)


def _open_two_way_command(connection: link.Link, command: str) -> link.Transport:
    """Start `command` with one socket as its standard input and output."""
    from .. import children

    children.require_statuses()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            child, _ = children.start(["/bin/sh", "-c", command], stdin=theirs, stdout=theirs)
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    sockets.tune(ours)
    return link.Transport(connection, ours, child=child)


def _open_file(
    connection: link.Link, address: uri.FileAddress, *, writing: bool, timeout: float | None, opened: int | None
) -> link.Transport:
    """Open a file at its offset; for writing, it is created, and what stood behind the offset is dropped."""
    if opened is not None:
        fd = os.dup(opened)
    elif writing:
        fd = _open_for_writing(connection, address.path, timeout)
    else:
        fd = os.open(address.path, _READ_FLAGS)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if writing and stat.S_ISREG(mode):
            os.ftruncate(fd, address.offset)
        if address.offset:
            os.lseek(fd, address.offset, os.SEEK_SET)
        _enlarge_pipe(fd)
    except BaseException:
        os.close(fd)
        raise
    is_file = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
    return link.Transport(
        connection, fd, sync=writing and is_file, local_file="" if stat.S_ISFIFO(mode) else address.path
    )


def _open_for_writing(connection: link.Link, path: str, timeout: float | None) -> int:
    """Open `path`, trying a named pipe that nobody reads yet again and again."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return os.open(path, _WRITE_FLAGS, 0o600)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(pathlib.Path(path).stat().st_mode):
                raise
            if deadline is not None and time.monotonic() > deadline:
                why = f"nobody reads the pipe within {timeout:g} s"
                raise errors.ChannelTimeout("opening", uri=connection.uri, cause=why) from error
        connection.wait(FIFO_RETRY_SECONDS)


def is_socket(fd: int) -> bool:
    """Return whether a descriptor is open and stands for a socket."""
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def _open_fd(connection: link.Link, given_fd: int, *, writing: bool) -> link.Transport:
    """Open what descriptor `given_fd` stands for once more."""
    _check_fd(connection, given_fd, writing=writing)
    mode = os.fstat(given_fd).st_mode
    if stat.S_ISSOCK(mode):
        return link.Transport(connection, _open_socket(connection, given_fd), is_given=True)
    if stat.S_ISFIFO(mode):
        return link.Transport(connection, _open_pipe(given_fd, writing=writing))
    return link.Transport(connection, os.dup(given_fd), local_file=connection.uri)


def _check_fd(connection: link.Link, given_fd: int, *, writing: bool) -> None:
    try:
        flags = fcntl.fcntl(given_fd, fcntl.F_GETFL)
    except OSError as error:
        why = f"descriptor {given_fd} is not open in this process; whoever starts it must pass it on"
        raise errors.ChannelError("opening", uri=connection.uri, cause=OSError(error.errno, why)) from error
    if flags & os.O_ACCMODE not in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        why = f"descriptor {given_fd} is not open for {'writing' if writing else 'reading'}"
        raise errors.ChannelError("opening", uri=connection.uri, cause=OSError(errno.EBADF, why))
    if flags & os.O_DIRECT:
        why = "was opened with O_DIRECT, which takes nothing but whole blocks: open it without"
        raise errors.ParameterError(f"{connection.uri}: descriptor {given_fd} {why}")
    if os.isatty(given_fd):
        raise errors.ParameterError(
            f"{connection.uri}: a stream of disk blocks does not go over a terminal; redirect it to a file or a pipe"
        )


def _open_socket(connection: link.Link, given_fd: int) -> socket.socket:
    sock = socket.socket(fileno=os.dup(given_fd))
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise errors.ParameterError(f"{connection.uri}: the socket is not a stream socket")
    with contextlib.suppress(OSError):
        sockets.tune(sock)
    return sock


def _open_pipe(given_fd: int, *, writing: bool) -> int:
    """Return a non-blocking descriptor of the pipe that leaves the description of `given_fd` alone.

    A pipe that another user made cannot be opened again; it is used as it is, and cancelling waits for the other end.
    """
    try:
        fd = os.open(f"/proc/self/fd/{given_fd}", _WRITE_FLAGS & ~os.O_CREAT if writing else _READ_FLAGS)
    except OSError:
        fd = os.dup(given_fd)
    _enlarge_pipe(fd)
    return fd


def _enlarge_pipe(fd: int) -> None:
    for nbytes in PIPE_BUFFERS:
        with contextlib.suppress(OSError):
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < nbytes:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, nbytes)
            return
