# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads in flight: who owns a block when, what is counted, and what is left after anything fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sim
from gated import GatedDisk, state_of, submit

from blkmig import _core, errors, params
from blkmig.block import BlockSaveHandlers, dirty, reads, send

MIB = sim.MIB


def test_submitted_and_read_done_add_up() -> None:
    backend = GatedDisk(4)
    blk_mig, bmds = state_of(backend, reads.ParallelReads(max_parallel=3, max_buffers=8))
    for block in range(3):
        assert blk_mig.reads.has_room()
        submit(blk_mig, bmds, block)
    assert not blk_mig.reads.has_room(), "three in flight are the limit, whatever the buffers"
    assert (blk_mig.submitted, blk_mig.read_done) == (3, 0)
    assert [bmds.aio_bitmap.test(block) for block in range(4)] == [True, True, True, False]
    assert not send.collect_one(blk_mig, wait=False)
    backend.gate.release()
    assert send.collect_one(blk_mig, wait=True)
    assert (blk_mig.submitted, blk_mig.read_done) == (2, 1)
    assert bmds.aio_bitmap.count() == 2
    assert blk_mig.reads.has_room()
    backend.gate.release(2)
    wire: Any = sim.Wire({b"d": bytearray(4 * MIB)})
    while blk_mig.submitted or blk_mig.read_done:
        assert send.flush_blks(blk_mig, wire, wait=True)
    assert (blk_mig.submitted, blk_mig.read_done, blk_mig.transferred) == (0, 0, 3)
    assert not send.flush_blks(blk_mig, wire, wait=True), "nothing in flight, nothing to wait for"
    assert bmds.aio_bitmap.count() == 0
    blk_mig.reads.close()


def test_buffers_that_wait_to_be_sent_count() -> None:
    backend = GatedDisk(8)
    backend.gate.release(8)
    blk_mig, bmds = state_of(backend, reads.ParallelReads(max_parallel=4, max_buffers=2))
    submit(blk_mig, bmds, 0)
    submit(blk_mig, bmds, 1)
    while blk_mig.submitted:
        send.collect_one(blk_mig, wait=True)
    assert not blk_mig.reads.has_room(), "both buffers wait to be sent"
    blk_mig.reads.close()


def test_an_older_read_of_a_dirty_block_is_waited_for_and_sent_first() -> None:
    """Otherwise the older contents could be sent last: QEMU lost data that way in 2010."""
    backend = GatedDisk(2)
    blk_mig, bmds = state_of(backend, reads.ParallelReads(max_parallel=4, max_buffers=4))
    submit(blk_mig, bmds, 0)
    assert backend.begun.acquire(timeout=20)
    backend.write(b"newer", 0)
    threading.Timer(0.02, backend.gate.release).start()
    dirty.save_device_dirty(blk_mig, bmds, 0)
    assert [blk.block for blk in blk_mig.blk_list] == [0], "the older read is done and listed"
    assert blk_mig.submitted == 1
    assert not bmds.dirty_bitmap.is_dirty(0)
    backend.gate.release()
    target = bytearray(2 * MIB)
    wire: Any = sim.Wire({b"d": target})
    while blk_mig.submitted or blk_mig.read_done:
        send.flush_blks(blk_mig, wire, wait=True)
    assert target.startswith(b"newer")
    blk_mig.reads.close()


def test_close_waits_for_reads_in_flight() -> None:
    backend = GatedDisk(4)
    blk_mig, bmds = state_of(backend, reads.ParallelReads(max_parallel=4, max_buffers=4))
    for block in range(4):
        submit(blk_mig, bmds, block)
    closer = threading.Thread(target=blk_mig.reads.close)
    closer.start()
    for _ in range(4):
        assert backend.begun.acquire(timeout=20)
    assert closer.is_alive()
    backend.gate.release(4)
    closer.join(20)
    assert not closer.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "blkmig-read"]
    blk_mig.reads.close()
    assert not blk_mig.reads.has_room()


class Interrupt(BaseException):
    """What ends a program from anywhere."""


@pytest.mark.parametrize("pool", [reads.InlineReads, lambda: reads.ParallelReads(max_parallel=2, max_buffers=2)])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(5, "Input/output error"), errors.DeviceError),
        (MemoryError(), MemoryError),
        (Interrupt(), Interrupt),
    ],
)
def test_whatever_a_read_raises_surfaces_at_the_next_flush(
    pool: Callable[[], reads.BlockReads], raised: BaseException, told: type[BaseException]
) -> None:
    backend = GatedDisk(3)
    backend.error = raised
    backend.gate.release(3)
    blk_mig, bmds = state_of(backend, pool())
    submit(blk_mig, bmds, 2)
    wire: Any = sim.Wire({b"d": bytearray(3 * MIB)})
    for _ in range(2):  # and again: the block stays in the list
        with pytest.raises(told) as caught:
            send.flush_blks(blk_mig, wire, wait=True)
    if isinstance(caught.value, errors.DeviceError):
        assert (caught.value.device, caught.value.offset, caught.value.nbytes) == ("d", 2 * MIB, MIB)
        assert (caught.value.errno, caught.value.__cause__) == (5, raised)
    assert wire.records == []
    blk_mig.reads.close()


@pytest.mark.parametrize("first", [True, False])
def test_no_more_threads(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """A thread that cannot be started fails the migration; those that run are waited for."""
    backend = GatedDisk(4)
    handlers = BlockSaveHandlers([backend], params.MigrationParameters(reading="parallel"))
    wire: Any = sim.Wire({b"d": bytearray(4 * MIB)})
    handlers.save_setup(wire)
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if thread.name != "blkmig-read" or (not first and not started):
            started.append(thread)
            start(thread)
        else:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    backend.gate.release(4)
    with pytest.raises(RuntimeError, match="can't start"):
        handlers.save_live_iterate(wire)
    handlers.save_cleanup()
    handlers.save_cleanup()
    assert not backend.trackers
    assert not [thread for thread in threading.enumerate() if thread.name == "blkmig-read"]


@pytest.mark.parametrize(("reading", "most"), [("inline", 1), ("parallel", 3)])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, reading: str, most: int) -> None:
    """However large the disk is, there are no more block buffers than the parameters say."""
    made = []
    original = _core.BlockBuffer

    def count(kind: Any) -> _core.BlockBuffer:
        made.append(None)
        return original(kind)

    monkeypatch.setattr(_core, "BlockBuffer", count)
    backend = sim.LayeredDisk(b"x" * 40 * MIB)
    parameters = params.MigrationParameters(reading=reading, max_parallel_reads=3, max_buffers=3)  # type: ignore[arg-type]
    handlers = BlockSaveHandlers([backend], parameters)
    wire: Any = sim.Wire({b"d": bytearray(40 * MIB)})
    handlers.save_setup(wire)
    for _ in range(3):
        handlers.save_live_iterate(wire)
        for tracker in backend.trackers:
            tracker.mark_all()
    handlers.save_live_complete_precopy(wire)
    handlers.save_cleanup()
    assert 1 <= len(made) <= most
