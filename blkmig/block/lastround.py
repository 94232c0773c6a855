# SPDX-License-Identifier: GPL-2.0-or-later
"""The last round, with the writers held: what is fetched then is sent, and nothing beyond it.

A migration that may have to leave its pause again sends the last blocks in sections, as in any round, and END is tiny::

    begin ──► { save_live_iterate }* ──► check ──► save_live_complete_precopy
      └────────────── leave ───────────────┘  back to rounds: no mark is lost
"""

from __future__ import annotations

from .. import channel
from . import base, dirty, engine, send, state


class LastRound:
    """The last rounds of one migration, of which only the last one is not left again. Migration thread only."""

    def __init__(self, blk_mig: state.BlkMigState, base_phase: base.BasePhase) -> None:
        self._blk_mig = blk_mig
        self._base = base_phase

    def begin(self) -> None:
        """Fetch what is dirty, with the writers held, and have sections send that and nothing beyond it."""
        self._blk_mig.is_last_round = True
        self._blk_mig.reads.hurries = True
        self._base.give_up()  # blocks may come from here on, and all that is said of bases comes before them
        dirty.begin_round(self._blk_mig)

    def leave(self) -> None:
        """Make it a round like any other: the writers go on."""
        self._blk_mig.is_last_round = self._blk_mig.is_fixed = False
        self._blk_mig.reads.hurries = False

    def check(self) -> None:
        """Take note that what was sent is the image of the disks; the last round is over, the writers are held.

        Raises :class:`~blkmig.errors.DeviceError` if a disk was written meanwhile: what was sent would be torn.
        """
        dirty.check_clean(self._blk_mig)
        self._blk_mig.is_fixed = True

    def send_all(self, f: channel.OutputQEMUFile) -> None:
        """Do all of it at once, in the section that is being written; blocks that bulk has not sent yet go, too."""
        blk_mig = self._blk_mig
        while blk_mig.submitted or blk_mig.read_done:
            send.flush_blks(blk_mig, f, wait=True)
        self.begin()
        while engine.send_some(blk_mig, f):
            pass
        self.check()
