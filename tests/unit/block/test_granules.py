# SPDX-License-Identifier: GPL-2.0-or-later
"""How fine a migration keeps track of writes."""

from __future__ import annotations

import pytest

import blkmig
from blkmig import errors, files
from blkmig.block import granules, wire

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

FINEST = {
    "no disk": ([], []),
    "a small disk": ([1], [4 * KiB]),
    "no bytes": ([0], [4 * KiB]),
    "just fits": ([256 * GiB], [4 * KiB]),
    "a byte more": ([256 * GiB + 1], [8 * KiB]),
    "two that just fit": ([128 * GiB, 128 * GiB], [4 * KiB, 4 * KiB]),
    "1 TiB": ([TiB], [16 * KiB]),
    "64 TiB": ([64 * TiB], [MiB]),
    "more than fits at all": ([1024 * TiB], [MiB]),
    "300 disks of 100 GiB": ([100 * GiB] * 300, [512 * KiB] * 273 + [256 * KiB] * 27),
    "256 disks of 1 GiB": ([GiB] * 256, [4 * KiB] * 256),
    "the large one first": ([TiB, 10 * GiB, 50 * GiB], [32 * KiB, 4 * KiB, 4 * KiB]),
    "two large ones alike": ([TiB, 4 * GiB, TiB], [64 * KiB, 4 * KiB, 32 * KiB]),
}


@pytest.mark.parametrize("name", FINEST)
def test_the_finest_granules_that_fit(name: str) -> None:
    sizes, expected = FINEST[name]
    found = granules.finest(sizes, [4096] * len(sizes))
    assert found == expected
    total = sum(-(-size // granule) for size, granule in zip(sizes, found, strict=True)) // 8
    assert total <= granules.MAX_BITMAP_BYTES or set(found) == {MiB}


def test_no_granule_is_below_what_its_tracker_tells() -> None:
    assert granules.finest([GiB, GiB, GiB], [4 * KiB, 64 * KiB, MiB]) == [4 * KiB, 64 * KiB, MiB]
    assert granules.finest([GiB], [512]) == [4 * KiB]
    assert granules.finest([TiB, TiB], [64 * KiB, 4 * KiB]) == [64 * KiB, 32 * KiB]


@pytest.mark.parametrize(
    ("granularity", "digests", "section", "expected", "whole_from"),
    [
        ("auto", False, "block", MiB, 1),
        ("auto", False, "blkmig", 4 * KiB, 192),
        ("auto", True, "blkmig", MiB, 1),
        ("auto", True, "block", MiB, 1),
        ("64K", False, "block", 64 * KiB, 1),
        ("64K", False, "blkmig", 64 * KiB, 12),
        (1 << 19, False, "blkmig", 512 * KiB, 2),
        ("1M", False, "blkmig", MiB, 1),
        ("8K", True, "blkmig", 8 * KiB, 1),
    ],
)
def test_what_a_migration_takes(
    granularity: int | str, digests: bool, section: wire.Format, expected: int, whole_from: int
) -> None:
    parameters = blkmig.MigrationParameters(granularity=granularity, digests=digests)
    disks = [files.MemoryBackend(bytearray(MiB), name=name) for name in "ab"]
    assert granules.of_disks(disks, parameters, section) == [expected] * 2
    assert granules.whole_from(MiB // expected, section, parameters) == whole_from


@pytest.mark.parametrize("granularity", [0, 1, 2048, 5000, "2M", "2K"])
def test_numbers_that_make_no_sense(granularity: int | str) -> None:
    with pytest.raises(errors.ParameterError, match=r'"auto" or a power of two from 4K to 1M'):
        blkmig.MigrationParameters(granularity=granularity)
