# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends tell when the disks are complete at the target, once, and before they are done with everything else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import stats

MIB = lab.MIB
CONTENT = random.Random(1).randbytes(3 * MIB)


def kinds(told: list[stats.Event]) -> list[str]:
    """Return which events were told, of the states the last one only."""
    return [
        type(event).__name__
        for event in told
        if not isinstance(event, stats.StatusChanged) or event.status == "completed"
    ]


class Listener:
    """What a receiver tells; when the disk is complete, somebody else uses it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[stats.Event] = []
        self.found = b""

    def __call__(self, event: stats.Event) -> None:
        self.told.append(event)
        if isinstance(event, stats.DisksComplete):
            with blkmig.FileBackend(self.path) as disk:  # which locks it
                self.found = self.path.read_bytes()
                disk.pwrite(b"\0", 0)


def move(tmp_path: Path, listener: Any, *, receive: dict[str, Any], **parameters: Any) -> list[stats.Event]:
    """Move a disk to where `listener` waits for it; return what the source has told."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"}, on_progress=listener, **receive)
    told: list[stats.Event] = []
    try:
        blkmig.send(
            [blkmig.MemoryBackend(bytearray(CONTENT), name="d")],
            receiver.uri,
            on_progress=told.append,
            digests=receive.get("verify", False),
            **parameters,
        )
    finally:
        receiver.join()
    receiver.result()
    return told


@pytest.mark.parametrize("receive", [{}, {"verify": True}], ids=["as it came", "read back"])
@pytest.mark.parametrize("writers_after", ["refuse", "release"])
@pytest.mark.parametrize("section", ["blkmig", "block"])
def test_a_disk_can_be_used_once_it_is_told(
    tmp_path: Path, receive: dict[str, Any], writers_after: str, section: str
) -> None:
    listener = Listener(tmp_path / "t.raw")
    told = move(tmp_path, listener, receive=receive, writers_after=writers_after, format=section)
    assert listener.found == CONTENT
    for each in (kinds(told), kinds(listener.told)):
        assert each.count("DisksComplete") == 1
        assert each.index("DisksComplete") < each.index("StatusChanged")


def test_where_nobody_says_so_the_source_does_not(tmp_path: Path) -> None:
    told: list[stats.Event] = []
    disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    blkmig.send([disk], f"file:{tmp_path}/stream", on_progress=told.append)
    assert "DisksComplete" not in kinds(told)
    listener = Listener(tmp_path / "t.raw")
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t.raw"}, on_progress=listener)
    assert kinds(listener.told)[-2:] == ["DisksComplete", "StatusChanged"]
    assert listener.found == CONTENT


@pytest.mark.parametrize("receive", [{}, {"verify": True}], ids=["as it came", "read back"])
def test_what_the_listener_raises_changes_nothing(tmp_path: Path, receive: dict[str, Any]) -> None:
    """It comes out at the end, when everything is done: the source has its word, the disk its name, and no file stays
    beside it."""

    def fail(event: stats.Event) -> None:
        if isinstance(event, stats.DisksComplete):
            raise ZeroDivisionError("of the caller")

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        move(tmp_path, fail, receive=receive, writers_after="refuse")
    assert (tmp_path / "t.raw").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["t.raw"]
