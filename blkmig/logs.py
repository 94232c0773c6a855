# SPDX-License-Identifier: GPL-2.0-or-later
"""Loggers that load `logging` when there is something to say: that takes 3 ms, and most migrations say nothing.

See docs/decisions/loaded-when-used.md.
"""

from __future__ import annotations


class Logger:
    """What ``logging.getLogger(name)`` is, for the levels that blkmig uses."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: str, *args: object) -> None:
        """Say it to who looks for a fault."""
        self._say("DEBUG", message, *args)

    def info(self, message: str, *args: object) -> None:
        """Say what may be of interest."""
        self._say("INFO", message, *args)

    def warning(self, message: str, *args: object) -> None:
        """Say what a user should know."""
        self._say("WARNING", message, *args)

    def _say(self, level: str, message: str, *args: object) -> None:
        import logging

        # A record names the caller of the caller.
        logging.getLogger(self.name).log(getattr(logging, level), message, *args, stacklevel=3)
