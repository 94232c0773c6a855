# SPDX-License-Identifier: GPL-2.0-or-later
"""One stream over several connections: what comes late on one of them never wins, and the loss of one is a loss."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import random
import secrets
import socket
from pathlib import Path
from typing import Any

import cutter
import delayer
import lab
import pytest
from lossy import Lossy, many_barriers, random_cuts, writing
from pauses import LONG, Call

import blkmig
from blkmig import channel, errors, savevm, stats
from blkmig.migration import bundling, connection, gathering

MIB = lab.MIB
__all__ = ["many_barriers"]


def move(uri: str, folder: Path, content: bytes, **chosen: Any) -> stats.OutgoingStatistics:
    receiver = lab.Receiver(uri, {"d": folder / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    with blkmig.outgoing([disk], receiver.uri, blkmig.MigrationParameters(**chosen)) as migration:
        migration.run()
    receiver.result()
    assert (folder / "t.raw").read_bytes() == content
    return migration.stats


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("reconnect", [None, 0])
def test_over_several(tmp_path: Path, count: int, kind: str, reconnect: float | None) -> None:
    """With a session the lobby takes the others, without one the loading thread does."""
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    content = random.Random(count).randbytes(9 * MIB + 1536)
    result = move(uri, tmp_path, content, connections=count, reconnect=reconnect)
    assert (result.connections, result.notes) == (count, [])


def test_silence_before_the_target_waits_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says at once that it does, so a link that is silent then is lost when the idle time-out is over."""
    monkeypatch.setattr(bundling, "JOIN_SECONDS", 3600.0)
    content = random.Random(1).randbytes(3 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    send_command = savevm.SaveState.send_command

    def silent(state: savevm.SaveState, f: Any, command: int, *more: Any) -> None:
        if command == savevm.MIG_CMD_BUNDLE and not relay.done:
            relay.cut_now("silence")
        send_command(state, f, command, *more)

    with cutter.Cutter(receiver.uri, []) as relay, blkmig.MemoryBackend(bytearray(content), name="d") as disk:
        monkeypatch.setattr(savevm.SaveState, "send_command", silent)
        migration = blkmig.outgoing(
            [disk], relay.uri, blkmig.MigrationParameters(connections=2, idle_timeout=0.5, connect_timeout=5.0)
        )

        def send() -> None:
            with migration:
                migration.run()

        sending = Call(send)
        try:
            assert sending.is_over(LONG), "it waits for what a silent link does not bring"
        finally:
            migration.cancel()
        sending.result()
        receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == content
    assert migration.stats.reconnects == 1


@pytest.mark.parametrize("chosen", [{"max_bandwidth": 64 * MIB}, {"digests": True}, {"reading": "parallel"}], ids=str)
def test_with_other_parameters(tmp_path: Path, chosen: dict[str, Any]) -> None:
    assert move("tcp:127.0.0.1:0", tmp_path, b"x" * 5 * MIB, connections=3, **chosen).connections == 3


def test_within_a_machine_there_is_one(tmp_path: Path) -> None:
    assert move("tcp:127.0.0.1:0", tmp_path, b"x" * MIB).connections == 1


def test_how_many_by_default() -> None:
    milliseconds = (None, 0.0, 0.0149, 0.0151, 0.020, 0.0503, 0.1, 3.0)
    assert [bundling.count_for(seconds) for seconds in milliseconds] == [1, 1, 1, 2, 2, 4, 7, 16]


def test_a_target_that_takes_one_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all before this one do; where nobody has said how many, it is not worth a word."""
    monkeypatch.setattr(savevm.words, "OURS", savevm.OURS & ~savevm.Ability.BUNDLE)
    result = move("tcp:127.0.0.1:0", tmp_path, b"x" * MIB, connections=4)
    assert result.connections == 1
    assert result.notes == ["the stream goes over one connection, not 4: the target does not take more"]


def test_a_target_that_was_given_its_link(tmp_path: Path) -> None:
    """Nobody else comes to a socket that its receiver has from another program, so it offers no more than that one."""

    def receive(server: socket.socket) -> None:
        link, _ = server.accept()
        with link:
            blkmig.receive(f"fd:{link.fileno()}", {"d": tmp_path / "t.raw"})

    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        received = pool.submit(receive, server)
        result = blkmig.send([disk], f"tcp:127.0.0.1:{server.getsockname()[1]}", connections=4)
        received.result()
    assert (tmp_path / "t.raw").read_bytes() == b"x" * MIB
    assert result.notes == ["the stream goes over one connection, not 4: the target does not take more"]


def test_a_command_is_run_once(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    uri = f"file:{tmp_path}/stream"
    with blkmig.outgoing([disk], uri, blkmig.MigrationParameters(connections=4)) as migration:
        migration.run()
    assert migration.stats.notes[0].startswith("the stream goes over one connection, not 4: file:")


@pytest.mark.parametrize("reconnect", [None, 0])
def test_others_that_do_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reconnect: float | None) -> None:
    """The stream goes on over the one that it has."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.2)
    content = random.Random(1).randbytes(3 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    cuts: list[tuple[int, cutter.How]] = [(1 << 60, "reset"), (0, "silence"), (3, "reset"), (36, "end")]
    chosen = blkmig.MigrationParameters(connections=4, reconnect=reconnect)
    with cutter.Cutter(receiver.uri, cuts) as relay:
        with blkmig.outgoing([disk], relay.uri, chosen) as migration:
            migration.run()
        receiver.result()
    assert (tmp_path / "t.raw").read_bytes() == content
    assert (migration.stats.connections, migration.stats.reconnects) == (1, 0)
    assert "the target has not taken them all in time" in migration.stats.notes[0]


def test_what_this_process_lacks_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors, say: it lacks them on the next link, too, so that goes on over one."""

    def lacking(first: channel.OutputQEMUFile, _others: object) -> None:
        cause = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise errors.ChannelError("bundling connections", uri=first.uri, cause=cause)

    monkeypatch.setattr(channel, "split", lacking)
    result = move("tcp:127.0.0.1:0", tmp_path, random.Random(2).randbytes(3 * MIB), connections=4)
    assert (result.connections, result.reconnects) == (1, 1)
    assert "the stream goes over one connection, not 4: Too many open files" in result.notes


@pytest.mark.usefixtures("many_barriers")
@pytest.mark.parametrize("seed", range(8))
def test_any_of_them_is_lost(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a cut at any byte, also in their first words."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.3)
    rng = random.Random(seed)
    cuts = random_cuts(rng, 7, 10 * MIB, "reset", "end", "silence")
    run = Lossy(tmp_path, seed, cuts, 12 * MIB + 1536, connections=4)
    run.run(is_file=bool(seed % 2), some=True)


def test_late_on_one_of_them(tmp_path: Path, is_long: bool) -> None:
    """Whole migrations under writers; each connection is slow in its own way."""
    first = secrets.randbits(30) if is_long else 1
    for seed in range(first, first + (1000 if is_long else 6)):
        delayed(tmp_path / str(seed), seed)


def delayed(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir()
    size = rng.choice((2, 3, 4)) * MIB + rng.choice((0, 512))
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": folder / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(rng.randbytes(size)), name="d")
    chosen = blkmig.MigrationParameters(connections=4, writers_after="refuse", downtime_limit=1.0)
    with delayer.Delayer(receiver.uri, seed) as relay:
        with writing([disk], seed), blkmig.outgoing([disk], relay.uri, chosen) as migration:
            migration.run()
        receiver.result()
    assert (relay.connections, migration.stats.connections) == (4, 4), f"seed {seed}"
    assert (folder / "t.raw").read_bytes() == disk.pread(0, disk.size), f"seed {seed}"
    (folder / "t.raw").unlink()


@pytest.mark.parametrize("reconnect", [20, 0], ids=["session", "no session"])
def test_a_cancel_is_heard_while_the_others_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reconnect: float
) -> None:
    """Nobody comes, and the receiver would wait for a long time."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 1000)

    def nobody(self: connection.Connection, *, timeout: float) -> channel.OutputQEMUFile:
        receiver.migration.cancel()
        raise errors.ChannelError("opening another connection", uri=self.uri, cause="nobody comes")

    monkeypatch.setattr(connection.Connection, "open_another", nobody)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    with pytest.raises(errors.MigrationError):
        blkmig.send([disk], receiver.uri, connections=3, reconnect=reconnect)
    with pytest.raises(errors.Cancelled):
        receiver.result()


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
@pytest.mark.parametrize("reconnect", [20, 0], ids=["session", "no session"])
def test_nobody_is_waited_for_when_the_source_has_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reconnect: float, scheme: str
) -> None:
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 1000)

    def cancelled(self: connection.Connection, *, timeout: float) -> channel.OutputQEMUFile:
        migration.cancel()
        raise errors.Cancelled("given up")

    monkeypatch.setattr(connection.Connection, "open_another", cancelled)
    uri = "tcp:127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/s"
    receiver = lab.Receiver(uri, {"d": tmp_path / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    chosen = blkmig.MigrationParameters(connections=3, reconnect=reconnect)
    migration = blkmig.outgoing([disk], receiver.uri, chosen)
    with pytest.raises(errors.Cancelled), migration:
        migration.run()
    with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
        receiver.result()
    assert not (tmp_path / "t.raw").exists()
