# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes along with dirty pieces of blocks, because a block of which three quarters are dirty goes whole.

How many blocks that are depends on the writers. One that passes block after block leaves whole ones, one that jumps
about leaves all alike. So blocks are taken to fill in bursts, at random: each dirties a share of one block.
"""

from __future__ import annotations

import dataclasses
import math

from ..block import granules

WHOLE_SHARE = granules.WHOLE_QUARTERS / 4

FEW = 30
"""Up to so many terms are added one by one; above that a sum is a normal one nearly enough."""


@dataclasses.dataclass(frozen=True, slots=True)
class Filling:
    """How neighbouring blocks fill: `nblocks` of them are written, each burst dirties `share` of one."""

    nblocks: float = 0.0
    share: float = 1.0

    def going_along(self, dirty: float, written: float) -> float:
        """Return how much goes along with `dirty` blocks' worth of the pieces, which are `written` blocks' worth.

        A block gets n bursts on average, and after k of them (1 - share) ** k of its pieces are clean, of those that
        are written. Summed over all k from which on it goes whole, weighed by how likely they are, that is what is
        clean now, times the chance of so many bursts where there are n * (1 - share).
        """
        nblocks = max(self.nblocks, written)
        if dirty <= 0 or self.share >= WHOLE_SHARE or written <= nblocks * WHOLE_SHARE:
            return 0.0
        written, dirty = written / nblocks, dirty / nblocks
        share, clean = min(self.share / written, 0.999), max(1 - dirty / written, 1e-9)
        mean = math.log(clean) / -share
        enough = math.ceil(math.log1p(-WHOLE_SHARE / written) / math.log1p(-share))
        never_written = (1 - written) * at_least(enough, mean)
        return nblocks * (never_written + written * clean * at_least(enough, mean * (1 - share)))


UNKNOWN = Filling()
"""Of blocks that nobody was seen to write."""


def at_least(number: int, mean: float) -> float:
    """Return the chance of at least `number` events, of which there are `mean` on average, at random."""
    if number > FEW:
        return math.erfc((number - 0.5 - mean) / math.sqrt(2 * mean)) / 2
    return max(0.0, 1 - sum(math.exp(-mean) * mean**count / math.factorial(count) for count in range(number)))
