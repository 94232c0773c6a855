# SPDX-License-Identifier: GPL-2.0-or-later
"""END and COMMIT: what is read is what was said, or it is an error."""

from __future__ import annotations

import random

import pytest

from blkmig import errors
from blkmig.savevm import Commit, End, Kind, parse_commit, parse_end

ABOUT = {"blkmig": {"version": 2, "disks": []}}


def test_an_end_says_its_description() -> None:
    assert parse_end(End.encode(7, ABOUT), 0) == End(7, ABOUT, "sealed")


def test_a_damaged_end_has_no_sealed_description() -> None:
    """Its number is another one, or it is known to be damaged; nothing else comes out of it."""
    data, rng = End.encode(7, ABOUT), random.Random(5)
    for position in range(4, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        assert parse_end(bytes(damaged), 0).state != "sealed"
    for nbytes in range(len(data)):
        if nbytes < 4:
            with pytest.raises(errors.StreamError):
                parse_end(data[:nbytes], 9)
        else:
            assert parse_end(data[:nbytes], 0).state != "sealed"


@pytest.mark.parametrize("kind", Kind)
def test_a_commit_says_number_and_kind(kind: Kind) -> None:
    commit = Commit(9, kind)
    assert commit.encode() == bytes([0, 0, 0, 9, kind])
    assert parse_commit(commit.encode(), 0) == commit


@pytest.mark.parametrize("body", [b"", bytes(4), bytes(6), bytes([0, 0, 0, 1, 3]), bytes([0, 0, 0, 1, 255])])
def test_what_is_no_commit(body: bytes) -> None:
    with pytest.raises(errors.StreamError, match="nothing was handed over"):
        parse_commit(body, 0)
