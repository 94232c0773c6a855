# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view, laid out: it fits terminals of any size, sums up what does not, and needs no colours."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from rich import cells

from blkmig import diskmap, stats, units
from blkmig.cli import disklines, view

GIB = units.GiB
MIB = units.MiB
SIZES = [(40, 24), (41, 6), (60, 10), (80, 24), (81, 3), (100, 30), (132, 50), (300, 100), (20, 24), (1, 1), (2, 2)]
NASTY = "\x1b[2J\r\nx\udc80" + "漢" * 30


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def progressed(phase: str, **fields: object) -> stats.Progressed:
    values: dict[str, object] = {"elapsed": 3725.0, "percent": 34.5, "transferred": 5 * GIB, "remaining": 1023 * MIB}
    values |= {"total": 1 << 40, "bandwidth": 112.5 * MIB, "dirty_rate": 1000.0 * MIB, "round_number": 123}
    values |= {"expected_downtime": None, "disk_rate": 1000.0 * MIB, "time_left": 3599.0}
    return stats.Progressed(phase=phase, **{**values, **fields})  # type: ignore[arg-type]


def ended(number: int) -> stats.RoundEnded:
    done = stats.RoundStatistics(number, 300 * MIB, 300 * MIB, 3.0, 290 * MIB, 300)
    return stats.RoundEnded(9.0, done, 290 * MIB, 33 * MIB)


def outgoing(ndisks: int, *, seed: int = 0) -> view.Seen:
    """Return what is seen of a migration of `ndisks` disks, a third of which bulk has passed."""
    rnd, maps = random.Random(seed), {}
    found = stats.OutgoingStatistics(status="active", format="blkmig", downtime_limit=0.3)
    for index in range(ndisks):
        name = f"{NASTY}{index}" if seed and not index % 3 else f"vd{index:03}"
        passed = rnd.choice([0, 5 * GIB, 10 * GIB])
        found.disks[name] = stats.SentDiskStatistics(name, 10 * GIB, passed, rnd.choice([0, GIB]) if passed else 0)
        maps[name] = diskmap.DiskMap(10 << 10)
        maps[name].passed_empty(100, 3000)
        for _ in range(20):
            maps[name].sent_again(rnd.randrange(5000, 6000))
    seen = view.Seen(status="active", progress=progressed("bulk"), statistics=found, maps=maps)
    seen.rounds = tuple(map(ended, range(3)))
    return seen


def states() -> Iterator[view.Seen]:
    """Yield what may be seen."""
    yield view.Seen()
    yield view.Seen(status="setup", statistics=stats.OutgoingStatistics())
    for ndisks in (1, 2, 33, 200):
        yield outgoing(ndisks, seed=ndisks)
    waiting = outgoing(2)
    waiting.progress = progressed("waiting", time_left=None, remaining=0)
    waiting.status = "device"
    yield waiting
    stuck = outgoing(2)
    stuck.not_converging = stats.NotConverging(9.0, 1000.0 * MIB, 112.5 * MIB, 1023 * MIB, MIB, 12, 62.5 * MIB)
    stuck.lost = "the peer has gone: " + "why " * 50
    yield stuck
    for size in (None, 5 * GIB, 0):
        came = stats.IncomingStatistics(status="active", format="block")
        came.disks["vda"] = stats.DiskStatistics("vda", size, blocks=5)
        came.disks[""] = stats.DiskStatistics("", size)
        yield view.Seen(
            "active", progress=stats.Received(1.0, 5 << 30, 99999, 5, 34, 112.5 * MIB, 12.0), statistics=came
        )


def shown(seen: view.Seen, size: tuple[int, int], encoding: str = "utf-8") -> list[str]:
    """Return the lines without their looks, each checked to be as wide as it says."""
    lines, widths = view.Screen(encoding).lines(seen, size, elapsed=3725.0, sent=90.5 * MIB)
    plain = [view.STYLED.sub("", line) for line in lines]
    assert all(line.isprintable() for line in plain), plain
    assert [cells.cell_len(line) for line in plain] == widths
    return plain


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_fits(size: tuple[int, int], encoding: str) -> None:
    for seen in states():
        lines = shown(seen, size, encoding)
        assert max(map(cells.cell_len, lines)) <= max(size[0] - 1, 1), lines
        assert 1 <= len(lines) <= max(size[1] - 1, 1)
        "".join(lines).encode(encoding)  # nothing is escaped later, when its width is known no more


