# SPDX-License-Identifier: GPL-2.0-or-later
"""Block buffers for tests of raw files."""

import pytest

from blkmig import _core


@pytest.fixture
def blk():
    return _core.BlockBuffer()


def filled(blk: _core.BlockBuffer, data: bytes) -> _core.BlockBuffer:
    """Put `data` into `blk` as a receiver does."""
    blk.data[: len(data)] = data
    blk.filled(len(data))
    return blk
