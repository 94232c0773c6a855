# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration would take, before anything is sent: the writers are watched for a few seconds.

The bitmaps are filled and not cleared while the writers are watched, so they tell how many *different* blocks are dirty
after a time, which is what a round leaves. From that curve the rounds follow one from the other: each lasts as long as
what the one before it left takes on the wire.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable

from .. import _core, disk, errors, params

SAMPLES = 20
MAX_ROUNDS = 100
PROBE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction; sizes in bytes, times in seconds, rates in bytes per second."""

    disk_bytes: int
    data_bytes: int
    """What bulk would send: whole blocks that are not holes."""

    bandwidth: float
    dirty_rate: float
    """Different blocks dirtied per second, over the whole time of watching."""

    rounds: int
    total_bytes: int
    total_time: float
    downtime: float
    converges: bool
    """Whether the last pass fits the downtime limit; if not, the figures are those of the round that is steady."""


def forecast(
    disks: Iterable[disk.BlockBackend],
    parameters: params.MigrationParameters,
    *,
    seconds: float = 3.0,
    bandwidth: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Forecast:
    """Watch the writers of `disks` for `seconds` and return what a migration with `parameters` would take. Blocks.

    `bandwidth` is what the link carries; None takes `max_bandwidth`, or else the speed at which the disks are read. The
    disks are in use meanwhile, and as they were afterwards. Raises :class:`~blkmig.errors.DeviceError`.
    """
    sent = [backend for backend in disks if not backend.is_read_only and backend.size]
    with contextlib.ExitStack() as stack:
        bitmaps = []
        for backend in sent:
            stack.enter_context(backend.block_use("a forecast"))
            bitmap = backend.create_dirty_bitmap(int(parameters.granularity))
            stack.callback(backend.release_dirty_bitmap, bitmap)
            bitmaps.append(bitmap)
        curve = watch(sent, bitmaps, seconds, clock, sleep)
        data_bytes = sum(map(count_data, sent))
        speed = bandwidth or float(parameters.max_bandwidth) or read_speed(sent, clock)
    if speed <= 0:
        raise errors.ParameterError("there is nothing to measure the bandwidth with: say it")
    return predict(sum(backend.size for backend in sent), data_bytes, curve, speed, parameters.downtime_limit)


def watch(
    disks: list[disk.BlockBackend],
    bitmaps: list[disk.DirtyBitmap],
    seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[tuple[float, int]]:
    """Return points (seconds, different bytes dirty) of the writers' curve, from (0, 0) on."""
    started, points = clock(), [(0.0, 0)]
    while points[-1][0] < seconds:
        sleep(seconds / SAMPLES)
        disk.sync_disks(disks)
        dirty = sum(bitmap.count_blocks() for bitmap in bitmaps) * _core.BLOCK_SIZE
        points.append((clock() - started, dirty))
    return points


def count_data(backend: disk.BlockBackend) -> int:
    """Return the bytes of the blocks that are not wholly in holes."""
    blocks, offset, first_uncounted = 0, 0, 0
    while (extent := backend.next_data(offset)) is not None:
        first = max(extent[0] // _core.BLOCK_SIZE, first_uncounted)
        stop = -(-extent[1] // _core.BLOCK_SIZE)
        blocks += max(0, stop - first)
        first_uncounted, offset = max(stop, first_uncounted), extent[1]
    return blocks * _core.BLOCK_SIZE


def read_speed(disks: list[disk.BlockBackend], clock: Callable[[], float]) -> float:
    """Return how fast data is read: the most that a migration could do."""
    buf, started, nbytes = _core.BlockBuffer(), clock(), 0
    for backend in disks:
        offset = 0
        while (extent := backend.next_data(offset)) is not None and clock() - started < PROBE_SECONDS:
            piece = min(_core.BLOCK_SIZE, extent[1] - extent[0])
            backend.read_block(buf, extent[0], piece)
            nbytes, offset = nbytes + piece, extent[0] + piece
    elapsed = clock() - started
    return nbytes / elapsed if elapsed > 0 else 0.0


def dirty_after(curve: list[tuple[float, int]], seconds: float, most: int) -> float:
    """Return the bytes that are dirty after `seconds`: on the curve, or beyond it along its second half."""
    index = bisect.bisect_left(curve, (seconds, 0))
    if index < len(curve):
        (t0, d0), (t1, d1) = curve[max(index - 1, 0)], curve[index]
        share = (seconds - t0) / (t1 - t0) if t1 > t0 else 0.0
        return d0 + (d1 - d0) * share
    (t0, d0), (t1, d1) = curve[len(curve) // 2], curve[-1]
    slope = (d1 - d0) / (t1 - t0) if t1 > t0 else 0.0
    return min(most, d1 + slope * (seconds - t1))


def predict(
    disk_bytes: int, data_bytes: int, curve: list[tuple[float, int]], bandwidth: float, downtime_limit: float
) -> Forecast:
    """Go through the rounds until what is left fits the downtime limit, or gets no smaller.

    A migration goes on below the limit while that makes the pause clearly shorter: its downtime is this at most.
    """
    total_time, total_bytes = data_bytes / bandwidth, float(data_bytes)
    left, rounds = dirty_after(curve, total_time, disk_bytes), 0
    while left > bandwidth * downtime_limit and rounds < MAX_ROUNDS:
        seconds = left / bandwidth
        total_time, total_bytes, rounds = total_time + seconds, total_bytes + left, rounds + 1
        before, left = left, dirty_after(curve, seconds, disk_bytes)
        if left >= before:
            break
    last_time, last_dirty = curve[-1]
    return Forecast(
        disk_bytes=disk_bytes,
        data_bytes=data_bytes,
        bandwidth=bandwidth,
        dirty_rate=last_dirty / last_time if last_time else 0.0,
        rounds=rounds,
        total_bytes=int(total_bytes + left),
        total_time=total_time + left / bandwidth,
        downtime=left / bandwidth,
        converges=left <= bandwidth * downtime_limit,
    )
