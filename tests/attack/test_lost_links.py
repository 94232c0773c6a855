# SPDX-License-Identifier: GPL-2.0-or-later
"""The link is cut again and again under writers, at random bytes and moments: each migration ends with equal disks."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import threading
from pathlib import Path

import cutter
import lab
import pytest
from lossy import MIB, Holds, Lossy, compared_cuts, many_barriers, random_cuts, small_questions

import blkmig
from blkmig import block, channel, errors, savevm, stats
from blkmig.files import rawfile
from blkmig.savevm import return_path

__all__ = ["many_barriers", "small_questions"]

LONG_MIGRATIONS, LONG_CUTS = 50, 10
HOWS: tuple[cutter.How, ...] = ("reset", "reset", "reset", "end", "end", "end", "silence")


@pytest.mark.usefixtures("many_barriers")
def test_cuts_at_any_moment(tmp_path: Path, is_long: bool) -> None:
    first = random.randrange(1 << 32) if is_long else 1
    for number in range(LONG_MIGRATIONS if is_long else 2):
        seed = first + number
        (tmp_path / str(number)).mkdir()
        cut_again_and_again(tmp_path / str(number), seed, LONG_CUTS if is_long else 5)


@pytest.mark.usefixtures("many_barriers", "small_questions")
@pytest.mark.parametrize("holds", ["delta", "in_place"])
def test_cuts_while_old_copies_are_compared(tmp_path: Path, is_long: bool, holds: Holds) -> None:
    """Cuts of both directions: in questions and answers, in what differs, in rounds and pauses."""
    first = random.randrange(1 << 32) if is_long else 1
    for number in range(LONG_MIGRATIONS if is_long else 3):
        seed = first + number
        (tmp_path / str(number)).mkdir()
        cut_while_compared(tmp_path / str(number), seed, LONG_CUTS if is_long else 6, holds)


def cut_while_compared(folder: Path, seed: int, count: int, holds: Holds) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    sizes = [rng.choice((512, MIB - 512, 3 * MIB, 5 * MIB + 1536, 16 * MIB)) for _ in range(rng.randrange(3))]
    sizes.append(rng.choice((16 * MIB, 32 * MIB + 1000)))
    run = Lossy(
        folder,
        seed,
        compared_cuts(rng, count, *HOWS),
        *sizes,
        holds=holds,
        granularity=rng.choice((4096, 65536, MIB)),
        reading=rng.choice(("inline", "parallel")),
        compress=rng.choice(("off", "zstd")),
        digests=rng.random() < 0.2,
        verify=rng.random() < 0.4,
    )
    run.run(is_file=rng.random() < 0.5, some=True)


def cut_again_and_again(folder: Path, seed: int, count: int) -> None:
    """Move one to three disks; half of the cuts are counted in bytes, the others in seconds, in rounds and pauses."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    sizes = [rng.choice((512, MIB - 512, 3 * MIB, 5 * MIB + 1536, 16 * MIB)) for _ in range(rng.randrange(3))]
    sizes.append(rng.choice((16 * MIB, 32 * MIB + 1000)))
    cuts = random_cuts(rng, count - count // 2, sum(sizes) // 2, *HOWS)
    live = [(rng.random() * 0.2, rng.choice(HOWS)) for _ in range(count // 2)]
    run = Lossy(
        folder,
        seed,
        cuts,
        *sizes,
        granularity=rng.choice((4096, 65536, MIB)),
        reading=rng.choice(("inline", "parallel")),
        digests=rng.random() < 0.2,
        verify=rng.random() < 0.4,
        switchover="manual",
    )
    run.run(is_file=rng.random() < 0.5, live=live)


@pytest.mark.usefixtures("many_barriers")
def test_no_more_is_sent_again_than_two_barriers_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken back was put behind the last barrier but one, or is in flight."""
    run = Lossy(tmp_path, 5, [], 64 * MIB, switchover="manual", max_bandwidth=40 * MIB)
    put, most, taken = [0], [], []
    records = block.barrier_records

    def note(number: int) -> bytes:
        put.append(lab.sent(run.migration).sent_bytes)
        return records(number)

    def look(event: stats.Event) -> None:
        if isinstance(event, stats.Reconnecting):
            now = lab.sent(run.migration)
            most.append(now.sent_bytes - put[-2] + now.in_flight_bytes)
            taken.append(run.migration.stats.taken_back_bytes)
        elif isinstance(event, stats.StatusChanged) and event.status == "active" and most:
            taken[-1] = run.migration.stats.taken_back_bytes - taken[-1]

    monkeypatch.setattr(block, "barrier_records", note)
    live: list[tuple[float, cutter.How]] = [(0.3, "reset")] * 6
    run.run(live=live, on_progress=look)
    assert len(taken) == len(most) == 6
    assert all(some <= bound for some, bound in zip(taken, most, strict=True)), (taken, most)
    assert 0 < sum(taken) < 64 * MIB


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_failed_flush_poisons_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers_after: blkmig.params.WritersAfter
) -> None:
    """The kernel says EIO once, and marks the pages clean: the next flush succeeds, and nobody may believe it."""
    sync, calls = rawfile.RawFile.sync, []

    def failing(self: rawfile.RawFile) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    monkeypatch.setattr(rawfile.RawFile, "sync", failing)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(random.Random(1).randbytes(64 * MIB)), name="d")
    told: list[stats.Event] = []
    chosen = blkmig.MigrationParameters(max_bandwidth=64 * MIB, writers_after=writers_after)
    migration = blkmig.outgoing([disk], receiver.uri, chosen, on_progress=told.append)
    with pytest.raises(errors.TargetFailed, match="cannot flush") as caught, migration:
        migration.run()
    assert caught.value.errno == errno.EIO
    assert [event.number for event in told if isinstance(event, stats.Acknowledged)] == [1, 2]
    with pytest.raises(errors.DeviceError, match="cannot flush") as there:
        receiver.result()
    assert there.value.errno == errno.EIO
    assert not (tmp_path / "t.raw").exists()
    disk.pwrite(b"in use", 0)


def test_a_link_that_was_lost_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither end keeps anything of it, however many there are."""
    caplog.set_level(logging.CRITICAL)  # or the messages would be kept, with their errors, and all that these have seen
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    parameters = blkmig.MigrationParameters(reconnect=30, downtime_limit=30)
    kept: list[int] = []
    with cutter.Cutter(receiver.uri, []) as relay:
        with blkmig.outgoing([disk], relay.uri, parameters) as migration:
            for number in range(12):
                relay.cut_now("reset")
                while migration.stats.reconnects <= number:
                    disk.pwrite(b"w", 0)
                    migration.iterate()
                kept.append(_alive(channel.InputQEMUFile, channel.OutputQEMUFile))
            migration.run()
        assert receiver.result().reconnects == 12
    assert min(kept[-3:]) <= max(kept[:3]), kept
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, MIB)


def _alive(*kinds: type) -> int:
    gc.collect()
    return sum(type(each) in kinds for each in gc.get_objects())


@pytest.mark.usefixtures("many_barriers")
def test_nobody_speaks_on_a_link_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that says ACK may be at it when the link is lost: what it says must get into no other descriptor."""
    inside, is_broken_off, closed_inside = threading.Event(), threading.Event(), []
    send, abort, break_off = return_path.send_message, channel.InputQEMUFile.abort, channel.Breaker.break_off

    def slow(f: channel.OutputQEMUFile, kind: int, data: bytes) -> None:
        if kind == savevm.MIG_RP_MSG_ACK and not is_broken_off.is_set():
            inside.set()
            is_broken_off.wait(1)
            is_broken_off.set()
            inside.clear()
        send(f, kind, data)

    def noted(self: channel.InputQEMUFile) -> None:
        if threading.current_thread() is not threading.main_thread() and inside.is_set():
            closed_inside.append(self.uri)
        abort(self)

    def broken_off(self: channel.Breaker) -> None:
        break_off(self)
        is_broken_off.set()

    monkeypatch.setattr(return_path, "send_message", slow)
    monkeypatch.setattr(channel.InputQEMUFile, "abort", noted)
    monkeypatch.setattr(channel.Breaker, "break_off", broken_off)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 16 * MIB), name="d")
    parameters = blkmig.MigrationParameters(reconnect=30, downtime_limit=30, max_bandwidth=100 * MIB)
    with cutter.Cutter(receiver.uri, []) as relay:
        with blkmig.outgoing([disk], relay.uri, parameters) as migration:
            while not inside.is_set():
                disk.pwrite(b"w", 0)
                migration.iterate()
            relay.cut_now("reset")
            migration.run()
        assert receiver.result().reconnects == 1
    assert not closed_inside
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, 16 * MIB)
