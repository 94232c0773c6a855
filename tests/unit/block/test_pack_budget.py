# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pack may cost: system calls at either end, and Python frames for each block that it has to do with.

The kernel counts the calls that read and write, in a file that only this thread has. All figures are the difference
between few packs and many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import channel
from blkmig.block import load, reads, save

pytestmark = pytest.mark.usefixtures("no_garbage")

MIB = lab.MIB
EXTENTS = 8
"""Of each pack, every one in a block of its own."""

PYTHON_CALLS = {"sending": 40, "sending a block": 14, "receiving": 26}
"""Frames entered for each pack, and on top of that for each of its blocks: bounds that notice a new layer."""


class Cost:
    """What the body of a ``with`` costs in this thread: calls that read, calls that write, Python frames."""

    def __init__(self) -> None:
        self.reads = self.writes = self.frames = 0

    def __enter__(self) -> Cost:
        self._before = io_calls()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)
        after = io_calls()
        self.reads, self.writes = after[0] - self._before[0], after[1] - self._before[1]

    def _profile(self, frame: object, event: str, argument: object) -> None:
        self.frames += event == "call"


def io_calls() -> tuple[int, int]:
    """Return how many system calls of this thread have read, and written; each look costs some of the former."""
    lines = dict(line.split(": ") for line in Path("/proc/thread-self/io").read_text().splitlines())
    return int(lines["syscr"]), int(lines["syscw"])


@pytest.fixture(autouse=True)
def _one_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "SECTION_SECONDS", 60.0)
    monkeypatch.setattr(reads.InlineReads, "pack_extents", EXTENTS)


def send(folder: Path, npacks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Cost, bytes]:
    """Send a disk without data, then so many packs of its pages; return what the packs cost, and the stream."""
    path = folder / "s.raw"
    with path.open("wb") as file:
        file.truncate(16 * EXTENTS * MIB)
    cost = Cost()
    with blkmig.FileBackend(path, name="d") as disk:
        parameters = blkmig.MigrationParameters(format="blkmig", reading="inline")
        with blkmig.outgoing([disk], f"file:{folder}/stream", parameters) as migration:
            migration.iterate()
            for block in range(npacks * EXTENTS):
                disk.pwrite(b"x" * 4096, block * MIB + 4096 * block)
            state_iterate = migration.savevm.state_iterate

            def measured(f: channel.OutputQEMUFile) -> bool:
                with cost:
                    return state_iterate(f)

            with monkeypatch.context() as patch:
                patch.setattr(migration.savevm, "state_iterate", measured)
                migration.iterate()
            assert lab.sent(migration).packs == npacks
            migration.complete()
    return cost, (folder / "stream").read_bytes()


def receive(folder: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Receive a stream into a file; return what its section costs that has the packs."""
    (folder / "stream").write_bytes(stream)
    (folder / "t.raw").unlink(missing_ok=True)
    costs: list[Cost] = []
    original: Callable[..., None] = load.BlockLoadHandlers.load_state

    def load_state(self: load.BlockLoadHandlers, f: channel.InputQEMUFile, version_id: int) -> None:
        with Cost() as cost:
            original(self, f, version_id)
        costs.append(cost)

    monkeypatch.setattr(load.BlockLoadHandlers, "load_state", load_state)
    blkmig.receive(f"file:{folder}/stream", {"d": folder / "t.raw"})
    return max(costs, key=lambda cost: cost.writes)


def test_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read for each extent and one write; then two reads and a write for each extent."""
    few, short = send(tmp_path, 4, monkeypatch)
    many, long = send(tmp_path, 12, monkeypatch)
    assert (many.reads - few.reads) / 8 == EXTENTS
    assert (many.writes - few.writes) / 8 == 1
    assert (many.frames - few.frames) / 8 <= PYTHON_CALLS["sending"] + EXTENTS * PYTHON_CALLS["sending a block"]
    few, many = receive(tmp_path, short, monkeypatch), receive(tmp_path, long, monkeypatch)
    assert (many.writes - few.writes) / 8 == EXTENTS
    assert (many.reads - few.reads) / 8 <= 2
    assert (many.frames - few.frames) / 8 <= PYTHON_CALLS["receiving"]
