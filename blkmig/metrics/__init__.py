# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitoring is told of a migration, as OpenMetrics: a collector, and two ways to whoever collects.

::

    migration thread   on_progress ─► MigrationMetrics            (one assignment, nothing that waits)
                                          ▲ collect()
    threads of ours    a file, once a second ─┤─ HTTP, when somebody asks ─┤─ a look whether anything moves at all

No thread here holds anything that the migration waits for. So a file system that hangs, or a client that says
nothing, costs the migration nothing. Programs with a registry of their own need the collector only.

The library ``prometheus_client`` comes with ``pip install 'blkmig[metrics]'``.
"""

from .collector import PHASES, MigrationMetrics
from .export import exported
from .spans import MigrationSpans
from .stall import StallWatch

__all__ = ["PHASES", "MigrationMetrics", "MigrationSpans", "StallWatch", "exported"]
