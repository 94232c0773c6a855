# SPDX-License-Identifier: GPL-2.0-or-later
"""What is no whole number, and what is one of a kind of its own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from blkmig import disk, files

MiB = 1 << 20
SIZE = 4 * MiB


def memory(_: pathlib.Path) -> disk.LocalBackend:
    return files.MemoryBackend(bytearray(SIZE), name="d")


def raw(path: pathlib.Path) -> disk.LocalBackend:
    return files.FileBackend.create(path / "d.raw", SIZE)


def overlay(path: pathlib.Path) -> disk.LocalBackend:
    (path / "base").write_bytes(b"base" * 1000)
    files.FileBackend.create(path / "top", SIZE).close()
    return files.FileBackend(path / "top", base=path / "base")


@pytest.fixture(params=[memory, raw, overlay], ids=lambda make: make.__name__)
def backend(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[disk.LocalBackend]:
    with request.param(tmp_path) as made:
        yield made
