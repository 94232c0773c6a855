# SPDX-License-Identifier: GPL-2.0-or-later
"""A report in a real browser: it is laid out, fits a phone, and nothing is said on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blkmig import diskmap, errors, report, stats, units

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = 390
PROBE = (
    "<script>document.title=document.documentElement.scrollWidth+' '+document.querySelectorAll('svg').length+' '"
    "+matchMedia('(prefers-color-scheme: dark)').matches</script>"
)


def everything() -> report.Recorder:
    """Return a migration with all that a page can show, in names that are long."""
    found = report.Recorder("tcp:" + "long-name-of-a-host." * 8 + ":4444", settings={"max bandwidth": "1.0 GiB/s"})
    statistics = stats.OutgoingStatistics(downtime=0.02, downtime_limit=0.3, total_time=9.0, transferred=10 * units.MiB)
    statistics.rounds = [stats.RoundStatistics(number, units.MiB, units.MiB, 1.0, units.MiB, 1) for number in range(20)]
    maps = {name: diskmap.DiskMap(64) for name in ("vda", "a-disk-with-a-name-that-is-" + "long" * 20)}
    for name in maps:
        statistics.disks[name] = stats.SentDiskStatistics(name, 64 * units.MiB, 64 * units.MiB)
    found.follow(statistics, maps)
    for tick in range(1, 90):
        found(stats.Progressed(tick / 10, "bulk", 1.0, tick << 20, (90 - tick) << 20, 1 << 30, 1.0, 1.0, None, 0))
    found.ended(errors.MigrationError("x" * 300))
    return found


def many_disks() -> report.Recorder:
    """Return a migration of 200 disks."""
    found, statistics, maps = report.Recorder("tcp:x:4444"), stats.OutgoingStatistics(downtime=0.2), {}
    statistics.rounds = [stats.RoundStatistics(number, units.GiB >> number, 1, 1.0, 1) for number in range(8)]
    for index in range(200):
        name = f"vm-{index // 4}-disk-{index % 4}"
        statistics.disks[name] = stats.SentDiskStatistics(name, 10 * units.GiB, 10 * units.GiB, resent_blocks=index)
        maps[name] = diskmap.DiskMap(10 << 10)
        for block in range(0, 10 << 10, 7 + index):
            maps[name].sent_again(block)
    found.follow(statistics, maps)
    return found


def never_converging() -> report.Recorder:
    """Return a migration whose rounds do not get shorter, as its target sees it."""
    found, statistics = report.Recorder("tcp:x:4444", direction="incoming"), stats.IncomingStatistics()
    rounds = [stats.RoundStatistics(number, 0, 600 * units.MiB, 5.3) for number in range(500)]
    maps = {"vda": diskmap.ArrivedMap()}
    statistics.disks["vda"] = stats.DiskStatistics("vda", units.GiB, resent_blocks=300_000)
    for block in range(1000):
        maps["vda"].came(block, 1, is_zero=block < 300, come_before=lambda first, stop: first % 2)
    for tick in range(1, 900):
        found(stats.Received(float(tick), tick << 20, tick, 0, 100, 1.0, None, "dirty"))
    found.follow(statistics, maps, rounds)
    found.ended(errors.ChannelError("receiving", uri="tcp:x:4444", cause="the source has given up"))
    return found


PAGES = {everything: 6, many_disks: 202, never_converging: 3}
"""Each with how many pictures it has."""


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("recorded", PAGES, ids=lambda each: each.__name__)
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_phone_shows_it_without_a_word_on_the_console(
    tmp_path: Path, recorded: Callable[[], report.Recorder], is_dark: bool
) -> None:
    assert BROWSER is not None
    content = report.page(recorded()).decode()
    page = tmp_path / "page.html"
    # The page itself runs no script: the probe stands in a copy without its policy.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", content).replace(
        "</body>", f"{PROBE}</body>"
    )
    shown = {}
    for name, text in (("page", content), ("probed", probed)):
        page.write_text(text)
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
                   "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", f"--window-size={PHONE},800",
                   *(["--blink-settings=preferredColorScheme=0"] if is_dark else []), page.as_uri()]  # fmt: skip
        shown[name] = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in shown["page"].stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(\d+) (\d+) (\w+)</title>", shown["probed"].stdout)
    assert title is not None
    width, pictures = map(int, title.groups()[:2])
    assert (title[3] == "true") == is_dark
    assert width <= max(PHONE, 500)  # narrower windows than 500 are not had everywhere
    assert pictures == PAGES[recorded]
