# SPDX-License-Identifier: GPL-2.0-or-later
"""What one data block may cost in Python: at most four calls into `_core` at either end, and a short path between.

`sys.setprofile` does not see calls of Cython's methods, so proxies around the objects count these; it does count the
Python functions on the way. Both are taken as the difference between a short and a long disk.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _storing, channel
from blkmig.block import buffers as block_buffers
from blkmig.block import bulk, device, load, save, state, target
from blkmig.block import send as block_send
from blkmig.channel import buffers

pytestmark = pytest.mark.usefixtures("no_garbage")

MIB = lab.MIB
COMPILED_CALLS = 4
PYTHON_CALLS = {"sending": 38, "receiving": 22}
"""Frames entered per block: a bound that notices a new layer, not a measurement."""


class Counted:
    """Stands for an object of `_core` and notes the calls of its methods."""

    def __init__(self, real: Any, calls: list[str]) -> None:
        self.real = real
        self._calls = calls

    def __len__(self) -> int:
        return len(self.real)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if not callable(value):
            return value

        def call(*args: Any) -> Any:
            self._calls.append(f"{type(self.real).__name__}.{name}")
            return value(*(arg.real if isinstance(arg, Counted) else arg for arg in args))

        return call


def send(tmp_path: Path, nblocks: int, phase: str, calls: list[str] | None) -> tuple[list[str], int]:
    """Send a disk's blocks inline from a file to a socket; return the calls into `_core`, and the Python frames.

    In the phase "bulk" whole runs go at once; "single" is bulk of a disk that is no file, block by block.
    """
    source = tmp_path / "s.raw"
    (tmp_path / "t.raw").unlink(missing_ok=True)
    source.write_bytes(b"x" * nblocks * MIB)
    frames = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal frames
        frames += event == "call"

    def measured(f: channel.OutputQEMUFile) -> bool:
        if calls is not None:
            calls.clear()
        sys.setprofile(profile if calls is None else None)
        try:
            return state_iterate(f)
        finally:
            sys.setprofile(None)
            done.extend(calls or ())

    done: list[str] = []
    with blkmig.FileBackend(source, name="d") as disk, pytest.MonkeyPatch.context() as patch:
        if calls is not None:
            count_buffers(patch, "open_output", calls)
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
        with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(reading="inline")) as migration:
            if phase == "single":
                blk_mig_of(migration).bmds_list[0].mapping = None
            if phase == "dirty":
                migration.iterate()
                disk.mark_dirty(0, disk.size)
            if calls is not None:
                count_sending(migration, calls)
            state_iterate = migration.savevm.state_iterate
            with patch.context() as section:
                section.setattr(migration.savevm, "state_iterate", measured)
                migration.iterate()
            assert migration.stats.blocks == nblocks * (2 if phase == "dirty" else 1)
            migration.run()
        receiver.result()
    return done, frames


def blk_mig_of(migration: blkmig.OutgoingMigration) -> state.BlkMigState:
    """Return the state of the section `block` of a migration that is set up."""
    [handlers] = (entry.handlers for entry in migration.savevm if isinstance(entry.handlers, save.BlockSaveHandlers))
    return handlers.blk_mig


def count_buffers(monkeypatch: pytest.MonkeyPatch, opening: str, calls: list[str]) -> None:
    """Put counters around the staging buffers of channels that this thread opens from now on."""
    original, mine = getattr(buffers, opening), threading.get_ident()

    def opened(*args: Any, **options: Any) -> Any:
        buffer = original(*args, **options)
        return Counted(buffer, calls) if threading.get_ident() == mine else buffer

    monkeypatch.setattr(buffers, opening, opened)


def count_sending(migration: blkmig.OutgoingMigration, calls: list[str]) -> None:
    """Put counters around the other objects of the sending side."""
    blk_mig = blk_mig_of(migration)
    for bmds in blk_mig.bmds_list:
        bmds.aio_bitmap = Counted(bmds.aio_bitmap, calls)  # type: ignore[assignment]
        bmds.dirty_bitmap.bits = Counted(bmds.dirty_bitmap.bits, calls)  # type: ignore[assignment]
    blk = blk_mig.reads.get()
    blk.buf = Counted(blk.buf, calls)  # type: ignore[assignment]
    blk_mig.reads.put(blk)


@pytest.fixture(autouse=True)
def _long_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "SECTION_SECONDS", 60.0)
    monkeypatch.setattr(bulk, "RUN_SECONDS", 60.0)


@pytest.mark.parametrize("phase", ["single", "dirty"])
def test_sending_block_by_block(tmp_path: Path, phase: str) -> None:
    short, long = send(tmp_path, 4, phase, [])[0], send(tmp_path, 12, phase, [])[0]
    calls = [name for name in set(long) for _ in range(long.count(name) - short.count(name))]
    per_block = {name: calls.count(name) / 8 for name in calls}
    assert per_block["OutputBuffer.put_block"] == 1
    assert sum(per_block.values()) <= COMPILED_CALLS, per_block
    frames = (send(tmp_path, 12, phase, None)[1] - send(tmp_path, 4, phase, None)[1]) / 8
    assert frames <= PYTHON_CALLS["sending"]


def test_sending_runs(tmp_path: Path) -> None:
    """However many blocks there are, they take the calls of one run, and what the last block takes."""
    short, long = send(tmp_path, 4, "bulk", [])[0], send(tmp_path, 12, "bulk", [])[0]
    assert long == short
    assert short.count("OutputBuffer.put_file_blocks") == 1
    assert send(tmp_path, 12, "bulk", None)[1] <= send(tmp_path, 4, "bulk", None)[1] + 2


def receive(tmp_path: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch, calls: list[str] | None) -> int:
    """Receive a stream into a file; return the Python frames that the block section's records took."""
    (tmp_path / "stream").write_bytes(stream)
    frames = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal frames
        frames += event == "call"

    original: Callable[..., None] = load.BlockLoadHandlers.load_state

    def load_state(self: load.BlockLoadHandlers, f: channel.InputQEMUFile, version_id: int) -> None:
        sys.setprofile(profile if calls is None else None)
        try:
            original(self, f, version_id)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(load.BlockLoadHandlers, "load_state", load_state)
    if calls is not None:
        count_buffers(monkeypatch, "open_input", calls)
        queue, lend = _storing.StoringQueue, block_buffers.LoadBuffers.lend
        monkeypatch.setattr(_storing, "StoringQueue", lambda *args: Counted(queue(*args), calls))
        monkeypatch.setattr(block_buffers.LoadBuffers, "lend", lambda *args: Counted(lend(*args), calls))
        monkeypatch.setattr(target, "BlkLoadDevice", counted_device(calls))
        monkeypatch.setattr(blkmig.block, "BlkLoadDevice", target.BlkLoadDevice)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "u.raw"})
    monkeypatch.undo()
    return frames


