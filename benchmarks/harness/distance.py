# SPDX-License-Identifier: GPL-2.0-or-later
"""A long way between two network namespaces: each packet waits for half of the round trip, and for the link.

::

    near ── tun ◄──► this program, as a process of its own ◄──► tun ── far        NEAR and FAR are the addresses

The connections are the kernel's own, from end to end: windows, congestion and losses are what they are on a real link.
It is for kernels without netem, and takes root, ip and /dev/net/tun. Packets pass as the kernel hands them over: up to
64 KiB that no card has cut yet, which is what lets a program keep up.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import itertools
import os
import pathlib
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

NEAR, FAR = "10.77.0.1", "10.77.0.2"
TUN = pathlib.Path("/dev/net/tun")

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
MTU = 1500
MAX_PACKET = 70_000
BURST = 64
"""Packets that are taken in one go."""

QUEUE_SECONDS = 0.05
"""What the link holds back when more comes than it carries; what is above that is lost."""

_numbers = itertools.count()


@contextlib.contextmanager
def between(round_trip: float, bits_per_second: float) -> Iterator[tuple[list[str], list[str]]]:
    """Have the namespaces; yields what a command at the near, and at the far end begins with."""
    from . import images, network

    if os.geteuid() or not TUN.exists():
        raise images.CannotRunHere("a long way takes root, ip and /dev/net/tun")
    number = next(_numbers)
    names = [f"blkmig-{end}-{os.getpid()}-{number}" for end in ("near", "far")]
    with contextlib.ExitStack() as stack:
        for name in names:
            network.run("ip", "netns", "add", name)
            stack.callback(network.run, "ip", "netns", "del", name)
        command = [sys.executable, __file__, str(round_trip), str(bits_per_second), *names]
        relay = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(relay.kill)
        if not relay.stdout.readline():
            raise images.CannotRunHere("no tun device can be made")
        near, far = (["ip", "netns", "exec", name] for name in names)
        yield near, far


def _open_tun(namespace: str, address: str) -> int:
    fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", b"blkmig%d", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    device = fcntl.ioctl(fd, TUNSETIFF, request)[:16].rstrip(b"\0").decode()
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    subprocess.run(["ip", "link", "set", device, "netns", namespace], check=True)
    for words in (f"addr add {address}/24 dev {device}", f"link set {device} up mtu {MTU}", "link set lo up"):
        subprocess.run(["ip", "-n", namespace, *words.split()], check=True)
    return fd


def _relay(source: int, sink: int, delay: float, bytes_per_second: float) -> None:
    """Pass packets on, each when the link has carried those before it, and `delay` seconds later. For ever."""
    under_way: collections.deque[tuple[float, bytes]] = collections.deque()
    free_at = 0.0
    while True:
        while under_way and under_way[0][0] <= time.monotonic():
            with contextlib.suppress(OSError):  # the other end is not up
                os.write(sink, under_way.popleft()[1])
        patience = None if not under_way else max(0.0, under_way[0][0] - time.monotonic())
        if not select.select([source], [], [], patience)[0]:
            continue
        with contextlib.suppress(BlockingIOError):
            for _ in range(BURST):
                packet, now = os.read(source, MAX_PACKET), time.monotonic()
                free_at = max(free_at, now)
                if free_at - now <= QUEUE_SECONDS:
                    free_at += len(packet) / bytes_per_second
                    under_way.append((free_at + delay, packet))


def main(round_trip: float, bits_per_second: float, near: str, far: str) -> None:
    """Be the way, until stdin ends."""
    ends = _open_tun(near, NEAR), _open_tun(far, FAR)
    for source, sink in (ends, ends[::-1]):
        arguments = (source, sink, round_trip / 2, bits_per_second / 8)
        threading.Thread(target=_relay, args=arguments, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
