# SPDX-License-Identifier: GPL-2.0-or-later
"""In which state and phase a migration is, and the figures of its rounds. Sizes are bytes, times are seconds."""

from __future__ import annotations

import dataclasses
from typing import Literal

Status = Literal["none", "setup", "active", "reconnecting", "device", "completed", "failed", "cancelling", "cancelled"]
"""The states of a migration, in QEMU's words; "device" is the last pass, with the writers held. In "reconnecting", the
link was lost: the source tries to come again, the target waits for it."""

StreamFormat = Literal["block", "blkmig"]
"""The section that carries the disks: QEMU's, or the one between two blkmigs."""

Phase = Literal["setup", "bulk", "dirty", "switchover", "waiting"]
"""What a migration does. In "waiting" it waits for the target, which brings everything to stable storage."""

ReceivingPhase = Literal["bulk", "dirty", "storing"]
"""What the receiving end does, as far as the stream tells. "storing" is the time from the stream's end until everything
is on stable storage and checked."""

MAX_ROUNDS_KEPT = 1000


@dataclasses.dataclass(slots=True)
class RoundStatistics:
    """One pass over the disks: the bulk phase, then dirty rounds, at last the final pass."""

    number: int
    """0 is the bulk phase, the others are counted from 1 on."""

    dirty_bytes: int
    """Bytes that were dirty when the round began; for the bulk phase, the size of the disks."""

    transferred: int = 0
    """Bytes on the wire."""

    seconds: float = 0.0
    """How long the pass took."""

    redirtied_bytes: int = 0
    """Bytes that the writers dirtied while the round ran."""

    blocks: int = 0
    """Blocks sent, zero blocks included. It is 0, as `packs` is, if the final pass began instead of the round."""

    packs: int = 0
    """Packs sent."""

    @property
    def bandwidth(self) -> float:
        """Wire bytes per second of this round."""
        return self.transferred / self.seconds if self.seconds else 0.0

    @property
    def dirty_rate(self) -> float:
        """Bytes per second that the writers dirtied while the round ran."""
        return self.redirtied_bytes / self.seconds if self.seconds else 0.0
