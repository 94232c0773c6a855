# SPDX-License-Identifier: GPL-2.0-or-later
"""``--report``: the page is there however the command ends, and replaces no disk."""

from __future__ import annotations

import os
from pathlib import Path

import command
import lab
import pytest

MIB = lab.MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def test_both_ends(tmp_path: Path, disk: Path) -> None:
    pages = [tmp_path / "in.html", tmp_path / "out.html"]
    with command.receiver(f"unix:{tmp_path}/s", f"--report={pages[0]}", f"vda={tmp_path}/copy.raw") as receiver:
        sent = command.run("send", "--json", "--verify", f"--report={pages[1]}", str(disk), receiver.uri)
        received = receiver.finish()
    assert (sent.exit_code, received.exit_code) == (0, 0), sent.stderr + received.stderr
    assert "<b>Done</b>: received from" in pages[0].read_text()
    assert f"<dd>{sent.result['blocks']}</dd>" in pages[1].read_text()
    assert "<td>digests</td><td>yes</td>" in pages[1].read_text()


def test_a_failure_has_its_page_without_the_command_that_may_hold_a_secret(tmp_path: Path, disk: Path) -> None:
    page = tmp_path / "page.html"
    sent = command.run("send", f"--report={page}", str(disk), "exec:PASSWORD=secret; exit 3")
    assert sent.exit_code == 5
    assert "<b>Failed</b>" in page.read_text()
    assert "secret" not in page.read_text()


def test_a_report_that_cannot_be_written_changes_no_verdict(tmp_path: Path, disk: Path) -> None:
    sent = command.run("send", f"--report={tmp_path}/{'x' * 255}", str(disk), "file:/dev/null")
    assert (sent.exit_code, sent.stderr.count("the report cannot be written")) == (0, 1)
    sent = command.run("send", f"--report={tmp_path}/nowhere/page.html", str(disk), "file:/dev/null")
    assert (sent.exit_code, "there is no such folder" in sent.stderr) == (2, True)


def test_a_report_replaces_reports_only(tmp_path: Path, disk: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(before := disk.read_bytes())
    sent = command.run("send", f"--report={other}", str(disk), "file:/dev/null")
    assert (sent.exit_code, "something else is there" in sent.stderr) == (2, True)
    assert other.read_bytes() == before
    page = tmp_path / "page.html"
    for _ in range(2):
        assert command.run("send", f"--report={page}", str(disk), "file:/dev/null").exit_code == 0


def test_links_are_followed_and_modes_are_kept(tmp_path: Path, disk: Path) -> None:
    """D3: the link stays; and a page that was made private is not shown to others by the next one."""
    real = {"--report": tmp_path / "a/r.html", "--metrics": tmp_path / "a/m.prom", "--log-json": tmp_path / "a/l"}
    (tmp_path / "a").mkdir()
    for option, path in real.items():
        (tmp_path / option).symlink_to(path)
    real["--report"].touch(mode=0o600)
    sent = command.run("send", *(f"{option}={tmp_path}/{option}" for option in real), str(disk), "file:/dev/null")
    assert sent.exit_code == 0
    for option, path in real.items():
        assert (tmp_path / option).is_symlink()
        assert path.stat().st_size
    assert real["--report"].stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["l", "m.prom", "r.html"]
