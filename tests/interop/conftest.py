# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests against real QEMUs have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import storage_daemon


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for sockets."""
    with storage_daemon.private_folder() as path:
        yield path
