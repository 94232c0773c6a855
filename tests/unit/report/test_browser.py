# SPDX-License-Identifier: GPL-2.0-or-later
"""A report in a real browser: it is laid out, fits a phone, and nothing is said on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from blkmig import diskmap, errors, report, stats, units

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = 390
PROBE = (
    "<script>document.title=document.documentElement.scrollWidth+' '+document.querySelectorAll('svg').length</script>"
)


def recorded() -> report.Recorder:
    """Return a migration with all that a page can show."""
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


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_phone_shows_it_without_a_word_on_the_console(tmp_path: Path) -> None:
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
                   page.as_uri()]  # fmt: skip
        shown[name] = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in shown["page"].stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(\d+) (\d+)</title>", shown["probed"].stdout)
    assert title is not None
    width, pictures = map(int, title.groups())
    assert width <= max(PHONE, 500)  # narrower windows than 500 are not had everywhere
    assert pictures == 6
