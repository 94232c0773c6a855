# SPDX-License-Identifier: GPL-2.0-or-later
"""How deep the stack of Python is where a block meets the system.

Counted from the migration's own call to the last function before the compiled code, or to the disk's verb, both
included. The figures stand in the drawing of a block's way, too: docs/architecture/way-of-a-block.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core
from blkmig.channel import buffers

MIB = lab.MIB
FRAMES = {
    "read_block": 11,
    "put_block": 9,
    "put_file_blocks": 9,
    "next_run": 9,
    "get_block": 9,
    "write_block": 9,
}
"""Whoever puts a layer between says here why."""

OTHERS_ONLY = "promises.py"
"""It looks at what a class of another package answers, as the one here is. The disks of blkmig have no such layer."""

DRAWING = Path(__file__).parents[3] / "docs" / "architecture" / "way-of-a-block.md"


class Stacks:
    """The deepest stack of each kind of call, as names of functions up to one called `top`."""

    def __init__(self, top: str) -> None:
        self.found: dict[str, list[str]] = {}
        self._top = top

    def note(self, verb: str, frame: FrameType | None) -> None:
        names: list[str] = []
        while frame is not None:
            if not frame.f_code.co_filename.endswith(OTHERS_ONLY):
                names.append(frame.f_code.co_name)
            if names[-1] == self._top:
                self.found[verb] = max(names, self.found.get(verb, []), key=len)
                return
            frame = frame.f_back


class Noting:
    """Stands for a buffer of `_core` and notes who calls its methods."""

    def __init__(self, real: Any, stacks: Stacks) -> None:
        self.real = real
        self._stacks = stacks

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if name not in FRAMES:
            return value

        def call(*args: Any) -> Any:
            self._stacks.note(name, sys._getframe(1))
            return value(*args)

        return call


class NotingDisk(blkmig.MemoryBackend):
    """A disk that notes who reads and writes its blocks."""

    stacks: Stacks

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        self.stacks.note("read_block", sys._getframe(0))
        return super().read_block(blk, offset, nbytes)

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        self.stacks.note("write_block", sys._getframe(0))
        super().write_block(blk, offset, nbytes)


def check(stacks: Stacks, verbs: set[str]) -> None:
    assert stacks.found.keys() == verbs
    for verb, names in stacks.found.items():
        assert len(names) <= FRAMES[verb], " < ".join(names)


def note_buffers(monkeypatch: pytest.MonkeyPatch, opening: str, stacks: Stacks) -> None:
    """Have the staging buffers of channels note who calls them."""
    original = getattr(buffers, opening)
    monkeypatch.setattr(buffers, opening, lambda *args, **options: Noting(original(*args, **options), stacks))


def send(disk: blkmig.BlockBackend, tmp_path: Path) -> None:
    parameters = blkmig.MigrationParameters(reading="inline")
    with blkmig.outgoing([disk], f"file:{tmp_path}/stream", parameters) as migration:
        migration.iterate()
        migration.complete()


def test_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, stacks = NotingDisk(bytearray(b"x" * 4 * MIB), name="d"), Stacks("iterate")
    disk.stacks = stacks
    note_buffers(monkeypatch, "open_output", stacks)
    send(disk, tmp_path)
    check(stacks, {"read_block", "put_block"})


def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.raw").write_bytes(b"x" * 4 * MIB)
    stacks = Stacks("iterate")
    note_buffers(monkeypatch, "open_output", stacks)
    with blkmig.FileBackend(tmp_path / "s.raw", name="d") as disk:
        send(disk, tmp_path)
    check(stacks, {"put_file_blocks", "put_block"})


def test_receiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, stacks = NotingDisk(bytearray(4 * MIB), name="d"), Stacks("run")
    disk.stacks = stacks
    send(blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d"), tmp_path)
    note_buffers(monkeypatch, "open_input", stacks)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": disk})
    check(stacks, {"next_run", "get_block", "write_block"})


def test_the_drawing_has_these_figures() -> None:
    drawing = DRAWING.read_text()
    for verb, count in FRAMES.items():
        assert f"{verb} {count}" in drawing
