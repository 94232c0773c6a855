# SPDX-License-Identifier: GPL-2.0-or-later
"""A steady writer: writer.py NBD_URI BYTES_PER_SECOND CHUNK AREA.

It writes `CHUNK` bytes at random places of the first `AREA` bytes, one request at a time, at that rate or as fast as it
gets, until its server goes away. Then it stands still, as a guest that is held does, until its stdin is closed: ending
an interpreter takes 15 ms of a CPU that the pause is measured on. After that it prints one JSON object: when the last
write was acknowledged (the clock of time.monotonic(), which all processes share), how many there were, and their median
latency.
"""

import json
import os
import random
import statistics
import sys
import time

from blkmig import errors
from blkmig.nbd import connection as nbd_connection


def main() -> None:
    """Write until it is over."""
    uri, rate, chunk, area = sys.argv[1], *map(int, sys.argv[2:])
    connection = nbd_connection.NbdConnection(uri)
    generator, data = random.Random(1), bytearray(os.urandom(chunk))
    latencies: list[float] = []
    due = last = time.monotonic()
    while True:
        data[:8] = len(latencies).to_bytes(8, "little")
        due = max(due + chunk / rate, time.monotonic() - 0.1)  # after a stall it does not catch up for ever
        time.sleep(max(0.0, due - time.monotonic()))
        start = time.monotonic()
        try:
            connection.pwrite(data, generator.randrange(area // chunk) * chunk)
        except errors.DeviceError:
            break
        last = time.monotonic()
        latencies.append(last - start)
        if len(latencies) == 1:
            print("writing", flush=True)
    sys.stdin.read()
    print(json.dumps({"last": last, "writes": len(latencies), "latency": statistics.median(latencies or [0])}))


if __name__ == "__main__":
    main()
