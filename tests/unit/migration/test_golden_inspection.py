# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig inspect`` on every stream that a real QEMU recorded, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_streams
import pytest
from real_qemu import MiB

from blkmig import cli

EXIT_CODES = {"complete": 0, "incremental": 0, "lossy": 3, "cancelled": 5, "truncated": 5, "error": 1}


def inspect(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of an inspection."""
    exit_code = cli.main(["inspect", "--json", str(path), *options])
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return exit_code, parsed


@pytest.mark.parametrize("name", golden_streams.manifest())
def test_every_golden_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    exit_code, found = inspect(path, capsys)
    assert found["verdict"] == golden.verdict, found["reason"]
    assert exit_code == EXIT_CODES[golden.verdict]
    machine = golden.entry["machine"]
    is_old = machine.endswith(("-2.2", "-2.3"))
    assert found["container"]["machine"] == (None if is_old else machine)
    assert found["container"]["footers"] is not is_old
    if golden.verdict in ("complete", "lossy", "incremental"):
        assert found["container"]["nbytes"] == len(golden.stream)
        assert found["container"]["reached_eof"]
        assert found["container"]["vmdescription"] is not machine.endswith("-2.2")
    if golden.verdict == "complete":
        sizes = {disk["name"]: disk["size"] for disk in found["disks"]}
        assert sizes == {disk.name: disk.nblocks * MiB for disk in golden.disks}


def test_exact_sizes_show_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = golden_streams.manifest()["lossy"]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    exit_code, found = inspect(path, capsys, "--size", "40M")
    assert exit_code == 3
    (disk,) = found["disks"]
    assert sum(count for _, count in disk["missing"]) == 40 - disk["blocks"]


def test_cut_streams_are_truncated_or_cancelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = golden_streams.manifest()["pc-7.2"]
    path = tmp_path / "stream"
    verdicts = []
    behind_start = golden.stream.index(b"\x7e\0\0\0\x01") + 5
    for cut in (2, 20, behind_start, MiB, 2 * MiB + 77, 3 * MiB + 50_000, len(golden.stream) - 200_000):
        path.write_bytes(golden.stream[:cut])
        _, found = inspect(path, capsys)
        verdicts.append(found["verdict"])
        assert found["container"]["nbytes"] <= cut
    assert verdicts == ["truncated"] * 2 + ["cancelled"] + ["truncated"] * 4


@pytest.mark.parametrize("name", ["running", "three-disks", "read-error", "blockdev"])
def test_listing_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    golden = golden_streams.manifest()[name]
    path = tmp_path / "stream"
    path.write_bytes(golden.stream)
    assert cli.main(["inspect", str(path)]) == EXIT_CODES[golden.verdict]
    shown = capsys.readouterr().out
    assert golden.verdict in shown
    assert all(disk.name in shown for disk in golden.disks)
    cli.main(["inspect", "--records", str(path)])
    assert len(capsys.readouterr().out.splitlines()) > len(shown.splitlines())
