# SPDX-License-Identifier: GPL-2.0-or-later
"""A link with a round-trip time: TCP inside a network namespace whose loopback delays each packet (netem).

One stream that never waits for answers loses nothing to the distance but TCP's own start; what asks and waits does.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys

import pytest
from harness import images

from blkmig import gates

ROUND_TRIPS_MS = [10, 50]
_numbers = itertools.count()


@contextlib.contextmanager
def namespace(round_trip_ms):
    """Make a network namespace whose loopback takes half a round trip each way, and yield how to run things in it."""
    name = f"blkmig-bench-{os.getpid()}-{next(_numbers)}"
    inside = ["ip", "netns", "exec", name]
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("network namespaces take root, ip and tc")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        delay = ["delay", f"{round_trip_ms / 2}ms", "limit", "100000"]
        command = [*inside, "tc", "qdisc", "add", "dev", "lo", "root", "netem", *delay]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this kernel has no netem: {done.stderr.strip()}")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def run_blkmig(inside, source, target):
    """Move the disk from one command to another."""
    command = [*inside, sys.executable, "-m", "blkmig"]
    receive = [*command, "receive", "--progress=none", "tcp:127.0.0.1:0", f"d={target}"]
    with subprocess.Popen(receive, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as receiver:
        uri = receiver.stderr.readline().split()[-1]
        subprocess.run([*command, "send", "--progress=none", f"d={source}", uri], check=True, capture_output=True)
        assert receiver.wait() == 0


def run_nbdcopy(inside, source, target):
    """Copy the disk to an nbdkit."""
    serve = [*inside, "nbdkit", "-f", "-i", "127.0.0.1", "-p", "10809", "--exit-with-parent", "file", str(target)]
    with subprocess.Popen(serve) as server:
        try:
            connect = "until nbdinfo --can connect nbd://127.0.0.1 2>/dev/null; do sleep 0.01; done; "
            copy = f"{connect}exec nbdcopy '{source}' nbd://127.0.0.1"
            subprocess.run([*inside, "sh", "-c", copy], check=True)
        finally:
            server.terminate()


@pytest.mark.parametrize("round_trip_ms", ROUND_TRIPS_MS)
def test_link(ratio, arena, round_trip_ms):
    """512 MiB of random data over a link with a round-trip time."""
    source = arena.random_image(32 * images.MiB if arena.quick else 512 * images.MiB)
    job = arena.job(source, link="tcp")
    arena.create_target(job)
    with namespace(round_trip_ms) as inside:
        same = arena.tools.program("same")
        sides = {
            name: gates.Side(
                lambda run=run: run(inside, source, job.target),
                setup=lambda: arena.prepare(job),
                check=lambda: images.require_same(same, source, job.target),
            )
            for name, run in {"blkmig": run_blkmig, "nbdcopy": run_nbdcopy}.items()
        }
        ratio(sides, group=f"512 MiB random, TCP, {round_trip_ms} ms round trip", min_rounds=5, max_rounds=8)
