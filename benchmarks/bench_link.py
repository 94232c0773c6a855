# SPDX-License-Identifier: GPL-2.0-or-later
"""A link with a round-trip time: TCP inside a network namespace whose loopback delays each packet (netem).

One stream that never waits for answers loses nothing to the distance but TCP's own start; what asks and waits does.
"""

import pytest
from harness import images, network

ROUND_TRIPS_MS = [10, 50]


@pytest.mark.parametrize("round_trip_ms", ROUND_TRIPS_MS)
def test_link(ratio, arena, round_trip_ms):
    """512 MiB of random data over a link with a round-trip time."""
    job = arena.job(arena.random_image(32 * images.MiB if arena.quick else 512 * images.MiB), link="tcp")
    arena.create_target(job)
    with network.slowed(*network.delay(round_trip_ms)):
        sides, skipped = arena.sides(["blkmig", "nbdcopy"], job)
        group = f"512 MiB random, TCP, {round_trip_ms} ms round trip"
        ratio(sides, group=group, skipped=skipped, min_rounds=5, max_rounds=8)
