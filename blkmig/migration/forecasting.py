# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration would take, before anything is sent: the writers are watched for a few seconds.

::

    watching ──► how often each block is written ──► rates ──► replay ──► Forecast

What cannot be known is the link. Its speed is what the caller says, or `max_bandwidth`, or the speed of the disks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable

from .. import _core, disk, errors, params, units
from . import rates, replay, watching

PROBE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction; sizes in bytes, times in seconds, rates in bytes per second."""

    disk_bytes: int
    data_bytes: int
    """What bulk would send: whole blocks that are not holes."""

    bandwidth: float
    """What the link was taken to carry."""

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
    seconds = units.number("seconds", seconds)
    bandwidth = None if bandwidth is None else units.number("bandwidth", bandwidth)
    sent = [backend for backend in disks if not backend.is_read_only and backend.size]
    with contextlib.ExitStack() as stack:
        watched = []
        for backend in sent:
            stack.enter_context(backend.block_use("a forecast"))
            bitmap = backend.create_dirty_bitmap(int(parameters.granularity))
            stack.callback(backend.release_dirty_bitmap, bitmap)
            watched.append(watching.WatchedDisk(backend, bitmap))
        interval, count = watching.watch(watched, seconds, clock, sleep)
        for known in watched:
            known.find_data()
        link = bandwidth or float(parameters.max_bandwidth) or read_speed(sent, clock)
    if link <= 0:
        raise errors.ParameterError("there is nothing to measure the bandwidth with: say it")
    speed = min(link, float(parameters.max_bandwidth) or link)
    played = replay.Replay(
        rates.make_cells(watched, interval, count),
        parameters,
        speed=speed / _core.BLOCK_SIZE,
        link_speed=link / _core.BLOCK_SIZE,
    )
    played.run()
    dirtied = sum(known.count_written() for known in watched)
    return Forecast(
        disk_bytes=sum(backend.size for backend in sent),
        data_bytes=sum(known.count_data() for known in watched) * _core.BLOCK_SIZE,
        bandwidth=link,
        dirty_rate=dirtied * _core.BLOCK_SIZE / (interval * count) if interval else 0.0,
        rounds=played.rounds,
        total_bytes=int(played.sent * _core.BLOCK_SIZE),
        total_time=played.now,
        downtime=played.downtime,
        converges=played.converges,
    )


# -- speed -------------------------------------------------------------------------------------------------------------


def read_speed(disks: list[disk.BlockBackend], clock: Callable[[], float]) -> float:
    """Return how fast data is read: the most that a migration could do."""
    buf, started, nbytes = _core.BlockBuffer(), clock(), 0
    for backend in disks:
        offset = 0
        while (extent := backend.next_data(offset)) is not None and clock() - started < PROBE_SECONDS:
            piece = min(_core.BLOCK_SIZE, extent[1] - extent[0])
            try:
                backend.read_block(buf, extent[0], piece)
            except OSError as error:
                raise errors.DeviceError("cannot read", device=backend.name, cause=error, offset=extent[0]) from error
            nbytes, offset = nbytes + piece, extent[0] + piece
    elapsed = clock() - started
    return nbytes / elapsed if elapsed > 0 else 0.0
