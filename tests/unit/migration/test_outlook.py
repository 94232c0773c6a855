# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left of a migration: data without holes, whatever the disk can tell (E10, E20)."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core, disk, errors, stats
from blkmig.block import device
from blkmig.migration import convergence, outlook

MIB = lab.MIB


@dataclasses.dataclass
class Bulk:
    """What the outlook reads of a disk that is being sent."""

    backend: Any
    shared_base: bool = False
    cur_sector: int = 0

    @property
    def geometry(self) -> Any:
        return disk.geometry.BlockGeometry(self.backend.size)

    @property
    def bulk_completed(self) -> bool:
        return self.cur_sector * 512 >= self.backend.size


@dataclasses.dataclass
class Sparse:
    """A disk of which every fourth MiB holds data."""

    size: int

    def next_data(self, offset: int) -> tuple[int, int] | None:
        start = offset if offset // MIB % 4 == 0 else (offset // MIB // 4 + 1) * 4 * MIB
        return (start, (start // MIB + 1) * MIB) if start < self.size else None


def asked(bmds: Bulk, *, holes_are_data: bool = False, times: int = 10**6) -> outlook.DataAhead:
    """Ask a disk for its data, to the end or `times` times."""
    ahead = outlook.DataAhead(bmds, holes_are_data=holes_are_data)  # type: ignore[arg-type]
    while not ahead.is_known and times:
        ahead.ask()
        times -= 1
    return ahead


@pytest.mark.parametrize(("granularity", "whole_from"), [(MIB, 1), (4096, 1), (4096, 192)])
def test_marks_ahead_of_the_bulk_phase_cost_nothing_more(granularity: int, whole_from: int) -> None:
    backend = blkmig.MemoryBackend(bytearray(8 * MIB), name="d")
    bmds = device.BlkMigDevState(
        backend=backend,
        name=b"d",
        geometry=disk.geometry.BlockGeometry(backend.size),
        shared_base=False,
        dirty_bitmap=backend.create_dirty_bitmap(granularity),
        mapping=None,
        digests=None,
        aio_bitmap=_core.Bitmap(8),
        whole_from=whole_from,
    )
    piece = MIB if whole_from == 1 else granularity
    for offset in (0, 3 * MIB - 1, 3 * MIB, 7 * MIB):
        backend.pwrite(b"x", offset)
    for cursor, expected in ((0, 0), (1, 1), (3, 2), (7, 3)):
        bmds.cur_sector = cursor * _core.SECTORS_PER_BLOCK
        assert outlook.dirty_bytes(bmds) == expected * piece
    bmds.bulk_completed = True
    assert outlook.dirty_bytes(bmds) == 4 * piece
    backend.pwrite(b"x" * 900_000, 3 * MIB)
    assert outlook.dirty_bytes(bmds) == 3 * piece + MIB


@pytest.mark.parametrize("nblocks", [1, 7, 1000, 5000])
def test_holes_are_not_left(nblocks: int) -> None:
    """Data that was passed and that is left add up, wherever bulk is; holes count for nothing."""
    bmds = Bulk(Sparse(nblocks * MIB))
    ahead, total = asked(bmds), -(-nblocks // 4)
    for block in range(0, nblocks + 1, max(1, nblocks // 50)):
        bmds.cur_sector = block * 2048
        passed, left = ahead.passed_and_left()
        assert passed + left == total
        assert abs(passed - -(-block // 4)) <= nblocks // outlook.CELLS + 1
    bmds.cur_sector = nblocks * 2048
    assert ahead.passed_and_left() == (total, 0)


def test_where_nobody_asked_yet_the_share_of_data_is_assumed() -> None:
    bmds = Bulk(Sparse(4000 * MIB))
    _, left = asked(bmds, times=100).passed_and_left()
    assert 900 <= left <= 1100


def test_a_disk_that_cannot_tell_is_all_data() -> None:
    bmds = Bulk(blkmig.MemoryBackend(bytearray(8 * MIB), name="d"))
    assert asked(bmds).passed_and_left() == (0, 8)
    assert asked(Bulk(Sparse(8 * MIB)), holes_are_data=True).passed_and_left() == (0, 8)


def test_a_disk_that_fails_to_tell_is_all_data() -> None:
    """And its error is for the bulk phase to find."""

    class Broken(Sparse):
        def next_data(self, offset: int) -> tuple[int, int] | None:
            raise errors.DeviceError("cannot tell", device="d", cause="broken")

    assert asked(Bulk(Broken(8 * MIB))).passed_and_left() == (0, 8)


def test_of_an_overlay_only_its_top_layer_is_left(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * 100 * MIB)
    with (tmp_path / "top.raw").open("wb") as top:
        top.truncate(100 * MIB)
        top.seek(70 * MIB)
        top.write(b"t" * MIB)
    with blkmig.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
        assert asked(Bulk(backend, shared_base=True)).passed_and_left() == (0, 1)


def test_rates_forget_what_is_long_ago() -> None:
    rate = outlook.Rate()
    assert rate.per_second == 0
    for now in range(100):
        rate.add(now / 10, min(now, 50) * 10)
    assert rate.per_second == pytest.approx(0, abs=1)
    rate.add(10.0, 500 + 3000)
    assert rate.per_second > 500


def test_progress_tells_bytes_and_time_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E10: 16 MiB of data in 128 MiB, and dirty rounds that begin at 0 %, not at 100 %."""
    monkeypatch.setattr(outlook, "ASK_SECONDS", 60.0)  # however busy the machine is, the first report knows the disk
    path = lab.sparse_file(tmp_path / "d.raw", b"x" * 16 * MIB)
    with path.open("r+b") as file:
        file.truncate(128 * MIB)
    events: list[stats.Event] = []
    with blkmig.FileBackend(path, name="d") as backend:
        params = blkmig.MigrationParameters(max_bandwidth=40 * MIB, switchover="manual")
        with blkmig.outgoing([backend], f"file:{tmp_path}/s", params, on_progress=events.append) as migration:
            while migration.stats.rounds[-1].number == 0:
                migration.iterate()
            backend.pwrite(b"y" * 12 * MIB, 0)
            while migration.stats.rounds[-1].number < 3:
                migration.iterate()
            migration.complete()
    told = [event for event in events if isinstance(event, stats.Progressed)]
    bulk = [event for event in told if event.phase == "bulk"]
    dirty = [event for event in told if event.phase == "dirty"]
    assert all(event.remaining <= 16 * MIB and event.expected_downtime is None for event in bulk)
    assert [event.remaining for event in bulk] == sorted((event.remaining for event in bulk), reverse=True)
    assert any(event.time_left for event in bulk), bulk
    assert any(0 < event.percent < 100 for event in dirty)
    assert all(event.remaining <= 12 * MIB for event in dirty)
    assert (told[-1].phase, told[-1].percent, told[-1].remaining) == ("waiting", 100.0, 0)


def test_zeros_that_are_read_have_a_speed(tmp_path: Path) -> None:
    """E20: what is scanned and not sent is not "0 B/s", and does not say that the link is slow."""
    events: list[stats.Event] = []
    disks = [blkmig.MemoryBackend(bytearray(64 * MIB), name="z")]
    ticks = itertools.count()
    migration = blkmig.OutgoingMigration(
        disks, f"file:{tmp_path}/s", on_progress=events.append, clock=lambda: next(ticks) * 0.05
    )
    with migration:
        migration.run()
    bulk = [event for event in events if isinstance(event, stats.Progressed) and event.phase == "bulk"]
    assert bulk[-1].disk_rate > MIB
    assert bulk[-1].transferred < MIB
    assert bulk[0].time_left is not None


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ([100, 50, 25, 12], 0),
        ([100, 99, 98, 97], 1),
        ([100, 100, 100, 100, 100, 100, 100], 2),
        ([100, 100, 100, 50, 50, 50, 50], 1),
        ([9, 9, 9, 9, 9], 0),
    ],
)
def test_the_third_round_that_does_not_shrink_is_worth_a_word(left: list[int], told: int) -> None:
    """E10: then after the sixth, the twelfth; a round that shrinks begins anew; what fits the limit is no matter."""
    standstill = convergence.Standstill()
    assert sum(standstill.is_worth_telling(pending, 10) for pending in left) == told