def test_what_is_told_of_one_that_is_sent() -> None:
    seen = outgoing(1)
    found = seen.statistics
    assert isinstance(found, stats.OutgoingStatistics)
    found.disks["vd000"].passed_bytes, found.disks["vd000"].dirty_bytes = 5 * GIB, 0
    lines = shown(seen, (100, 30))
    assert lines[0] == "sending 1 disk, 10.0 GiB  section blkmig"
    assert lines[1] == "1:02:05  bulk 34 %  1023.0 MiB left  59:59 to go"
    assert lines[2] == "━" * 34 + "─" * 65
    assert lines[3] == "sent 90.5 MiB/s  writers 1000.0 MiB/s  link 112.5 MiB/s  disks 1000.0 MiB/s"
    assert lines[4] == "pause: not known yet  limit 300 ms"
    assert lines[5].startswith("bulk")
    assert lines[7].startswith("round 2")
    head, strip = lines[9][:25], lines[9][25:]
    assert head == "vd000   50 %    10.0 GiB "
    assert {*strip.strip()} == {*"█░▒·"}
    assert strip.rstrip().endswith("·" * 20)
    assert lines[10].startswith("█ data  ░ nothing to send")


def test_the_pause_is_told_while_it_lasts() -> None:
    seen = outgoing(1)
    seen.progress = progressed("dirty", expected_downtime=0.25)
    assert "pause: 250 ms if it began now  limit 300 ms" in shown(seen, (80, 24))
    seen.status, seen.status_since = "device", 3724.9
    assert "pause: the writers are held, 100 ms  limit 300 ms" in shown(seen, (80, 24))


def test_what_does_not_fit_is_summed_up() -> None:
    """Those that something happens to are shown, in their order, and no disk is forgotten or counted twice."""
    seen = outgoing(200)
    assert seen.statistics is not None
    for index, disk in enumerate(seen.statistics.disks.values()):
        assert isinstance(disk, stats.SentDiskStatistics)
        disk.passed_bytes, disk.dirty_bytes = (10 * GIB, 0) if index < 150 else (0, 0)
    found = list(seen.statistics.disks.values())
    found[150].passed_bytes = GIB  # type: ignore[union-attr]
    found[7].dirty_bytes = GIB  # type: ignore[union-attr]
    lines = shown(seen, (100, 16))
    assert [line.split()[0] for line in lines if line.startswith("vd")][:2] == ["vd007", "vd150"]
    nshown = sum(line.startswith("vd") for line in lines)
    assert lines[-1].split()[:2] == [str(200 - nshown), "more"]
    rows = disklines.rows_of(seen.statistics)
    for room in (1, 2, 5, 199, 200, 300):
        chosen = disklines.chosen(rows, room)
        assert len(chosen) == min(room, 200)
        assert sum(row.size for row in chosen) == 2000 * GIB


@pytest.mark.parametrize(("name", "colours"), [("", True), ("NO_COLOR", False)])
def test_colours_are_no_must(name: str, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if name:
        monkeypatch.setenv(name, "1")
    lines, _ = view.Screen().lines(outgoing(2), (80, 24), elapsed=1.0, sent=1.0)
    assert any("\x1b[34m" in line or "\x1b[2;34m" in line for line in lines) == colours


def test_looks_of_maps_become_fewer_and_hide_nothing_hot() -> None:
    for seed in range(50):
        rnd = random.Random(seed)
        looks = [rnd.randrange(7) for _ in range(rnd.randrange(1, 600))]
        for most in (1, 2, 7, 59, 512):
            found = diskmap.coarser(looks, most)
            assert (1 <= len(found) <= most, max(found)) == (True, max(looks)), f"seed {seed}"
