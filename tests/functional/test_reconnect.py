# SPDX-License-Identifier: GPL-2.0-or-later
"""A link between two blkmigs that is lost comes back, and what was acknowledged is not sent again."""

from __future__ import annotations

import math
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cutter
import lab
import pytest
from lossy import Lossy, many_barriers, random_cuts

import blkmig
from blkmig import errors, stats
from blkmig.channel import sockets

MIB = lab.MIB
__all__ = ["many_barriers"]


def statuses(told: list[stats.Event]) -> list[str]:
    return [event.status for event in told if isinstance(event, stats.StatusChanged)]


@pytest.mark.parametrize("how", ["reset", "end", "silence"])
@pytest.mark.parametrize(
    "chosen", [{}, {"reading": "parallel"}, {"zero_blocks": False}, {"digests": True}, {"verify": True}], ids=str
)
def test_a_lost_link_comes_back(tmp_path: Path, how: cutter.How, chosen: dict[str, Any]) -> None:
    run = Lossy(tmp_path, 1, [(5 * MIB + 777, how), (50, how), (2 * MIB, how)], 12 * MIB + 1536, **chosen)
    run.run()
    assert (run.outgoing.reconnects, run.incoming.reconnects) == (3, 3)
    assert statuses(run.told).count("reconnecting") == 3
    assert sum(isinstance(event, stats.Reconnecting) for event in run.told) == 3


