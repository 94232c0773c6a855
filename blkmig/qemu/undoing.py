# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a session: every step is tried even if others fail, and the log tells what stays behind."""

from __future__ import annotations

from collections.abc import Callable

from .. import errors, logs
from . import objects, qmp

logger = logs.Logger(__name__)


def attempt(connection: qmp.QmpConnection, undo: Callable[[], None], what: str) -> None:
    """Call `undo`, and log an error with the description `what`; nothing is logged if QEMU has ended."""
    try:
        undo()
    except qmp.QmpGone:
        pass
    except qmp.QmpTimeout as error:  # a silent QEMU is reported once, at the end
        logger.info("could not %s of %s: %s", what, connection.device, error)
    except errors.MigrationError as error:
        logger.warning("could not %s of %s: %s", what, connection.device, error)


def tell_of_silence(connection: qmp.QmpConnection, own: objects.OwnObjects, is_held: Callable[[], bool]) -> None:
    """Log what may stay behind in a QEMU that did not answer; with `is_held` its guest may be stopped, too."""
    if connection.is_silent:
        left = ", ".join(own.left) or "limits of the writers"
        if is_held():
            left += "; and its guest may be stopped"
        logger.warning(
            "%s does not answer. What may stay in it: %s. Once it answers again: blkmig cleanup %s",
            connection.device,
            left,
            connection.device,
        )
