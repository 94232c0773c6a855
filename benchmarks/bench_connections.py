# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk over a long way: 1 Gbit/s with a round trip of 20 and 50 ms, over as many connections as blkmig likes.

The side *the line* is no program: the time of the disk's bytes at the speed of the link. The time is that of the
migration, from connecting to the target's word that all is on stable storage. See `harness.distance` for the way.
"""

import json
import subprocess
import sys

import pytest
from harness import distance, images, network

from blkmig import gates

ROUND_TRIPS = [0.020, 0.050]
PORT = 4444
BLKMIG = [sys.executable, "-m", "blkmig"]


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_far_away(ratio, arena, round_trip):
    """2 GiB of random data; one connection fills 20 ms, and less than half of 50."""
    job = arena.job(arena.random_image(32 * images.MiB if arena.quick else 2 * images.GiB), link="tcp", fresh=True)
    same = arena.tools.program("same")
    with distance.between(round_trip, network.GIGABIT_SPEED) as (near, far):
        sides = {
            name: gates.Side(
                lambda options=options: send(job, near, far, *options),
                setup=lambda: job.target.unlink(missing_ok=True),
                check=lambda: images.require_same(same, job.source, job.target),
            )
            for name, options in {"blkmig": (), "one connection": ("--connections", "1")}.items()
        }
        line = {"wall": job.size * 8 / network.GIGABIT_SPEED}
        sides["the line"] = gates.Side(lambda: line)
        group = f"2 GiB random, 1 Gbit/s, {round_trip * 1000:.0f} ms round trip"
        ratio(sides, group=group, min_rounds=5, max_rounds=5, max_time=900.0)


def send(job, near, far, *options):
    """Send the disk from the near end to the far one; return the seconds that the migration took."""
    uri = f"tcp:{distance.FAR}:{PORT}"
    command = [*far, *BLKMIG, "receive", "--insecure", uri, f"d={job.target}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as receiver:
        for line in receiver.stderr:
            if "listening" in line:
                break
        sent = subprocess.run(
            [*near, *BLKMIG, "send", "--json", *options, f"d={job.source}", uri],
            check=True,
            capture_output=True,
            text=True,
        )
        receiver.communicate(timeout=60)
    assert receiver.returncode == 0
    return {"wall": json.loads(sent.stdout)["total_time"]}
