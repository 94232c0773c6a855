# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests set what they rely on, whatever machine and shell they are started on (D7)."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import disks
import pytest

import blkmig


def test_a_loop_device_that_somebody_left_read_only(tmp_path: pathlib.Path) -> None:
    """``blockdev --setro`` outlives ``losetup --detach``."""
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    with disks.loop_device(tmp_path / "f") as device:
        subprocess.run(["blockdev", "--setro", device], check=True)
    for _ in range(2):
        with disks.loop_device(tmp_path / "f") as device, blkmig.FileBackend(device, name="d") as backend:
            backend.pwrite(b"x", 0)


def test_a_loop_device_that_is_to_be_read_only(tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    with disks.loop_device(tmp_path / "f", "--read-only") as device:
        assert subprocess.check_output(["blockdev", "--getro", device]) == b"1\n"


@pytest.mark.parametrize(
    "shell",
    ["umask 077", "umask 0", "ulimit -Sn 300", "trap '' INT HUP TERM", "export LC_ALL=de_DE.UTF-8 LANGUAGE=de"],
)
def test_what_a_shell_may_have_set(shell: str, tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parents[2]
    (tmp_path / "test_it.py").write_text(
        "import os, resource, signal\n"
        "def test_it():\n"
        "    assert os.umask(0o022) == 0o022\n"
        "    assert os.environ['LC_ALL'] == 'C.UTF-8' and 'LANGUAGE' not in os.environ\n"
        "    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024\n"
        "    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):\n"
        "        assert signal.getsignal(number) is not signal.SIG_IGN\n"
    )
    (tmp_path / "conftest.py").write_text((root / "tests" / "conftest.py").read_text())
    command = f'{shell}; exec "$0" -m pytest -q -p no:cacheprovider test_it.py'
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
