# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share of the command line: options, and how their texts are parsed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from .. import errors, units
from ..channel import uri as address
from . import parser as parsing

URI_HELP = (
    "tcp:HOST:PORT, tls:HOST:PORT, unix:PATH, exec:COMMAND, fd:N, file:PATH[,offset=N] or - (a stream on stdin or "
    "stdout)"
)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str = "",
    examples: Sequence[str] = (),
) -> parsing.CommandParser:
    """Add one command and return its parser. `examples` are command lines, each with a remark after a "#"."""
    parser: parsing.CommandParser = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        epilog=parsing.EXAMPLES + "\n".join(f"  {line}" for line in examples) if examples else None,
    )
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    return parser


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is shown."""
    parser.add_argument(
        "--progress",
        choices=("auto", "live", "bar", "plain", "json", "none"),
        default="auto",
        help="how progress is shown on stderr (default: on a terminal a live view of all disks, or a bar "
        "without blkmig[live]; else lines); json: all of stderr is JSON "
        "objects, one a line, as cli/progress.schema.json of the package describes them",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_both_ends(parser: argparse.ArgumentParser, *, peer: str, incremental: str, verify: str, direct: str) -> None:
    """Add the options that both ends of a migration have. Each text is the help at this end; `peer` is the other
    end."""
    parser.add_argument("--incremental", action="store_true", help=incremental)
    parser.add_argument("--verify", action="store_true", help=verify)
    parser.add_argument("--direct", action="store_true", help=direct)
    parser.add_argument("--idle-timeout", type=duration, default=60.0, metavar="SECONDS",
                        help=f"how long the {peer} may be idle; 0: for ever (default: 60)")  # fmt: skip
    parser.add_argument("--state-dir", type=word, metavar="DIR", help="where session files are, which say who has the "
                        "disks after a kill (default: beside the disks; of devices and NBD exports there are "
                        "none)")  # fmt: skip


Parameters = TypeVar("Parameters")


def parameters_of(args: argparse.Namespace, kind: type[Parameters], **others: Any) -> Parameters:
    """Return the parameters of a migration: each field comes from `others`, or else from the option of its name."""
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    said = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return kind(**(said | others))


def word(text: str) -> str:
    """Check that a value is not empty, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def size(text: str) -> int:
    """Parse a size for argparse."""
    try:
        return units.parse_size(text)
    except errors.ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int | str:
    """Return a whole number, or ``auto`` as it is."""
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text[:9])
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number")


def duration(text: str) -> float:
    """Parse what may be a number of seconds for argparse; the parameters know which ones make sense."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: say it without a unit") from None


def seconds(text: str) -> float:
    """Parse a number of seconds for argparse: not negative, and neither NaN nor infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def named(text: str) -> tuple[str | None, str]:
    """Split ``[NAME=]DISK``. What stands before the first "=" is a name unless it has a "/", a ":" or a ",".

    Raises :class:`~blkmig.errors.ParameterError` if the disk is missing.
    """
    name, equals, path = text.partition("=")
    is_named = equals and not any(mark in name for mark in "/:,")
    if not text or (is_named and not path):
        raise errors.ParameterError(f"{text!r} names no disk: say NAME=DISK")
    # A name on the wire is UTF-8, whatever encoding this command line has.
    return (os.fsencode(name).decode("utf-8", "surrogateescape"), path) if is_named else (None, text)


Key = TypeVar("Key")
Value = TypeVar("Value")


def each_once(pairs: Iterable[tuple[Key, Value]], what: str) -> dict[Key, Value]:
    """Return the pairs as a dictionary. Raises :class:`~blkmig.errors.ParameterError` if a key comes twice."""
    found: dict[Key, Value] = {}
    for key, value in pairs:
        if key in found:
            raise errors.ParameterError(f"{what} {key!r} is said twice, {found[key]!r} and {value!r}: say it once")
        found[key] = value
    return found


def check_address(uri: str, others: Iterable[str], *, place: str) -> None:
    """Refuse what stands in the place of the address if another word is one; then do what `check_descriptor` does.

    `place` says where the address has to stand.
    """
    found = None if _is_address(uri) else next(filter(_is_address, others), None)
    if found is not None:
        raise errors.ParameterError(f"{uri!r} is not an address of a stream, as {found!r} is: {place}")
    check_descriptor(uri)


def _is_address(text: str) -> bool:
    return text == "-" or text.partition(":")[0] in address.SCHEMES


def check_descriptor(uri: str) -> None:
    """Refuse ``fd:N`` unless N was given to this command; call it before anything is opened.

    Otherwise a file that this program has opened itself could be taken for the stream. An inherited descriptor has no
    close-on-exec flag, and whatever Python opens has one.
    """
    with contextlib.suppress(errors.ParameterError):  # opening the stream will say what is wrong with its address
        parsed = address.parse_uri(uri)
        if isinstance(parsed, address.FdAddress):
            _check_is_given(parsed.fd, uri)


def _check_is_given(fd: int, uri: str) -> None:
    try:
        is_given = os.get_inheritable(fd)
    except (OSError, OverflowError):
        is_given = False
    if not is_given:
        cause = f"descriptor {fd} was not given to this command; whoever starts it must pass it on"
        raise errors.ChannelError("opening", uri=uri, cause=cause)


def named_size(text: str) -> tuple[str, int]:
    """Parse ``[NAME=]SIZE``; without a name the size is for every disk."""
    name, _, nbytes = text.rpartition("=")
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape"), units.parse_size(nbytes)
    except errors.ParameterError as error:
        raise errors.ParameterError(f"--size={text}: {error}") from None
