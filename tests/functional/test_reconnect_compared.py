# SPDX-License-Identifier: GPL-2.0-or-later
"""A link that is lost while old copies are compared comes back; what was not acknowledged is compared again."""

from __future__ import annotations

import random
from pathlib import Path

import cutter
import lab
import pytest
from lossy import Holds, Lossy, compared_cuts, many_barriers, small_questions

import blkmig
from blkmig import block, stats
from blkmig.migration import acknowledging, barriers

MIB = lab.MIB
HOLDS: tuple[Holds, ...] = ("delta", "in_place")
__all__ = ["many_barriers", "small_questions"]


@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("how", ["reset", "end", "silence"])
def test_a_link_that_is_lost_in_questions_and_in_answers(tmp_path: Path, holds: Holds, how: cutter.How) -> None:
    """First in what is asked or said to be the same, then in what is answered."""
    run = Lossy(tmp_path, 1, [(350, how), (-250, how), (20_000, how), (-300, how)], 24 * MIB + 1536, holds=holds)
    run.run(some=True)
    assert run.outgoing.reconnects >= 3
    assert run.outgoing.same_bytes > 0


@pytest.mark.usefixtures("many_barriers", "small_questions")
@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("seed", range(8))
def test_cuts_at_random_bytes_of_both_directions(tmp_path: Path, holds: Holds, seed: int) -> None:
    rng = random.Random(seed)
    sizes = rng.choice(((9 * MIB + 1536,), (3 * MIB, 512, 14 * MIB + 1000), (MIB - 512, 16 * MIB)))
    run = Lossy(
        tmp_path,
        seed,
        compared_cuts(rng, 8, "reset", "end"),
        *sizes,
        holds=holds,
        granularity=rng.choice((4096, 65536, MIB)),
        reading=rng.choice(("inline", "parallel")),
        compress=rng.choice(("off", "zstd")),
        verify=bool(seed % 2),
    )
    run.run(is_file=bool(seed % 3), some=True)
    assert run.outgoing.reconnects, f"seed {seed}"


@pytest.mark.usefixtures("small_questions")
def test_what_was_acknowledged_is_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal disks only what is left is asked for on the last of the links, and counted once."""
    content = random.Random(3).randbytes(64 * MIB)
    target = blkmig.MemoryBackend(bytearray(content), name="t")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, in_place=True)
    said: dict[int, int] = {}
    acknowledged: list[int] = []
    records = block.barrier_records

    def put(number: int) -> bytes:
        said[number] = lab.sent(migration).same_bytes
        return records(number)

    def cut(event: stats.Event) -> None:
        if isinstance(event, stats.Acknowledged) and said[event.number] and not acknowledged:
            acknowledged.append(said[event.number])
            relay.cut_now("reset")

    monkeypatch.setattr(barriers, "BARRIER_SECONDS", 0.0)  # one behind each section, if the one before has its ACK
    monkeypatch.setattr(block, "barrier_records", put)
    with cutter.Cutter(receiver.uri, []) as relay:
        disk = blkmig.MemoryBackend(bytearray(content), name="d")
        migration = blkmig.outgoing([disk], relay.uri, on_progress=cut)
        with migration:
            while not acknowledged:
                migration.iterate()
            migration.run()
        incoming = receiver.result()
    assert migration.stats.reconnects == incoming.reconnects == 1
    assert migration.stats.same_bytes == incoming.disks["d"].same_bytes == 64 * MIB
    assert migration.stats.taken_back_bytes <= 64 * MIB - acknowledged[0]
    assert target.pread(0, 64 * MIB) == content


@pytest.mark.usefixtures("many_barriers", "small_questions")
@pytest.mark.parametrize("reading", ["inline", "parallel"])
def test_a_barrier_is_about_what_was_said_before_it(
    monkeypatch: pytest.MonkeyPatch, reading: blkmig.params.Reading
) -> None:
    """What the source takes for settled at a barrier is what the target has heard by then."""
    content = random.Random(4).randbytes(48 * MIB)
    target = blkmig.MemoryBackend(bytearray(content), name="t")
    said: dict[int, int] = {}
    heard: dict[int, int] = {}
    records, take = block.barrier_records, acknowledging.Acknowledger.barrier

    def put(number: int) -> bytes:
        said[number] = lab.sent(migration).same_bytes
        return records(number)

    def taking(self: acknowledging.Acknowledger, number: int, *args: int) -> None:
        heard[number] = receiver.migration.stats.disks["d"].same_bytes
        take(self, number, *args)

    monkeypatch.setattr(barriers, "BARRIER_SECONDS", 0.0)  # one behind each section, if the one before has its ACK
    monkeypatch.setattr(block, "barrier_records", put)
    monkeypatch.setattr(acknowledging.Acknowledger, "barrier", taking)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, in_place=True)
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    migration = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(reading=reading))
    with migration:
        migration.run()
    receiver.result()
    assert any(heard.values()), "no barrier while it was compared"
    assert heard == said
