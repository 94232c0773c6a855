# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this machine makes huge pages of 2 MiB on demand."""

from __future__ import annotations

import functools
from pathlib import Path

FOLDER = Path("/sys/kernel/mm/transparent_hugepage")


@functools.cache
def are_had() -> bool:
    """Return whether memory that asks for huge pages gets them, of 2 MiB."""
    try:
        size = int((FOLDER / "hpage_pmd_size").read_text())
        return size == 2 << 20 and "[never]" not in (FOLDER / "enabled").read_text()
    except (OSError, ValueError):
        return False
