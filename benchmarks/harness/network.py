# SPDX-License-Identifier: GPL-2.0-or-later
"""A network of our own: a namespace whose loopback is as slow, or as far, as a real link.

The calling thread enters it, and whatever it starts meanwhile does, too. So both ends of a link find each other as
127.0.0.1, and everything else on the machine stays as quick as it is. It takes root, ip and tc.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

from . import images

GIGABIT = ("tbf", "rate", "1gbit", "burst", "512k", "latency", "50ms")
"""A link of 1 Gbit/s with some room for what waits."""

TEN_GIGABIT = ("tbf", "rate", "10gbit", "burst", "5m", "latency", "50ms")

GIGABIT_SPEED = 10**9
"""Its bits per second."""

CLONE_NEWNET = 0x40000000

_numbers = itertools.count()


def delay(round_trip_ms: float) -> tuple[str, ...]:
    """Return what makes a link with a round-trip time, each way half of it."""
    return ("netem", "delay", f"{round_trip_ms / 2}ms", "limit", "100000")


@contextlib.contextmanager
def slowed(*qdisc: str) -> Iterator[None]:
    """Stay in a new namespace whose loopback has this queueing discipline."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        raise images.CannotRunHere("network namespaces take root, ip and tc")
    name = f"blkmig-bench-{os.getpid()}-{next(_numbers)}"
    run("ip", "netns", "add", name)
    try:
        with _entered(pathlib.Path("/run/netns") / name):
            run("ip", "link", "set", "lo", "up")
            run("tc", "qdisc", "add", "dev", "lo", "root", *qdisc)
            yield
    finally:
        run("ip", "netns", "del", name)


def carried() -> int:
    """Return the bytes that the loopback of this namespace has carried, both directions, headers and all."""
    line = next(line for line in pathlib.Path("/proc/thread-self/net/dev").read_text().splitlines() if " lo:" in line)
    return int(line.partition(":")[2].split()[0])


@contextlib.contextmanager
def _entered(namespace: pathlib.Path) -> Iterator[None]:
    with pathlib.Path("/proc/thread-self/ns/net").open("rb") as before, namespace.open("rb") as inside:
        _enter(inside.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise images.CannotRunHere(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")


def run(*command: str) -> None:
    """Run a command of the system; CannotRunHere if it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise images.CannotRunHere(f"{' '.join(command)}: {done.stderr.strip()}")
