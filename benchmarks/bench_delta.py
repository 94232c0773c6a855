# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk costs on the link whose target holds an old copy of it (``receive --in-place``).

A disk of 1 GiB of random data; in the old copy, 10 runs of 1 MiB or 100 scattered pages of 4 KiB are others. "sent" is
what the link carried, both directions and all headers. The side *what is promised* is no program, but the promise.
"""

import random
import threading
import time

import pytest
from harness import images, network

import blkmig
from blkmig import gates

PAGE = 4096
WIDE = ("pfifo", "limit", "100000")
"""No limit of speed: only what passes is of interest."""

# The bytes of a piece that differs, how many there are, and what may be sent at most.
DIFFERENCES = {
    "10 runs of 1 MiB": (images.MiB, 10, 0.012 * images.GiB),
    "100 pages of 4 KiB": (PAGE, 100, 2 * images.MiB),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_old_copy(ratio, arena, what):
    """What differs travels, and little else."""
    nbytes, count, promised = DIFFERENCES[what]
    job = arena.job(arena.random_image(64 * images.MiB if arena.quick else images.GiB), link="tcp")
    arena.create_target(job)
    same = arena.tools.program("same")
    with network.slowed(*WIDE):
        sides = {
            "blkmig": gates.Side(
                lambda: send_over(job),
                setup=lambda: make_old_copy(job, nbytes, count),
                check=lambda: images.require_same(same, job.source, job.target),
            ),
            "what is promised": gates.Side(lambda: {"wall": 1.0, "sent": promised}),
        }
        ratio(sides, group=f"an old copy, {what}", min_rounds=7, max_rounds=7)


def make_old_copy(job, nbytes, count):
    """Make the target a copy of the source in which `count` pieces of `nbytes` are others, none at a whole MiB."""
    rng = random.Random(1)
    with job.source.open("rb") as source, job.target.open("wb") as target:
        while piece := source.read(images.MiB):
            target.write(piece)
        for number in rng.sample(range(job.size // (2 * nbytes) - 1), count):
            target.seek(2 * number * nbytes + 3 * PAGE)
            target.write(rng.randbytes(nbytes))


def send_over(job):
    """Send the source over the target; return the seconds, and what the link has carried."""
    before, began = network.carried(), time.perf_counter()
    chosen = blkmig.IncomingParameters(in_place=True)
    with blkmig.incoming("tcp:127.0.0.1:0", {"d": str(job.target)}, chosen) as incoming:
        loading = threading.Thread(target=incoming.run)
        loading.start()
        with blkmig.FileBackend(job.source, name="d", writable=False) as disk:
            blkmig.send([disk], incoming.uri)
        loading.join()
    return {"wall": time.perf_counter() - began, "sent": network.carried() - before}
