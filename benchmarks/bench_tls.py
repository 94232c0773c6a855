# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk from file to file over TLS on the loopback, against openssl piping the same bytes, and nbdcopy to nbdkit.

Data is in the page cache on both sides, and nothing waits for the disk (c/unflushed.c). All sides have TLS 1.3 with
AES-256-GCM; both ends of each check the other's certificate. Every target is compared with its source after every run.
"""

import pytest
from harness import images, rounds, secured

from blkmig import gates


def test_tls(ratio, arena, bench_dir):
    """1 GiB of random data over loopback TLS."""
    if secured.missing("blkmig"):
        pytest.skip("openssl not installed")
    job = arena.job(arena.random_image(64 * images.MiB if arena.quick else images.GiB), link="tcp")
    arena.create_target(job)
    certificates = secured.make_certificates(bench_dir)
    sides: dict[str, gates.Side] = {}
    skipped: dict[str, str] = {}
    for name, (run, _) in secured.SIDES.items():
        if reason := secured.missing(name):
            skipped[name] = reason
        else:
            sides[name] = arena.side_of(job, lambda run=run: run(job, certificates))
    ratio(sides, group="1 GiB random, TLS, existing target", skipped=skipped, **rounds.UNTIL_DECIDED)
