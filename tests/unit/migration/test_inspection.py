# SPDX-License-Identifier: GPL-2.0-or-later
"""What `inspect` finds in streams that are put together by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import savevm_streams as streams

from blkmig import cli

MIB = 1 << 20


def stream(*, size: int | None, blocks: range, incremental: bool = False) -> bytes:
    """Return a stream of one disk of zeros, from an old blkmig, or where nobody says the size, from a QEMU."""
    records = b"".join(struct.pack(">QB", block * MIB | 9, 1) + b"d" for block in blocks)
    data = streams.HEADER + streams.configuration() + streams.start(1, "block")
    data += streams.part(1, records + streams.EOS) + streams.end(1) + streams.EOF
    about = {"version": 1, "incremental": incremental, "disks": [{"name": "d", "size": size}]}
    return data + streams.description(b"{}" if size is None else json.dumps({"blkmig": about}).encode())


def test_a_huge_disk_of_which_little_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """C4: bitmaps reach as far as blocks came, and the picture, the figures and the JSON as far as the disk does."""
    (tmp_path / "s").write_bytes(stream(size=1 << 40, blocks=range(0, 5000, 2)))
    assert cli.main(["inspect", str(tmp_path / "s")]) == 3
    shown = capsys.readouterr().out
    assert f"2500 of {1 << 20} blocks" in shown
    assert "[" + "?" * 64 + "]" in shown
    assert cli.main(["inspect", "--json", str(tmp_path / "s")]) == 3
    (disk,) = json.loads(capsys.readouterr().out)["disks"]
    assert len(disk["missing"]) == 1024
    assert disk["missing_blocks"] == (1 << 20) - 2500


@pytest.mark.parametrize("cut", [7, 3])
def test_a_stream_without_its_description_is_truncated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    """A6: for a person who looks, as for a receiver."""
    (tmp_path / "s").write_bytes(stream(size=None, blocks=range(2))[:-cut])
    assert cli.main(["inspect", "--json", str(tmp_path / "s")]) == 5
    assert json.loads(capsys.readouterr().out)["verdict"] == "truncated"


def test_a_description_that_does_not_say_what_it_must_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A6: nothing that decides is ignored because it is not understood."""
    whole = stream(size=2 * MIB, blocks=range(2))
    for old, new in ((b'"size": 2097152', b'"size": "2097152'[:15]), (b'"version": 1', b'"version": 2')):
        (tmp_path / "s").write_bytes(whole.replace(old, new))
        assert cli.main(["inspect", "--json", str(tmp_path / "s")]) == 1
        assert json.loads(capsys.readouterr().out)["verdict"] == "error"
