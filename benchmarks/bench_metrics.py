# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs that a migration is watched: both ends write their metrics to a file, once a second, or do not."""

import functools

from harness import images, peers, rounds


def test_metrics(ratio, arena, bench_dir):
    """A file of random data to an existing target, over TCP, in turns."""
    job = arena.job(arena.random_image(64 * images.MiB if arena.quick else 2 * images.GiB), link="tcp")
    arena.create_target(job)
    send, receive = ({"metrics": str(bench_dir / f"{end}.prom")} for end in ("send", "receive"))
    with_metrics = functools.partial(peers.run_blkmig, job, send=send, receive=receive)
    sides = {"metrics": arena.side_of(job, with_metrics), "no metrics": arena.side("blkmig", job)}
    ratio(sides, group="2 GiB random, TCP, metrics", **rounds.UNTIL_DECIDED)
