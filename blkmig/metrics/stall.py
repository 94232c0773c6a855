# SPDX-License-Identifier: GPL-2.0-or-later
"""A look, once a second, whether a migration moves anything; if it does not for `STALL_SECONDS`, the log says so.

The migration itself may be blocked then, and cannot say it.
"""

from __future__ import annotations

import math
from typing import Any

from .. import logs
from . import collector
from .ticking import Ticking

logger = logs.Logger(__name__)

REPEAT_SECONDS = 300.0
"""A migration that stalls again and again is told this far apart, unless it is in another phase by then."""


class StallWatch(Ticking):
    """Looks at one migration."""

    def __init__(self, metrics: collector.MigrationMetrics, **options: Any) -> None:
        super().__init__("blkmig-stall", **options)
        self._metrics = metrics
        # That thread only: whether the present stall was told; the phase of the last one that was, and how long ago.
        self._is_told = False
        self._phase = ""
        self._ticks = math.inf

    def tick(self) -> None:
        """Look once."""
        self._ticks += 1
        idle = self._metrics.idle_seconds()
        if idle < collector.STALL_SECONDS:
            self._is_told = False
        elif not self._is_told:
            self._is_told = True
            if self._metrics.phase != self._phase or self._ticks * self.seconds >= REPEAT_SECONDS:
                self._phase, self._ticks = self._metrics.phase, 0
                logger.warning(
                    "no byte has moved for %.0f s (phase: %s): look at the link, and at the disks of both ends",
                    idle,
                    self._phase,
                )
