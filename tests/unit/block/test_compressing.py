# SPDX-License-Identifier: GPL-2.0-or-later
"""Between the read and the stream: the order stays, errors surface where a read's would, and nobody is left behind."""

from __future__ import annotations

import random
import threading

import pytest
import sim
from gated import GatedDisk, state_of, submit

from blkmig import zstd
from blkmig.block import compressing, effort, reads, send

MIB = sim.MIB
TEXT = random.Random(1).randbytes(MIB // 2).hex().encode()
NOISE = random.Random(2).randbytes(MIB)


def stage(
    inner: reads.BlockReads | None = None, *, max_buffers: int = 8, workers: int = 3
) -> compressing.CompressedReads:
    return compressing.CompressedReads(
        inner or reads.InlineReads(payload="own"),
        max_buffers,
        workers=workers,
        tuned=effort.Effort(always=True, workers=workers),
        has_checksum=False,
    )


def test_what_was_read_first_is_handed_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each of them takes, and whether it shrinks or not."""
    content = b"".join((TEXT, NOISE, bytes(MIB))[number % 3] for number in range(8))
    first_waits, frame = threading.Event(), zstd.Compressor.frame

    def slowly(self: zstd.Compressor, data: bytes) -> bytes:
        if data[:16] == TEXT[:16] and not first_waits.is_set():
            assert first_waits.wait(20)
        return frame(self, data)

    monkeypatch.setattr(zstd.Compressor, "frame", slowly)
    blk_mig, bmds = state_of(sim.LayeredDisk(content), stage())
    for block in range(8):
        assert blk_mig.reads.has_room()
        submit(blk_mig, bmds, block)
    assert not blk_mig.reads.has_room()
    assert not send.collect_one(blk_mig, wait=False), "the first one is not ready, so nobody is"
    first_waits.set()
    for block in range(8):
        assert send.collect_one(blk_mig, wait=True)
        blk = blk_mig.blk_list.popleft()
        assert blk.block == block
        payload = content[block * MIB :][:MIB]
        assert blk.buf.is_zero == (block % 3 == 2)
        assert (blk.frame is not None) == (block % 3 == 0)
        assert blk.frame is None or zstd.decompress(blk.frame, MIB) == payload
        assert not send.collect_one(blk_mig, wait=False), "one at a time, so that reads go on meanwhile"
        blk_mig.reads.put(blk)
    blk_mig.reads.close()


def test_a_read_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = GatedDisk(2)
    backend.error = ValueError("broken")
    backend.gate.release(2)
    blk_mig, bmds = state_of(backend, stage(reads.ParallelReads(max_parallel=2, max_buffers=2, payload="own")))
    submit(blk_mig, bmds, 0)
    assert send.collect_one(blk_mig, wait=True)
    assert blk_mig.blk_list[0].error is backend.error
    blk_mig.reads.close()


def test_a_worker_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error like that of a read: nothing is sent in its place."""
    raised = MemoryError("none left")

    def fail(self: zstd.Compressor, data: bytes) -> bytes:
        raise raised

    monkeypatch.setattr(zstd.Compressor, "frame", fail)
    blk_mig, bmds = state_of(sim.LayeredDisk(TEXT), stage())
    submit(blk_mig, bmds, 0)
    assert send.collect_one(blk_mig, wait=True)
    assert blk_mig.blk_list[0].error is raised
    blk_mig.reads.close()


def test_closing_waits_for_the_workers() -> None:
    before = set(threading.enumerate())
    blk_mig, bmds = state_of(sim.LayeredDisk(TEXT * 8), stage())
    for block in range(8):
        submit(blk_mig, bmds, block)
    blk_mig.reads.close()
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name == "blkmig-zstd"}
    blk_mig.reads.close()


def test_the_time_of_the_link_counts_also_with_one_buffer() -> None:
    """Where nothing is compressed, one block is under way at a time, and a trial must come to its end."""
    now = 0.0
    tuned = effort.Effort(always=False, workers=1, clock=lambda: now)
    pool = compressing.CompressedReads(reads.InlineReads(payload="own"), 1, workers=1, tuned=tuned, has_checksum=False)
    blk_mig, bmds = state_of(sim.LayeredDisk(NOISE * 20), pool)
    for block in range(20):
        submit(blk_mig, bmds, block)
        assert send.collect_one(blk_mig, wait=True)
        now += 0.1
        blk_mig.reads.put(blk_mig.blk_list.popleft())
        now += 5  # a pause between two rounds
    assert tuned.link_rate == pytest.approx(MIB / 0.1, rel=0.1)
    blk_mig.reads.close()


@pytest.mark.parametrize("payload", [NOISE, NOISE[:4096], NOISE[: MIB // 2] + TEXT[:4096] + NOISE[MIB // 2 + 4096 :]])
def test_what_does_not_shrink_is_no_frame(payload: bytes) -> None:
    assert compressing.frame_of(memoryview(payload), zstd.Compressor(1, has_checksum=False)) is None


@pytest.mark.parametrize("payload", [TEXT, TEXT[:512], b"x" * 512, TEXT[: MIB // 2] + NOISE[: MIB // 2]])
def test_what_shrinks_is_one(payload: bytes) -> None:
    frame = compressing.frame_of(memoryview(payload), zstd.Compressor(1, has_checksum=False))
    assert frame is not None
    assert zstd.decompress(frame, len(payload)) == payload
