# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways to one target: none is left open that is not used."""

from __future__ import annotations

from pathlib import Path

import descriptors
import pytest

import blkmig
from blkmig import block, errors
from blkmig.migration import connection


def test_another_one_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """Not even as long as somebody has the error, with its frames."""
    handlers = block.BlockSaveHandlers([], blkmig.MigrationParameters())
    link = connection.Connection(f"unix:{tmp_path}/s", handlers)
    link.cancel()
    with descriptors.given_back(), pytest.raises(errors.Cancelled) as caught:
        link.open_another(timeout=1)
    assert caught.value.__traceback__ is not None