def counted_device(calls: list[str]) -> type[target.BlkLoadDevice]:
    """Return the receiving end of a disk with counters in it."""

    class CountedDevice(target.BlkLoadDevice):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.coverage.bits = Counted(self.coverage.bits, calls)  # type: ignore[assignment]

    return CountedDevice


def test_receiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams, resent = [], 6

    def drive(migration: blkmig.OutgoingMigration) -> None:
        migration.iterate()
        disk.mark_dirty(0, resent * MIB)
        migration.complete()

    monkeypatch.setattr(block_send, "send_progress", lambda *_: None)  # a hundred records, however large the disk is
    for nblocks in (7, 15):
        disk = blkmig.MemoryBackend(bytearray(b"x" * nblocks * MIB), name="d")
        streams.append(lab.record(tmp_path, [disk], drive))
        resent = 14
    monkeypatch.undo()
    counts: list[list[str]] = [[], []]
    for stream, calls in zip(streams, counts, strict=True):
        (tmp_path / "u.raw").unlink(missing_ok=True)
        (tmp_path / "u.raw").touch()
        receive(tmp_path, stream, monkeypatch, calls)
    per_block = {name: (counts[1].count(name) - counts[0].count(name)) / 16 for name in set(counts[1])}
    assert per_block["InputBuffer.get_block"] == per_block["StoringQueue.put"] == 1
    assert sum(per_block.values()) <= COMPILED_CALLS, per_block
    frames = []
    for stream, nblocks in zip(streams, (7, 15), strict=True):
        (tmp_path / "u.raw").write_bytes(bytes(nblocks * MIB))
        frames.append(receive(tmp_path, stream, monkeypatch, None))
    assert (frames[1] - frames[0]) / 16 <= PYTHON_CALLS["receiving"]


def test_no_block_is_copied_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that Python hands out while blocks go by is small: none of it is of a block's size."""
    import tracemalloc

    (tmp_path / "s.raw").write_bytes(b"x" * 24 * MIB)
    disk = blkmig.FileBackend(tmp_path / "s.raw", name="d")
    with disk, blkmig.outgoing([disk], f"file:{tmp_path}/stream") as migration:
        reads = blk_mig_of(migration).reads
        reads.put(reads.get())  # its buffer is made here
        tracemalloc.start()
        try:
            migration.run()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < MIB // 2
    assert device.BlkMigBlock.__slots__
