# SPDX-License-Identifier: GPL-2.0-or-later
"""How people and programs carry a token from the receiver to the sender: a terminal, or a file of their own.

It is in no argument and in no log: process lists, histories of shells and journals are read by others.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pathlib
import stat
import sys
from collections.abc import Iterator

from .. import errors, pipes
from . import output

MAX_NBYTES = 4096
"""What is read of a file; a token is shorter."""


def is_asked(args: argparse.Namespace) -> bool:
    """Return whether a sender is to say a token. Raises ParameterError."""
    if args.token and args.token_file is not None:
        raise errors.ParameterError("--token asks for the token, and --token-file reads it: say one of them")
    return args.token or args.token_file is not None


def read(args: argparse.Namespace) -> str:
    """Return the token that a sender is to say. Raises ParameterError. May ask."""
    if args.token:
        return _required(_ask())
    return _required(sys.stdin.readline(MAX_NBYTES) if args.token_file == "-" else _read_file(args.token_file))


def _required(text: str) -> str:
    if not text.strip():
        raise errors.ParameterError("the token is missing: copy the line that the receiver has shown")
    return text


def _ask() -> str:
    """Ask at the terminal, without showing what is typed."""
    import getpass
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass("token: ")
        except (getpass.GetPassWarning, EOFError) as error:
            why = "there is no terminal at which the token could be asked for: say --token-file"
            raise errors.ParameterError(why) from error


def _read_file(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise errors.ParameterError(f"others may use the token in {path!r}: chmod 600, and make a new one")
            read_all = pipes.read if stat.S_ISFIFO(mode) else os.read
            return read_all(fd, MAX_NBYTES).decode("ascii", "replace")
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.ParameterError(f"--token-file {path!r}: {error.strerror or error}") from error


def check_place(args: argparse.Namespace, *, is_needed: bool) -> None:
    """Raise ParameterError if a receiver's token could be shown to nobody, or there is none. Before it listens."""
    if not is_needed:
        if args.token_file is not None:
            raise errors.ParameterError("--token-file is for tls: without certificates: elsewhere there is no token")
        return
    if args.token_file == "-":
        raise errors.ParameterError("--token-file - reads a token: a receiver makes its own, so say a FILE for it")
    if args.token_file is None and (output.stderr.is_json or not os.isatty(2)):
        raise errors.ParameterError(
            "tls: without certificates makes a token, and stderr is no terminal to show it on: say --token-file FILE, "
            "or --tls-certificates DIR"
        )


@contextlib.contextmanager
def shown(token: str, uri: str, path: str | None) -> Iterator[None]:
    """Show a receiver's token, or have it in a file, for the length of a ``with``; without a token do nothing."""
    if not token or path is None:
        if token:
            host, _, port = uri.removeprefix("tls:").rpartition(":")
            where = f"tls:{host or os.uname().nodename}:{port}"
            output.print_note(f"on the other host:  blkmig send DISK {where} --token")
            output.print_note("and this is the token, which makes whoever has it the sender:")
            output.stderr.line(token)
        yield
        return
    made = _write_file(token, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(made), pathlib.Path(path).lstat()):  # what came in its place is not ours
                pathlib.Path(path).unlink()
        os.close(made)


def _write_file(token: str, path: str) -> int:
    """Write a file that only this user can read, and that was not there: it is nobody's disk.

    Return its descriptor: while that is open, no other file gets its inode.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            undo.callback(pathlib.Path(path).unlink, missing_ok=True)  # no half of a token stays
            with open(fd, "w", encoding="ascii", closefd=False) as file:
                file.write(f"{token}\n")
            undo.pop_all()
        return fd
    except OSError as error:
        why = "it is there already, and is not replaced" if error.errno == errno.EEXIST else error.strerror or error
        raise errors.ParameterError(f"--token-file {path!r}: {why}") from error
