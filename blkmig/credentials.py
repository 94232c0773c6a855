# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is trusted, and who one is: certificates in files, as QEMU, nbdkit and libnbd lay them out in a folder.

::

    DIR/ca-cert.pem                         the authority: who is trusted is whoever has a certificate that it signed
    DIR/client-cert.pem, client-key.pem     of who connects
    DIR/server-cert.pem, server-key.pem     of who listens

Nothing secret is read here, and nothing but the names of files is kept.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import Literal

from . import errors, logs, paths

logger = logs.Logger(__name__)

End = Literal["client", "server"]

AUTHORITY = "ca-cert.pem"

ADVICE = f"say a folder with {AUTHORITY}, client-cert.pem, client-key.pem, server-cert.pem and server-key.pem"


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    """The files of one end; a client may have no certificate."""

    authority: str
    certificate: str | None
    key: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlsParameters:
    """Whom a stream over TLS trusts, and as whom it is there; for ``tls:`` alone.

    Raises :class:`~blkmig.errors.ParameterError` for values that make no sense.
    """

    certificates: str | os.PathLike[str] | None = None
    """A folder in QEMU's layout, with ca-cert.pem and the certificate and key of this end."""

    authority: str | os.PathLike[str] | None = None
    """The file of the authority, in place of the one in the folder. Nobody else is trusted, the system's
    authorities included."""

    certificate: str | os.PathLike[str] | None = None
    """The file of this end's certificate, in place of the one in the folder."""

    key: str | os.PathLike[str] | None = None
    """The file of the certificate's key, in place of the one in the folder; it may not need a passphrase."""

    hostname: str = ""
    """For a sender: the name that the receiver's certificate must have; "": the host of the address."""

    minimum: Literal["1.2", "1.3"] = "1.3"
    """The oldest version of TLS that is spoken; 1.2 is for a QEMU with an old GnuTLS, with AEAD ciphers only."""

    token: str = dataclasses.field(default="", repr=False)
    """For a sender: what a receiver without certificates has said, in place of all others."""

    allowed_peers: tuple[str, ...] = ()
    """For a receiver: the names of the senders that are allowed, as their certificates say them; none: whoever has a
    certificate of the authority."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("certificates", "authority", "certificate", "key"):
            if getattr(self, name) is not None:
                paths.check(f"tls.{name}", getattr(self, name))
        if not isinstance(self.token, str):
            raise errors.WrongType("tls.token must be a text")
        others = (self.certificates, self.authority, self.certificate, self.key, self.hostname or None)
        if self.token and any(other is not None for other in others):
            raise errors.ParameterError("a token is in place of certificates and of a name: say either")
        if not isinstance(self.hostname, str):
            raise errors.WrongType(f"tls.hostname must be a text, not {self.hostname!r}")
        if self.minimum not in ("1.2", "1.3"):
            raise errors.ParameterError(f"tls.minimum must be '1.2' or '1.3', not {self.minimum!r}")
        if isinstance(self.allowed_peers, str) or not all(isinstance(name, str) for name in self.allowed_peers):
            raise errors.WrongType(f"tls.allowed_peers must be a list of names, not {self.allowed_peers!r}")
        object.__setattr__(self, "allowed_peers", tuple(self.allowed_peers))

    def files(self, end: End) -> Files:
        """Return the files of `end`, each of which can be read. Raises :class:`~blkmig.errors.ParameterError`."""
        said = {AUTHORITY: self.authority, f"{end}-cert.pem": self.certificate, f"{end}-key.pem": self.key}
        found: dict[str, str] = {}
        if self.certificates is not None:
            folder = Path(self.certificates)
            found = {name: str(folder / name) for name in found_in(folder, end, about="TLS", advice=ADVICE)}
        for name, path in said.items():
            if path is not None:
                require_readable(Path(path), about="TLS", takes_pipe=True)
                found[name] = os.fspath(path)
        certificate, key = f"{end}-cert.pem", f"{end}-key.pem"
        if AUTHORITY not in found:
            raise errors.ParameterError(f"TLS: there is no authority whose certificates are trusted: {ADVICE}")
        if (certificate in found) != (key in found):
            raise errors.ParameterError("TLS: a certificate and its key belong together: say both")
        if end == "server" and certificate not in found:
            raise errors.ParameterError(f"TLS: who listens must have a certificate and its key: {ADVICE}")
        if key in found:
            warn_of_readers(Path(found[key]), about="TLS")
        return Files(found[AUTHORITY], found.get(certificate), found.get(key))


def found_in(folder: Path, end: End, *, about: str, advice: str) -> list[str]:
    """Return which files of `end` are in `folder`; each can be read, and no key is there without its certificate.

    Raises :class:`~blkmig.errors.ParameterError`, which begins with `about`.
    """
    if not folder.is_dir():
        raise errors.ParameterError(f"{about}: {str(folder)!r} is no folder with certificates: {advice}")
    _require_access(folder, os.R_OK | os.X_OK, about=about)
    certificate, key = f"{end}-cert.pem", f"{end}-key.pem"
    there = [name for name in (AUTHORITY, certificate, key) if (folder / name).exists()]
    for name in there:
        require_readable(folder / name, about=about)
    if (certificate in there) != (key in there):
        lacking = key if certificate in there else certificate
        raise errors.ParameterError(f"{about}: there is no {lacking} in {str(folder)!r}; both or neither are needed")
    return there


def require_readable(path: Path, *, about: str, takes_pipe: bool = False) -> None:
    """Raise :class:`~blkmig.errors.ParameterError`, which begins with `about`, unless `path` is a file that this user
    may read.

    With `takes_pipe` it may be a pipe: a library that opens one waits for as long as nobody writes.
    """
    mode = _require_access(path, os.R_OK, about=about)
    if not (stat.S_ISREG(mode) or (takes_pipe and stat.S_ISFIFO(mode))):
        raise errors.ParameterError(f"{about}: {str(path)!r} is no file{' and no pipe' if takes_pipe else ''}")


def warn_of_readers(path: Path, *, about: str) -> None:
    """Warn if others may read the key at `path`, which is there: its user's group, where it is this user's, or all."""
    found = path.stat()
    others = 0o077 if found.st_uid == os.geteuid() else 0o007
    if stat.S_ISREG(found.st_mode) and found.st_mode & others:
        logger.warning(
            "%s: others may use the key in %r, whose mode is %04o: chmod 600, and make a new one if somebody has",
            about,
            str(path),
            stat.S_IMODE(found.st_mode),
        )


def _require_access(path: Path, mode: int, *, about: str) -> int:
    """Return the mode of what this user may use so, or raise."""
    try:
        found = path.stat().st_mode
        if not os.access(path, mode):
            raise PermissionError(errno.EACCES, "this user may not read it")
        return found
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise errors.ParameterError(f"{about}: cannot read {str(path)!r}: {why}") from error
