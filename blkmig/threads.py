# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads, of which a system gives so many only: one that cannot be had is an error of ours."""

from __future__ import annotations

import threading

from . import errors


class Thread(threading.Thread):
    """A thread as the standard library has it."""

    def start(self) -> None:
        """Begin it. Raises :class:`~blkmig.errors.NoThread`, which is a RuntimeError as well."""
        try:
            super().start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            where = "see ulimit -u and -v, and the limits of the service or the container"
            raise errors.NoThread(f"no more threads can be had ({error}): {where}") from error
