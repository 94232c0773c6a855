# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a session: each thing is tried, whatever has become of the others, and what stays behind is told."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .. import errors
from . import objects, qmp

logger = logging.getLogger(__name__)


def attempt(connection: qmp.QmpConnection, undo: Callable[[], None], what: str) -> None:
    """Call `undo`, which is `what` in words; what goes wrong is logged, and nothing if QEMU has gone."""
    try:
        undo()
    except qmp.QmpGone:
        pass
    except qmp.QmpTimeout as error:  # told at the end, once
        logger.info("could not %s of %s: %s", what, connection.device, error)
    except errors.MigrationError as error:
        logger.warning("could not %s of %s: %s", what, connection.device, error)


def tell_of_silence(connection: qmp.QmpConnection, own: objects.OwnObjects, is_held: Callable[[], bool]) -> None:
    """Tell what may stay in a QEMU that did not answer; `is_held`: its guest may be stopped, too."""
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
