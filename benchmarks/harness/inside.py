# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration whose two ends are threads of this process, beside a thread that writes the disk meanwhile."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import blkmig
from blkmig import stats

Writer: TypeAlias = Callable[[blkmig.FileBackend, threading.Event], None]
"""Writes the disk until it is over."""


def move(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    uri: str = "tcp:127.0.0.1:0",
    sending: Mapping[str, object],
    receiving: Mapping[str, object],
    writer: Writer | None = None,
) -> tuple[dict[str, float], stats.OutgoingStatistics]:
    """Move a disk; return the seconds of all of it and of its pause, and what the sender says of it."""
    with (
        blkmig.FileBackend(source, name="d", writable=writer is not None) as disk,
        blkmig.incoming(uri, {"d": target}, blkmig.IncomingParameters(**receiving)) as receiver,
    ):
        over = threading.Event()
        threads = [threading.Thread(target=receiver.run)]
        if writer is not None:
            threads.append(threading.Thread(target=writer, args=(disk, over)))
        for thread in threads:
            thread.start()
        began = time.monotonic()
        with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(**sending)) as migration:
            migration.run()
        threads[0].join()
        wall = time.monotonic() - began
        over.set()
        threads[-1].join()
    return {"wall": wall, "pause": migration.stats.downtime}, migration.stats


def write(disk: blkmig.FileBackend, over: threading.Event, *, data: bytes, rate: float) -> None:
    """Write `data` again and again, all over the disk, so many bytes a second."""
    offset, began, written = 0, time.monotonic(), 0
    while not over.wait(max(0.0, began + written / rate - time.monotonic())):
        offset = (offset + 1_048_573 * len(data)) % disk.size // len(data) * len(data)
        disk.pwrite(data, offset)
        written += len(data)
