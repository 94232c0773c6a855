# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast disks are read, and how much of their data is zeros: by samples, for half a second at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from .. import _core, disk, errors

PROBE_SECONDS = 0.5

PLACES = 64
"""So many places of each disk are looked at, spread over all of it."""

RUN_BLOCKS = 4
"""Blocks that are read one after the other at each place, as the bulk phase does it."""

STRIDE = 37
"""The places are visited in this step, which has no common divisor with their number: so the first of them are spread,
too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """What the samples say."""

    speed: float
    """Bytes per second; 0 if there is no data."""

    zero_share: float
    """Of the blocks of data, those that hold nothing but zeros."""


def read_samples(disks: list[disk.BlockBackend], clock: Callable[[], float]) -> Samples:
    """Read some of the data of `disks`. Blocks for `PROBE_SECONDS`. Raises :class:`~blkmig.errors.DeviceError`."""
    buf, started = _core.BlockBuffer(), clock()
    nbytes = blocks = zeros = 0
    places = ((backend, place) for place in range(PLACES) for backend in disks)
    for backend, place in places:
        for offset, piece in _run(backend, place * STRIDE % PLACES * backend.size // PLACES):
            with errors.failing("cannot read", device=backend.name, offset=offset):
                is_zero = backend.read_block(buf, offset, piece)
            nbytes, blocks, zeros = nbytes + piece, blocks + 1, zeros + bool(is_zero)
            if clock() - started >= PROBE_SECONDS:
                break
        if clock() - started >= PROBE_SECONDS:
            break
    elapsed = clock() - started
    return Samples(nbytes / elapsed if elapsed > 0 else 0.0, zeros / blocks if blocks else 0.0)


def _run(backend: disk.BlockBackend, around: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of some blocks of data, the first of them at or behind `around`."""
    extent = backend.next_data(around // _core.BLOCK_SIZE * _core.BLOCK_SIZE)
    if extent is not None:
        start, end = extent
        for offset in range(start, min(end, start + RUN_BLOCKS * _core.BLOCK_SIZE), _core.BLOCK_SIZE):
            yield offset, min(_core.BLOCK_SIZE, end - offset)
