# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a stream goes to or comes from, as QEMU spells it.

::

    tcp:HOST:PORT            a name, an IPv4 address or an [IPv6 address]; an empty HOST listens on every address,
                             and connects to this machine; port 0 listens on any free port
    tls:HOST:PORT            the same, with TLS from the first byte on
    unix:PATH                a stream socket
    exec:COMMAND             the standard input or output of a shell command; both, if it runs a blkmig at the other end
    fd:N                     an open descriptor: socket, pipe or file
    file:PATH[,offset=N]     a file from its byte N on; a comma in PATH is written ",,"
    -                        the standard output or input

``str()`` of an address gives its URI again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .. import errors, paths, units

if TYPE_CHECKING:
    from .. import credentials

FORMS = "tcp:HOST:PORT, tls:HOST:PORT, unix:PATH, exec:COMMAND, fd:N, file:PATH[,offset=N] or -"

SUN_PATH_MAX = 107
"""Bytes of the longest path that a Unix socket can have on Linux."""

_RECEIVES, _SENDS = (rf"\bblkmig\b[^|;&<>\n]*\s{verb}\s" for verb in ("receive", "send"))
_TCP = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:\[\]]*):(?P<port>\d{1,5})", re.ASCII)


class TcpAddress(NamedTuple):
    """A host, "" for none, and a port."""

    host: str
    port: int

    @property
    def scheme(self) -> str:
        """What its URI begins with."""
        return "tcp"

    def __str__(self) -> str:
        """Return the URI, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}:{host}:{self.port}"


class TlsAddress(TcpAddress):
    """A host, "" for none, and a port, at which TLS is spoken."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """What its URI begins with."""
        return "tls"


class UnixAddress(NamedTuple):
    """The path of a Unix stream socket."""

    path: str

    def __str__(self) -> str:
        """Return the URI."""
        return f"unix:{self.path}"


class ExecAddress(NamedTuple):
    """A command for /bin/sh."""

    command: str

    def is_answered(self, *, writing: bool) -> bool:
        """Return whether the command says that the other end is a blkmig, which answers: ``ssh HOST blkmig receive``.

        Others get a pipe, as ever. What they print is no answer, and nobody waits for one; a pipe also is what
        /dev/stdin can be opened again for, and what pages can be given to.
        """
        return re.search(_RECEIVES if writing else _SENDS, self.command) is not None

    def __str__(self) -> str:
        """Return the URI."""
        return f"exec:{self.command}"


class FdAddress(NamedTuple):
    """An open file descriptor of this process."""

    fd: int

    def __str__(self) -> str:
        """Return the URI."""
        return f"fd:{self.fd}"


class FileAddress(NamedTuple):
    """A file, from byte `offset` on."""

    path: str
    offset: int = 0

    def __str__(self) -> str:
        """Return the URI, commas doubled."""
        path = self.path.replace(",", ",,")
        return f"file:{path},offset={self.offset}" if self.offset else f"file:{path}"


class StdioAddress:
    """Standard output for a sender, standard input for a receiver. All are equal."""

    def __eq__(self, other: object) -> bool:
        """Return whether the other one is one, too."""
        return isinstance(other, StdioAddress)

    def __hash__(self) -> int:
        """Return the same for all."""
        return hash(StdioAddress)

    def __str__(self) -> str:
        """Return the URI."""
        return "-"


Address = TcpAddress | UnixAddress | ExecAddress | FdAddress | FileAddress | StdioAddress


def parse_uri(uri: str) -> Address:
    """Return the address that `uri` spells; raises :class:`~blkmig.errors.ParameterError` that names the forms."""
    if not isinstance(uri, str):
        raise errors.WrongType(f"the address of a stream must be a text, not {uri!r}: say {FORMS}")
    if uri == "-":
        return StdioAddress()
    scheme, colon, rest = uri.partition(":")
    parse = _PARSERS.get(scheme)
    if parse is None or not colon:
        raise errors.ParameterError(f"{uri!r} is not an address of a stream: say {FORMS}")
    why = paths.why_no_name(rest)
    if why:
        raise _bad(uri, f"it {why}")
    return parse(uri, rest)


def check_tls(address: Address, parameters: credentials.TlsParameters | None) -> None:
    """Refuse TLS that would be left out, and an address of TLS without certificates."""
    if parameters is not None and not isinstance(address, TlsAddress):
        what = "a token was said" if parameters.token else "certificates were said"
        raise errors.ParameterError(f"{address} has no TLS, and {what}: say tls:HOST:PORT, or leave that out")
    if parameters is None and isinstance(address, TlsAddress):
        from .. import credentials

        raise errors.ParameterError(f"{address}: {credentials.ADVICE} (--tls-certificates), or the receiver's token")


def _bad(uri: str, why: str) -> errors.ParameterError:
    return errors.ParameterError(f"bad address {uri!r}: {why} (the forms are {FORMS})")


def _parse_tcp(uri: str, rest: str, kind: type[TcpAddress] = TcpAddress) -> TcpAddress:
    match, scheme = _TCP.fullmatch(rest), uri.partition(":")[0]
    if rest.startswith("//"):
        raise _bad(uri, f"there are no slashes in it: say {scheme}:HOST:PORT")
    if match is None:
        ipv6 = rest.count(":") > 1 and "[" not in rest
        raise _bad(uri, f"an IPv6 address goes into brackets, as in {scheme}:[::1]:4444" if ipv6
                   else f"say {scheme}:HOST:PORT")  # fmt: skip
    port = int(match["port"])
    if port > 65535:
        raise _bad(uri, "a port is from 0 to 65535")
    return kind(match["host"].strip("[]"), port)


def _parse_tls(uri: str, rest: str) -> TcpAddress:
    return _parse_tcp(uri, rest, TlsAddress)


def _parse_unix(uri: str, rest: str) -> UnixAddress:
    if not rest:
        raise _bad(uri, "the path is missing")
    if len(os.fsencode(rest)) > SUN_PATH_MAX:
        raise _bad(uri, f"the path of a Unix socket has at most {SUN_PATH_MAX} bytes; a relative one may be shorter")
    return UnixAddress(rest)


def _parse_exec(uri: str, rest: str) -> ExecAddress:
    if not rest.strip():
        raise _bad(uri, "the command is missing")
    return ExecAddress(rest)


def _parse_fd(uri: str, rest: str) -> FdAddress:
    if not (rest.isascii() and rest.isdigit()) or len(rest) > 10 or int(rest) >= 1 << 31:
        raise _bad(uri, "say the number of an open descriptor")
    return FdAddress(int(rest))


def _parse_file(uri: str, rest: str) -> FileAddress:
    path, *options = paths.split(rest)
    if not path:
        raise _bad(uri, "the path is missing")
    if not options:
        return FileAddress(path)
    key, _, value = options[0].partition("=")
    if len(options) > 1 or key != "offset":
        raise _bad(uri, "the only option is offset=N, and a comma in the path is written ',,'")
    try:
        return FileAddress(path, _parse_offset(value))
    except errors.ParameterError as error:
        raise _bad(uri, f"offset={value}: {error}") from error


def _parse_offset(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"0[xX][0-9a-fA-F]{1,15}", text) else units.parse_size(text)


_PARSERS: dict[str, Callable[[str, str], Address]] = {
    "tcp": _parse_tcp,
    "tls": _parse_tls,
    "unix": _parse_unix,
    "exec": _parse_exec,
    "fd": _parse_fd,
    "file": _parse_file,
}
SCHEMES = frozenset(_PARSERS)