@pytest.mark.usefixtures("many_barriers")
def test_what_was_acknowledged_is_not_sent_again(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(64 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    told: list[stats.Event] = []
    with cutter.Cutter(receiver.uri, [(48 * MIB, "reset")]) as relay:
        disk = blkmig.MemoryBackend(bytearray(content), name="d")
        chosen = blkmig.MigrationParameters(max_bandwidth=64 * MIB)
        migration = blkmig.outgoing([disk], relay.uri, chosen, on_progress=told.append)
        with migration:
            migration.run()
        assert receiver.result().reconnects == 1  # before the relay resets what is still on its way
    assert (tmp_path / "t.raw").read_bytes() == content
    assert migration.stats.taken_back_bytes < 32 * MIB
    assert migration.stats.barriers >= 4
    numbers = [event.number for event in told if isinstance(event, stats.Acknowledged)]
    assert numbers == list(range(1, migration.stats.barriers + 1))


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("seed", range(6))
def test_cuts_at_random_under_writers(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sizes = rng.choice(((9 * MIB + 1536,), (3 * MIB, 512, 4 * MIB + 1000), (MIB - 512, 6 * MIB)))
    cuts = random_cuts(rng, 6, sum(sizes) // 2, "reset", "end")
    live: list[tuple[float, cutter.How]] = [(rng.random() * 0.05, rng.choice(("reset", "end"))) for _ in range(4)]
    granularity = rng.choice((4096, 65536, MIB))
    reading = rng.choice(("inline", "parallel"))
    verify = bool(seed % 3)
    run = Lossy(
        tmp_path, seed, cuts, *sizes, granularity=granularity, reading=reading, switchover="manual", verify=verify
    )
    run.run(is_file=bool(seed % 2), live=live)


def test_a_link_that_does_not_come_back(tmp_path: Path) -> None:
    """Both ends give up: the source after its time, and it says so to the target where it can."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 32 * MIB), name="d")
    with cutter.Cutter(receiver.uri, [(4 * MIB, "reset")]) as relay:

        def refuse(event: stats.Event) -> None:
            if isinstance(event, stats.Reconnecting):
                relay.refuses.set()

        migration = blkmig.outgoing([disk], relay.uri, blkmig.MigrationParameters(reconnect=0.5), on_progress=refuse)
        with pytest.raises(errors.ChannelError) as caught, migration:
            migration.run()
        assert "did not come back within 0.5 s" in caught.value.__notes__[0]
        disk.pwrite(b"in use", 0)
        receiver.migration.cancel()
        with pytest.raises(errors.Cancelled):
            receiver.result()
    assert not (tmp_path / "t.raw").exists()


class CutAtHold(blkmig.MemoryBackend):
    """A disk whose link is cut each time that its writers are held, so many times."""

    cut: Callable[[], None]
    ncuts: float = 0

    def hold_writers(self) -> None:
        super().hold_writers()
        if self.ncuts:
            self.ncuts -= 1
            self.cut()


@pytest.mark.parametrize("ncuts", [5, math.inf])
def test_a_link_that_is_lost_in_pauses(tmp_path: Path, ncuts: float) -> None:
    """It came back each time, so these pauses took nobody too long; but one that breaks in each of them is told."""
    content = random.Random(5).randbytes(3 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = CutAtHold(bytearray(content), name="d")
    with cutter.Cutter(receiver.uri, []) as relay:
        disk.cut, disk.ncuts = lambda: relay.cut_now("reset"), ncuts
        migration = blkmig.outgoing([disk], relay.uri)
        if ncuts == math.inf:
            told = "the link was lost in 10 pauses: look at what breaks it"
            with pytest.raises(errors.NotConverged, match=told), migration:
                migration.run()
            with pytest.raises(errors.MigrationError):
                receiver.result()
        else:
            with migration:
                migration.run()
            receiver.result()
            assert (tmp_path / "t.raw").read_bytes() == content
    assert migration.stats.pauses_given_up == migration.stats.reconnects == min(ncuts, 10)
    disk.pwrite(b"in use", 0)


def test_little_waits_in_the_socket_of_a_link_that_came_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the bulk phase, for a pause waits for that."""
    limited: list[tuple[str, int]] = []
    limit_queue = sockets.limit_queue

    def noting(sock: socket.socket, nbytes: int) -> None:
        limited.append((sock.getsockname(), nbytes))
        limit_queue(sock, nbytes)

    monkeypatch.setattr(sockets, "limit_queue", noting)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = CutAtHold(bytearray(random.Random(6).randbytes(3 * MIB)), name="d")
    with cutter.Cutter(receiver.uri, []) as relay:
        disk.cut, disk.ncuts = lambda: relay.cut_now("reset"), 2
        sent = blkmig.send([disk], relay.uri, writers_after="refuse")
        receiver.result()
    assert sent.reconnects == 2
    assert [nbytes for _, nbytes in limited] == [sockets.SHORT_QUEUE] * 3
    assert len({name for name, _ in limited}) == 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_source_that_gives_up_says_so(tmp_path: Path, kind: str) -> None:
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    receiver = lab.Receiver(uri, {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 32 * MIB), name="d")
    migration = blkmig.outgoing([disk], receiver.uri)
    with pytest.raises(errors.Cancelled):  # noqa: PT012 - from whichever step comes upon it
        with migration:
            migration.iterate()
            migration.cancel()
            migration.run()
    with pytest.raises((errors.TruncatedStream, errors.ChannelError)):
        receiver.result()


def test_a_cancel_is_heard_while_the_link_is_away(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 32 * MIB), name="d")
    with cutter.Cutter(receiver.uri, [(4 * MIB, "reset")]) as relay:

        def refuse(event: stats.Event) -> None:
            if isinstance(event, stats.Reconnecting):
                relay.refuses.set()
                threading.Timer(0.3, migration.cancel).start()

        migration = blkmig.outgoing([disk], relay.uri, on_progress=refuse)
        with pytest.raises(errors.Cancelled), migration:
            migration.run()
        receiver.migration.cancel()
        with pytest.raises(errors.Cancelled):
            receiver.result()


def test_a_receiver_that_is_cancelled_is_not_waited_for(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 8 * MIB), name="d")
    migration = blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(switchover="manual"))
    with pytest.raises(errors.TargetFailed, match="cancelled"):  # noqa: PT012 - from whichever step comes upon it
        with migration:
            migration.iterate()
            receiver.migration.cancel()
            migration.run()
    with pytest.raises(errors.Cancelled):
        receiver.result()


@pytest.mark.parametrize("chosen", [{"reconnect": 0}, {"format": "block"}], ids=str)
def test_without_a_session_a_loss_is_the_end(tmp_path: Path, chosen: dict[str, Any]) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * 32 * MIB), name="d")
    with cutter.Cutter(receiver.uri, [(4 * MIB, "reset")]) as relay:
        migration = blkmig.outgoing([disk], relay.uri, blkmig.MigrationParameters(**chosen))
        with pytest.raises(errors.ChannelError), migration:
            migration.run()
        with pytest.raises(errors.MigrationError):
            receiver.result()
        assert relay.connections == 1
