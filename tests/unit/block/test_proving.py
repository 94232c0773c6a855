# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that compares a target with its proofs: what it meets reaches the thread that loads."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from pauses import until

import blkmig
from blkmig import block, errors, stats
from blkmig.block import proofwords, proving
from blkmig.files import storage

SIZE = 2 << 20


@pytest.mark.parametrize("verb", ["settle", "read"])
def test_a_target_that_cannot_be_read_back_is_told_whoever_asks_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Its source has proven everything by then, and waits until it is compared: no other record will come."""

    def broken(*_: object) -> None:
        raise errors.DeviceError("cannot read back", device="d", cause=OSError(errno.EIO, "broken"))

    def is_told() -> bool:
        try:
            compared.progress()
        except errors.DeviceError as error:
            return "cannot read back: broken" in str(error)
        return False

    monkeypatch.setattr(storage.FileReader, verb, broken)
    (tmp_path / "t.raw").write_bytes(bytes(SIZE))
    with blkmig.FileBackend(tmp_path / "t.raw", name="d", writable=True) as target:
        device = block.BlkLoadDevice(target, stats.DiskStatistics("d"), size=SIZE)
        with contextlib.closing(proving.Proving([(device, SIZE)])) as compared:
            compared.take_proof(proofwords.Proof(0, "blocks", 0, 2, bytes(64)).encode(), 0)
            until(is_told)
