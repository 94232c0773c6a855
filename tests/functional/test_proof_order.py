# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are proven while their blocks come in another order than they stand on the disk."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig.block import proving, save
from blkmig.disk.storage import BackendReader, StorageReader

MIB = lab.MIB


def test_blocks_that_overlap_may_be_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block begins early, over its neighbour, which is read until it was compared, if it is compared that
    early; the blocks of another disk pass it meanwhile."""
    contents = bytearray(random.Random(2).randbytes(MIB + 512))
    was_compared, compare = threading.Event(), proving.difference

    class Late(blkmig.MemoryBackend):
        reads_in_parallel = True

        def read_block(self, blk: Any, offset: int, nbytes: int) -> bool:
            if not offset:
                was_compared.wait(1)
            return super().read_block(blk, offset, nbytes)

        def open_reader(self, *, is_target: bool) -> StorageReader:
            return BackendReader(blkmig.MemoryBackend(contents, name="d"))

    def compared(reader: Any, shape: Any, said: Any, number: int) -> Any:
        found = compare(reader, shape, said, number)
        if (said.disk, number) == (0, 0):
            was_compared.set()
        return found

    monkeypatch.setattr(proving, "difference", compared)
    monkeypatch.setattr(save, "SECTION_SECONDS", 0.0)  # a section for each block
    other = blkmig.MemoryBackend(bytearray(b"x" * 16 * MIB), name="e")
    disks: list[blkmig.BlockBackend] = [Late(contents, name="d"), other]
    targets = {disk.name: tmp_path / f"{disk.name}.raw" for disk in disks}
    sent, _ = lab.migrate(tmp_path, "unix", disks, targets, receive={"verify": True}, digests=True, reading="parallel")
    assert sent.verified
