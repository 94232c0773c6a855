# SPDX-License-Identifier: GPL-2.0-or-later
"""The units of the guide are what systemd takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/guides/service.md"
UNIT = re.compile(r"`(?:/etc/systemd/system/)?(blkmig-[\w@]+\.\w+)`:\n\n```ini\n(.*?)```", re.S)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_units_are_valid(tmp_path: Path) -> None:
    found = dict(UNIT.findall(PAGE.read_text().replace("@vm1", "@")))
    assert {*found} == {"blkmig-receive.service", "blkmig-send@.service", "blkmig-send@.timer"}
    program = shutil.which("true") or sys.executable
    for name, text in found.items():
        (tmp_path / name).write_text(text.replace("ExecStart=blkmig ", f"ExecStart={program} "))
    for name in found:
        path = tmp_path / name.replace("@.", "@vm1.")
        if path.name != name:
            path.symlink_to(tmp_path / name)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=60, check=False
        )
        assert [line for line in done.stderr.splitlines() if "blkmig" in line] == [], done.stderr
