# SPDX-License-Identifier: GPL-2.0-or-later
"""BLAKE3 as the wire needs it, and what is said where it is not installed."""

from __future__ import annotations

import sys

import pytest

from blkmig import errors
from blkmig.block import hashing


def test_official_vectors():
    """The first ones of the test vectors that the authors of BLAKE3 publish."""
    assert hashing.hash_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert hashing.hash_of(b"\0").hex() == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    assert hashing.hash_of(bytes(i % 251 for i in range(1024))).hex() == (
        "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"
    )


def test_any_contiguous_buffer():
    data = bytearray(b"a block")
    assert hashing.hash_of(memoryview(data)) == hashing.hash_of(bytes(data))
    assert len(hashing.hash_of(data)) == hashing.HASH_SIZE


def test_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "blake3", None)
    assert not hashing.can_hash()
    with pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[verify\]'"):
        hashing.hash_of(b"")


def test_it_can_hash_here():
    assert hashing.can_hash()
