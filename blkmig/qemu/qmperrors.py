# SPDX-License-Identifier: GPL-2.0-or-later
"""What may go wrong on a QMP connection: QEMU answers with an error, does not answer, or has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import errors

NO_GREETING = (
    "no greeting within {:g} s: a QMP socket serves one client at a time, so another one (libvirt, a shell, a second "
    "blkmig) holds it, or QEMU does not run; give QEMU a second one, with -qmp unix:PATH,server=on,wait=off"
)

NO_ANSWER = "no answer{}; once it answers again, blkmig cleanup {} removes what may be left in it"


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
