# SPDX-License-Identifier: GPL-2.0-or-later
"""Small streams for tests of targets, and the marks of half-made ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blkmig
from blkmig.files import partial

CONTENT = random.Random(5).randbytes(5_000_192)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return stream_of(tmp_path, "v", CONTENT)


def stream_of(tmp_path: Path, name: str, content: bytes, **parameters: object) -> Path:
    """Write the stream of a disk and return its path."""
    source = blkmig.MemoryBackend(bytearray(content), name=name)
    blkmig.send([source], f"file:{tmp_path}/{name[:50]}.st", **parameters)
    return tmp_path / f"{name[:50]}.st"


def marks(path: Path) -> list[Path]:
    """Return what is left of half-made targets."""
    return [file for file in path.rglob("*") if file.name.endswith(partial.SUFFIX)]
