# SPDX-License-Identifier: GPL-2.0-or-later
"""A steady writer: writer.py NBD_URI BYTES_PER_SECOND CHUNK AREA.

It writes `CHUNK` bytes at random places of the first `AREA` bytes, one request at a time, at that rate or as fast as it
gets, until its server goes away. Then it stands still, as a guest that is held does, until its stdin is closed: ending
an interpreter takes 15 ms of a CPU that the pause is measured on. After that it prints one JSON object: since when it
is held, when the last write was acknowledged (the clock of time.monotonic(), which all processes share), how many there
were, and their median latency.

It is held from the moment when its connection was cut, which it sees at once where it waits for the next write to be
due. If a write was under way, it is held from the beginning of that one: nobody knows how long it has hung. The time
between its last write and the cut is none in which it would have done anything.
"""

import contextlib
import json
import os
import pathlib
import random
import select
import statistics
import sys
import time

from blkmig import errors
from blkmig.nbd import connection as nbd_connection


def main() -> None:
    """Write until it is over."""
    uri, rate, chunk, area = sys.argv[1], *map(int, sys.argv[2:])
    connection = nbd_connection.NbdConnection(uri)
    fd = the_socket()
    generator, data = random.Random(1), bytearray(os.urandom(chunk))
    latencies: list[float] = []
    due = last = held = time.monotonic()
    while True:
        data[:8] = len(latencies).to_bytes(8, "little")
        due = max(due + chunk / rate, time.monotonic() - 0.1)  # after a stall it does not catch up for ever
        is_cut = bool(select.select([fd], [], [], max(0.0, due - time.monotonic()))[0])  # nothing else comes
        held = start = time.monotonic()
        if is_cut:
            break
        try:
            connection.pwrite(data, generator.randrange(area // chunk) * chunk)
        except errors.DeviceError:
            break
        last = time.monotonic()
        latencies.append(last - start)
        if len(latencies) == 1:
            print("writing", flush=True)
    sys.stdin.read()
    latency = statistics.median(latencies or [0])
    print(json.dumps({"held": held, "last": last, "writes": len(latencies), "latency": latency}))


def the_socket() -> int:
    """Return the descriptor of the only socket of this process."""
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor with which the folder is read
            if str(entry.readlink()).startswith("socket:"):
                return int(entry.name)
    raise RuntimeError("there is no socket")


if __name__ == "__main__":
    main()
