# SPDX-License-Identifier: GPL-2.0-or-later
"""One page about a migration that has ended, for people: what happened, in pictures and in words.

::

    on_progress ─► Recorder ─ samples, pauses ─┐
    statistics, maps, settings, the error ─────┴─► page: words, charts (SVG), maps (SVG), tables ─► one file

The page needs nothing but itself: no network, no script. What it holds is bounded, however long the migration was.
"""

from .page import MARK, page
from .recorder import Recorder

__all__ = ["MARK", "Recorder", "page"]
