# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about a migration: well-formed, from nowhere else, bounded, and with the figures of the statistics."""

from __future__ import annotations

import html.parser
import itertools
import os
import re
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import diskmap, errors, report, stats, units
from blkmig.report import maps, recorder, svg

MIB = lab.MIB
VOID = {"meta", "link", "br"}
NASTY = "</title><script>alert(1)</script>\"'&\x1b[2J\udc80"


class Page(html.parser.HTMLParser):
    """Reads a page, and sees to it that every element is closed and nothing is asked of anybody else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(recorded: report.Recorder) -> Page:
    content = report.page(recorded)
    assert content.startswith(report.MARK)
    page = Page(content.decode())
    assert "script" not in page.tags
    assert [value for name, value in page.attributes if name in ("src", "href") and value != "data:,"] == []
    assert re.search(r"https?:|url\(|@import", content.decode()) is None
    return page


def progressed(elapsed: float, **fields: object) -> stats.Progressed:
    values = {"phase": "bulk", "percent": 5.0, "transferred": round(elapsed * 1000), "remaining": 500, "total": 1000}
    values |= {"bandwidth": 1.0, "dirty_rate": 1.0, "expected_downtime": None, "round_number": 0, **fields}
    return stats.Progressed(elapsed=elapsed, **values)  # type: ignore[arg-type]


def test_figures_are_those_of_the_statistics(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(os.urandom(MIB) + bytes(MIB) + os.urandom(2 * MIB)), name="vda")
    recorded = report.Recorder("tcp:x:1", settings={"downtime_limit": 0.3, "return_path": True})
    parameters = blkmig.MigrationParameters(format="blkmig")
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream", parameters, on_progress=recorded)
    recorded.follow(migration.stats, migration.keep_maps())
    with migration:
        while not migration.threshold_size():
            migration.iterate()
        disk.pwrite(b"later", 3 * MIB)
        migration.run()
    found, page = migration.stats, page_of(recorded)
    assert found.downtime is not None
    for figure in (
        f"The writers were held for {units.format_duration(found.downtime)}, within the limit of 300 ms.",
        f"downtime {units.format_duration(found.downtime)}",
        f"on the wire {units.format_size(found.transferred)}",
        f"time {units.format_duration(found.total_time)}",
        f"blocks {found.blocks} of them zero {found.zero_blocks}",
        "sent again 1 pack",
        "vda 4 MiB, 4 blocks, 1 pack",
        "downtime limit 0.3 return path yes",
    ):
        assert figure in page.text
    assert page.text.startswith("Done: tcp:x:1 Done : sent to tcp:x:1 1 disk of 4.0 MiB")
    seen = recorded.maps["vda"]
    assert [*seen.empty] == [0, 1, 0, 0]
    assert [each > 0 for each in seen.again] == [False, False, False, True]


def test_names_and_errors_are_text_and_nothing_else() -> None:
    recorded = report.Recorder(NASTY, settings={NASTY: NASTY})
    recorded(stats.StatusChanged(0.0, "active"))
    recorded(progressed(1.0))
    recorded(progressed(2.0))
    recorded(stats.StatusChanged(2.0, "failed"))
    statistics = stats.OutgoingStatistics(notes=[NASTY])
    statistics.disks[NASTY] = stats.SentDiskStatistics(NASTY, 5 * MIB)
    recorded.follow(statistics, {NASTY: diskmap.DiskMap(5)})
    recorded.ended(errors.MigrationError(NASTY))
    page = page_of(recorded)
    assert page.text.count("</title><script>alert(1)</script>\"'&\N{REPLACEMENT CHARACTER}[2J") >= 6
    assert "Failed" in page.text


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, "Not ended"),
        (errors.ChannelError("opening", uri="x", cause="y"), "Failed"),
        (KeyboardInterrupt(), "Canc"),
    ],
)
def test_a_migration_that_never_began_has_a_page(error: BaseException | None, word: str) -> None:
    recorded = report.Recorder("tcp:x:1")
    recorded.ended(error)
    assert word in page_of(recorded).text


def test_in_doubt_does_not_say_that_writers_go_on() -> None:
    recorded = report.Recorder("m")
    recorded(progressed(1.0))
    recorded.follow(stats.OutgoingStatistics())
    recorded.ended(errors.MigrationError("no"))
    assert "writers go on" in page_of(recorded).text
    recorded.ended(errors.InDoubt("no"))
    assert "writers go on" not in page_of(recorded).text


def test_the_receiving_end_has_a_page(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(os.urandom(2 * MIB)), name="vda")
    recorded = report.Recorder("unix:s", direction="incoming")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"vda": tmp_path / "copy"}, on_progress=recorded)
    recorded.follow(receiver.migration.stats)
    blkmig.send([disk], receiver.uri)
    receiver.result()
    page = page_of(recorded)
    assert "Done : received from unix:s" in page.text
    assert "vda 2 MiB, 2 blocks" in page.text


def test_days_of_samples_are_bounded_and_cover_all_of_it() -> None:
    recorded = report.Recorder("m")
    for tick in range(100_000):
        recorded(progressed(tick / 10, phase="dirty"))
    kept = recorded.samples.kept
    assert recorder.MOST_SAMPLES / 4 < len(kept) <= recorder.MOST_SAMPLES
    assert (kept[0].elapsed, kept[-1].elapsed) == (0.0, 9999.9)
    steps = [after.elapsed - before.elapsed for before, after in itertools.pairwise(kept)]
    assert max(steps) < 4 * 10_000 / recorder.MOST_SAMPLES
    assert len(report.page(recorded)) < 100_000


def test_rounds_without_end_and_many_disks_make_no_large_page() -> None:
    recorded, statistics = report.Recorder("m"), stats.OutgoingStatistics()
    statistics.rounds = [
        stats.RoundStatistics(number, 5 * MIB, MIB, 1.0, 4 * MIB, 5) for number in (0, *range(90_000, 91_000))
    ]
    maps_of: dict[str, diskmap.DiskMap] = {}
    for index in range(200):
        name = f"disk{index}"
        statistics.disks[name] = stats.SentDiskStatistics(name, MIB << 10, MIB << 10)
        maps_of[name] = diskmap.DiskMap(1 << 10)
        for block in range(0, 1 << 10, 4):
            maps_of[name].sent_again(block)
    recorded.follow(statistics, maps_of)
    recorded(progressed(1.0))
    recorded(progressed(2.0))
    assert "rounds 90000-90016" in page_of(recorded).text
    assert len(report.page(recorded)) < 1_000_000


def test_pauses() -> None:
    recorded = report.Recorder("m")
    for elapsed, status in ((1.0, "device"), (2.0, "active"), (3.0, "device")):
        recorded(stats.StatusChanged(elapsed, status))  # type: ignore[arg-type]
    recorded(progressed(3.5, phase="waiting"))
    recorded(stats.StatusChanged(4.0, "completed"))
    assert recorded.pauses == [recorder.Pause(1.0, None, 2.0, True), recorder.Pause(3.0, 3.5, 4.0, False)]


def test_cells() -> None:
    found = diskmap.DiskMap(1000)  # two blocks a cell
    found.passed_empty(1, 4)
    found.sent_again(7)
    found.sent_again(0, [(998 * MIB, 4096), (999 * MIB, 4096)])
    assert [*found.empty[:4]] == [1, 2, 1, 0]
    assert (found.again[3], found.again[499]) == (MIB, 8192)
    strip = maps.disk_map(found, 990, is_one_of_many=False)
    assert [css for css in ("c-data", "c-empty", "c-ahead", "c-heat1", "c-heat2") if css not in strip] == []


@pytest.mark.parametrize("most", [0, 1, 7, 1023, 1025, 5 * MIB, 1 << 50])
def test_scales(most: int) -> None:
    assert most <= svg.nice(most) <= max(2.1 * most, 1)
