# SPDX-License-Identifier: GPL-2.0-or-later
"""Granules that have become zeros cost hardly anything in a dirty round, and both ends count that alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import section_reader
import tapped

import blkmig
from blkmig import savevm, stats
from blkmig.channel import link

MIB = lab.MIB
SIZE = 6 * MIB + 1536


def driver(rng: random.Random, share: float) -> Callable[[blkmig.OutgoingMigration], None]:
    """Return what migrates while 200 granules are written, so many of them with zeros."""

    def drive(migration: blkmig.OutgoingMigration) -> None:
        while not migration.stats.rounds or migration.stats.rounds[-1].number < 1:
            migration.iterate()
        for bmds in lab.sent(migration).bmds_list:
            size = bmds.backend.size
            for _ in range(200):
                offset = rng.randrange(size // 4096) * 4096
                data = bytes(4096) if rng.random() < share else rng.randbytes(4096)
                bmds.backend.pwrite(data[: size - offset], offset)
            bmds.backend.pwrite(bytes(size % 4096), size - size % 4096)
        migration.run()

    return drive


def migrate(
    tmp_path: Path,
    seed: int,
    *,
    size: int = SIZE,
    share: float = 1.0,
    receive: dict[str, Any] | None = None,
    **chosen: Any,
) -> tuple[stats.OutgoingStatistics, stats.IncomingStatistics]:
    rng = random.Random(seed)
    disk = blkmig.MemoryBackend(bytearray(rng.randbytes(size)), name="d")
    target = tmp_path / f"t{seed}.raw"
    sent, came = lab.migrate(
        tmp_path, "tcp", [disk], {"d": target}, drive=driver(rng, share), receive=receive, **chosen
    )
    assert target.read_bytes() == disk.pread(0, size), f"seed {seed}"
    assert sent.saved_by_zeros == came.disks["d"].saved_by_zeros, f"seed {seed}"
    assert sent.saved_by_granularity == came.disks["d"].saved_by_granularity, f"seed {seed}"
    return sent, came


def test_zeros_cost_a_bit_each(tmp_path: Path) -> None:
    sent, came = migrate(tmp_path, 1, size=6 * MIB)
    assert came.disks["d"].pack_bytes > 150 * 4096
    assert sent.transferred < 6 * MIB + 16384
    assert sent.saved_by_zeros == came.disks["d"].pack_bytes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("receive", "chosen"),
    [({}, {}), ({"verify": True}, {"digests": True}), ({}, {"reading": "parallel"}), ({}, {"compress": "zstd"})],
    ids=["plain", "verified", "parallel", "compressed"],
)
def test_whatever_else_is_asked_for(
    tmp_path: Path, share: float, receive: dict[str, Any], chosen: dict[str, Any]
) -> None:
    for seed in range(3):
        _, came = migrate(tmp_path, seed, share=share, receive=receive, **chosen)
        assert came.disks["d"].verified == bool(receive)


def test_with_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of what travels."""
    monkeypatch.setattr(link, "is_local", lambda sock: False)
    for seed in range(3):
        migrate(tmp_path, seed, share=0.5, compress="off")


@pytest.mark.parametrize("case", ["an older target", "--no-zero-blocks"])
def test_where_they_travel(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[str, Any] = {}
    if case == "an older target":
        monkeypatch.setattr(savevm, "OURS", savevm.OURS & ~savevm.Ability.ZEROS)
    else:
        chosen["zero_blocks"] = False
    sent, came = migrate(tmp_path, 1, **chosen)
    assert sent.transferred > 7 * MIB + 150 * 4096
    assert came.disks["d"].saved_by_zeros == 0


def test_a_reader_of_the_page_alone_reads_it(tmp_path: Path) -> None:
    rng = random.Random(5)
    disk = blkmig.MemoryBackend(bytearray(rng.randbytes(SIZE)), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"d": tmp_path / "t.raw"})
    tap = tapped.Tap(tmp_path, receiver.uri)
    with blkmig.outgoing([disk], tap.uri) as migration:
        driver(rng, 0.5)(migration)
    tap.join()
    receiver.result()
    found = section_reader.SectionReader(bytes(tap.stream)).read()
    assert bytes(found.disks["d"].image) == disk.pread(0, SIZE)
    assert found.left_out > 50
