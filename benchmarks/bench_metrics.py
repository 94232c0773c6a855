# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs that a migration is watched: its metrics are written to a file, once a second, or are not.

A copy at full speed takes half a second, and its noise is larger than what is promised: half a per cent of a processor.
So another group watches migrations of three seconds at a rate limit, whose CPU time is small and steady, against the
same ones beside a thread that takes half a per cent.
"""

import functools
import os
import threading
import time

import pytest
from harness import images, peers, rounds

import blkmig
from blkmig import metrics

SECONDS = 3
BANDWIDTH = 10 * images.MiB
HALF_A_PER_CENT = 0.005


def test_metrics(ratio, arena, bench_dir):
    """A file of random data to an existing target, over TCP, in turns."""
    job = arena.job(arena.random_image(64 * images.MiB if arena.quick else 2 * images.GiB), link="tcp")
    arena.create_target(job)
    send, receive = ({"metrics": str(bench_dir / f"{end}.prom")} for end in ("send", "receive"))
    with_metrics = functools.partial(peers.run_blkmig, job, send=send, receive=receive)
    sides = {"metrics": arena.side_of(job, with_metrics), "no metrics": arena.side("blkmig", job)}
    ratio(sides, group="2 GiB random, TCP, metrics", **rounds.UNTIL_DECIDED)


@pytest.mark.parametrize("ndisks", [1, 40])
def test_metrics_of_a_slow_migration(ratio, bench_dir, arena, ndisks):
    """Random data of all disks together for three seconds, in one process, to a stream in a file."""
    nbytes = BANDWIDTH * (1 if arena.quick else SECONDS) // ndisks
    disks = [blkmig.MemoryBackend(bytearray(os.urandom(nbytes)), name=f"disk{n}") for n in range(ndisks)]

    def send(**options):
        blkmig.send(disks, f"file:{bench_dir / 'stream'}", max_bandwidth=BANDWIDTH, **options)

    def watched():
        collector = metrics.MigrationMetrics("bench")
        with metrics.exported(collector, file=bench_dir / "send.prom"):
            send(on_progress=collector)

    def beside_a_thread():
        has_to_end = threading.Event()
        thread = threading.Thread(target=take_half_a_per_cent, args=(has_to_end,))
        thread.start()
        send()
        has_to_end.set()
        thread.join()

    sides = {"metrics": watched, "half a per cent": beside_a_thread, "no metrics": send}
    ratio(sides, group=f"a slow migration, {ndisks} disks, metrics", min_rounds=9, max_rounds=15, max_time=180)


def take_half_a_per_cent(has_to_end):
    """Take five milliseconds of a processor a second, in ten pieces."""
    while not has_to_end.wait(0.1):
        end = time.thread_time() + HALF_A_PER_CENT / 10
        while time.thread_time() < end:
            pass
