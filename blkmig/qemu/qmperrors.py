# SPDX-License-Identifier: GPL-2.0-or-later
"""What may go wrong on a QMP connection: QEMU answers with an error, does not answer, or has ended."""

from __future__ import annotations

import contextlib
import errno
import pathlib
from collections.abc import Iterator

from .. import errors

NO_GREETING = (
    "no greeting within {:g} s: a QMP socket serves one client at a time, so another one (libvirt, a shell, a second "
    "blkmig) holds it, or QEMU does not run; give QEMU a second one, with -qmp unix:PATH,server=on,wait=off"
)

NO_ANSWER = "no answer{}; once it answers again, blkmig cleanup {} removes what may be left in it"


IS_NO_SOCKET = "it is no socket: say the QMP socket, which QEMU makes with -qmp unix:PATH,server=on,wait=off"

_HINTS = {
    errno.ENOENT: "there is no such socket; QEMU makes it with -qmp unix:PATH,server=on,wait=off",
    errno.ECONNREFUSED: "nobody listens there: its QEMU has ended",
    errno.EPROTOTYPE: "it is a socket of another kind, and no QMP socket",
}


class QmpError(errors.DeviceError):
    """QEMU answered a `command` with an error, of the class `error_class` and with the message `text`."""

    def __init__(self, command: str, *, device: str, error_class: str, text: str) -> None:
        super().__init__(f"QMP {command}", device=device, cause=text)
        self.command = command
        self.error_class = error_class
        self.text = text


class QmpTimeout(errors.DeviceError):
    """QEMU did not answer in time; whether the command was carried out is not known."""


class QmpGone(errors.DeviceError):
    """The QMP connection is closed: QEMU has ended, or it was closed from this side."""


def not_connected(device: str, path: str, error: Exception) -> errors.DeviceError:
    """Return the error for a socket at `path` at which no QEMU answers, by the library's `error`."""
    doing, system = "connect to its QMP socket", error.__cause__
    if not isinstance(system, OSError):
        return errors.DeviceError(doing, device=device, cause=f"what answers there speaks no QMP: {error}")
    hint = _HINTS.get(system.errno or 0, "")
    with contextlib.suppress(OSError):
        there = pathlib.Path(path)
        hint = IS_NO_SOCKET if there.exists() and not there.is_socket() else hint
    why = system.strerror or str(system)
    return errors.DeviceError(doing, device=device, cause=OSError(system.errno, f"{why} ({hint})" if hint else why))


def gone_error(doing: str, device: str) -> QmpGone:
    """Return the error for a connection that is closed."""
    return QmpGone(doing, device=device, cause="the QMP connection is closed; has QEMU ended?")


@contextlib.contextmanager
def ignoring_missing() -> Iterator[None]:
    """Ignore QEMU's error that an object which is to be removed does not exist."""
    try:
        yield
    except QmpError as error:
        if not any(text in error.text for text in MISSING):
            raise


MISSING = ("is not found", "not found", "Cannot find", "not running")
