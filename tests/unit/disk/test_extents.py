# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that have no better way: extents go one after the other, through the verbs for blocks."""

from __future__ import annotations

import random

import pytest
import sim

from blkmig import _core, errors

MIB = sim.MIB


class Plain(sim.LayeredDisk):
    """A disk with the verbs for blocks alone, as somebody may bring along."""

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        if offset + nbytes > self.size:
            raise OSError(27, "File too large")
        assert not blk.is_movable, "it would be stored later"
        self.image[offset : offset + nbytes] = blk.payload[:nbytes]


@pytest.mark.parametrize("seed", range(20))
def test_against_slices(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((1000, 3 * MIB + 17))
    disk, blk = Plain(rng.randbytes(size)), _core.BlockBuffer(rng.choice(("own", "mapped", "moved", "piped")))
    model = bytearray(disk.image)
    extents = [(rng.randrange(size), rng.randrange(1, 3000)) for _ in range(rng.choice((1, 5, 256)))]
    disk.read_extents(blk, extents)
    wanted = b"".join(model[offset : offset + nbytes].ljust(nbytes, b"\0") for offset, nbytes in extents)
    assert blk.payload[: len(wanted)] == wanted
    inside = [(offset, min(nbytes, size - offset)) for offset, nbytes in extents]
    blk.data[:] = payload = rng.randbytes(MIB)
    blk.gathered()
    disk.write_extents(blk, inside)
    done = 0
    for offset, nbytes in inside:
        model[offset : offset + nbytes] = payload[done : done + nbytes]
        done += nbytes
    assert disk.image == model


def test_an_error_names_the_extent() -> None:
    disk = Plain(bytes(MIB))
    with pytest.raises(errors.DeviceError, match="cannot write at offset 1048064, 1024 bytes") as caught:
        disk.write_extents(_core.BlockBuffer(), [(0, 512), (MIB - 512, 1024)])
    assert (caught.value.device, caught.value.errno) == ("d", 27)
