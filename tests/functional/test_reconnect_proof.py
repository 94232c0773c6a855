# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are proven while the link is lost and comes back: no false alarm, and what differs is found."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cutter
import lab
import pytest
from lossy import Lossy, many_barriers

import blkmig
from blkmig import errors
from blkmig.block import proving

MIB = lab.MIB
SIZE = 12 * MIB + 1536
__all__ = ["many_barriers"]


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm_under_writers(tmp_path: Path, seed: int) -> None:
    """Cut in the bulk phase, in rounds, while the target compares, and in pauses."""
    rng = random.Random(seed)
    live: list[tuple[float, cutter.How]] = [(rng.random() * 0.1, rng.choice(("reset", "end"))) for _ in range(5)]
    cuts: list[tuple[int, cutter.How]] = [(rng.randrange(4096, 6 * MIB), "reset"), (rng.randrange(3 * MIB), "end")]
    granularity = rng.choice((4096, 65536, MIB))
    chosen: dict[str, Any] = {"switchover": "manual", "granularity": granularity}
    chosen |= {"downtime_limit": 30, "idle_timeout": 30}
    run = Lossy(tmp_path, seed, cuts, SIZE, 3 * MIB, verify=True, **chosen)
    run.run(is_file=bool(seed % 2), live=live)


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("offset", [0, 5 * MIB + 12_345, SIZE - 1])
def test_a_byte_that_rots_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Whenever the block is about to be read back: before and after the loss."""
    content = random.Random(2).randbytes(SIZE)
    target, compare = tmp_path / "t.raw", proving.difference
    target.write_bytes(bytes(SIZE))

    def rotten(reader: Any, shape: Any, said: Any, number: int) -> Any:
        if number == offset // MIB:
            with target.open("r+b", buffering=0) as file:
                file.seek(offset)
                file.write(bytes([content[offset] ^ 1]))
        return compare(reader, shape, said, number)

    monkeypatch.setattr(proving, "difference", rotten)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, verify=True)
    with cutter.Cutter(receiver.uri, [(8 * MIB, "reset"), (MIB, "end")]) as relay:
        disk = blkmig.MemoryBackend(bytearray(content), name="d")
        parameters = blkmig.MigrationParameters(digests=True, max_bandwidth=60 * MIB)
        migration = blkmig.outgoing([disk], relay.uri, parameters)
        with pytest.raises(errors.ContentMismatch) as sent, migration:
            migration.run()
        with pytest.raises(errors.ContentMismatch) as came:
            receiver.result()
    assert migration.stats.reconnects > 0
    assert sent.value.offset == came.value.offset
    assert came.value.offset is not None
    assert came.value.offset <= offset < came.value.offset + 2 * MIB


@pytest.mark.usefixtures("many_barriers")
def test_what_was_acknowledged_is_not_proven_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet disk is read back about once: what is said again is what two barriers span."""
    compare, count = proving.difference, [0]

    def counted(*args: Any) -> Any:
        count[0] += 1
        return compare(*args)

    monkeypatch.setattr(proving, "difference", counted)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"}, verify=True)
    with cutter.Cutter(receiver.uri, [(48 * MIB, "reset")]) as relay:
        disk = blkmig.MemoryBackend(bytearray(random.Random(3).randbytes(64 * MIB)), name="d")
        found = blkmig.send([disk], relay.uri, digests=True, max_bandwidth=32 * MIB)
        receiver.result()
    assert (found.reconnects, found.verified) == (1, True)
    assert 64 <= count[0] < 2 * 64
