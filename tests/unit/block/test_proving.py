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
from blkmig.block import hashing, proofwords, proving
from blkmig.files import storage

SIZE = 2 << 20
MIB = 1 << 20


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


def test_a_proof_that_comes_before_its_block(tmp_path: Path) -> None:
    """What was lost with a link is proven again at once, and comes again later; the target grows with what comes."""
    content = b"x" * SIZE
    (tmp_path / "t.raw").write_bytes(content[:MIB])
    with blkmig.FileBackend(tmp_path / "t.raw", name="d", writable=True) as target:
        device = block.BlkLoadDevice(target, stats.DiskStatistics("d"), size=SIZE)
        hashes = hashing.hash_of(content[:MIB]) * 2
        with contextlib.closing(proving.Proving([(device, SIZE)])) as compared:
            for form, count in (("zeros", 2), ("blocks", 2)):
                proof = proofwords.Proof(0, form, 0, count, hashes if form == "blocks" else b"")
                compared.take_proof(proof.encode(), 0)
            until(lambda: compared.progress()[1] == 0)
            found = compared.finish(lambda: None, lambda: None, 1)
            assert found is not None
            assert (found.offset, found.nbytes) == (MIB, MIB)
