# SPDX-License-Identifier: GPL-2.0-or-later
"""B3, A9: peers that mean harm, or are broken, at each phase of both ends; each is ended by a bound.

No test here waits for a moment to pass: peers act until their link is gone, and the end under test must end by itself.
Time-outs are tiny. `--long` goes through more places of the stream at which a source turns bad.
"""

from __future__ import annotations

import concurrent.futures
import random
import socket
import struct
from pathlib import Path

import pytest
from hostile_peers import HANGS, MIB, OPEN_RETURN_PATH, gone
from hostile_peers import stream as stream

import blkmig
from blkmig import errors, testing
from blkmig.savevm import drain

IDLE = 0.1
PACE = 0.005
"""Seconds between two bytes of a peer that sends or takes one at a time: 20 in an idle time-out, of 4096."""
PING = b"\x08\0\2\0\4\0\0\0\7"
EMPTY_PART = b"\2\0\0\0\1" + struct.pack(">Q", 2) + b"\x7e\0\0\0\1"


def silent(peer: testing.Peer) -> None:
    peer.over.wait()


def dripping(peer: testing.Peer) -> None:
    while not peer.over.wait(PACE):
        peer.say(b"\0")


def pinging(peer: testing.Peer) -> None:
    """Send PINGs as fast as they are taken, and read none of the answers."""
    while not peer.over.is_set():
        peer.say(PING * 1000)


def pinging_slowly(peer: testing.Peer) -> None:
    while not peer.over.wait(PACE):
        peer.say(PING)


def empty_sections(peer: testing.Peer) -> None:
    while not peer.over.is_set():
        peer.say(EMPTY_PART * 1000)


def progress_records(peer: testing.Peer) -> None:
    """Begin a section and fill it with nothing but PROGRESS."""
    peer.say(EMPTY_PART[:5])
    while not peer.over.is_set():
        peer.say(struct.pack(">Q", 5 << 9 | 4) * 1000)


def half_closed(peer: testing.Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)
    peer.over.wait()


def cut_at(stream: bytes, phase: str) -> bytes:
    description = stream.index(b'{"page_size"')
    places = {
        "connected": 0,
        "half a header": 5,
        "header": 8,
        "asked": stream.index(OPEN_RETURN_PATH) + len(OPEN_RETURN_PATH),
        "in a block": len(stream) // 2,
        "before the end": description - 6,
        "end": description - 5,
        "in the description": description + 20,
    }
    return stream[: places[phase]]


def receive_from(act: testing.Step, said: bytes, tmp_path: Path, kind: str = "tcp", *, idle: float = IDLE) -> None:
    """Run a receiver whose source says `said` and then acts; raises what the receiver raises."""
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    parameters = blkmig.IncomingParameters(idle_timeout=idle, accept_timeout=5 * IDLE if idle == IDLE else HANGS)
    incoming = blkmig.IncomingMigration(uri, {"d": tmp_path / "copy.raw"}, parameters)
    with (
        incoming,
        concurrent.futures.ThreadPoolExecutor() as pool,
        testing.Peer.connecting(incoming.uri, testing.say(said), act),
    ):
        pool.submit(incoming.run).result(HANGS)


ENDINGS = (errors.ChannelError, errors.StreamError, errors.IncompleteMigration)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "PATIENT_IDLE_TIME", 2 * IDLE)
    monkeypatch.setattr(drain, "IDLE_TIME", IDLE)
    from blkmig.migration import farewell

    monkeypatch.setattr(farewell, "DRAIN_SECONDS", IDLE)
    monkeypatch.setattr(farewell, "CLOSE_SECONDS", IDLE)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("phase", ["header", "asked", "in a block", "before the end", "end", "in the description"])
@pytest.mark.parametrize("act", [silent, dripping, half_closed, gone])
def test_a_source_that_stops_ends_the_receiver(act: testing.Step, phase: str, stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(ENDINGS):
        receive_from(act, cut_at(stream, phase), tmp_path, "unix" if phase == "header" else "tcp")


@pytest.mark.parametrize("act", [pinging, pinging_slowly, empty_sections, progress_records])
@pytest.mark.usefixtures("short_waits")
def test_chatter_is_no_payload(act: testing.Step, stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(ENDINGS, match=r"nothing of|took nothing|4 MiB of messages"):
        receive_from(act, cut_at(stream, "before the end")[: -len(EMPTY_PART) - 8], tmp_path)


@pytest.mark.parametrize("phase", ["connected", "half a header"])
@pytest.mark.parametrize("act", [silent, dripping, half_closed, gone])
def test_who_says_nothing_is_waited_for_no_longer_than_asked(
    act: testing.Step, phase: str, stream: bytes, tmp_path: Path
) -> None:
    with pytest.raises(errors.ChannelTimeout, match="nobody connected"):
        receive_from(act, cut_at(stream, phase) if act is not dripping else b"", tmp_path)


@pytest.mark.usefixtures("short_waits")
def test_a_source_that_closes_late_has_sent_everything(stream: bytes, tmp_path: Path) -> None:
    """QEMU keeps its link open for a while."""
    receive_from(silent, stream, tmp_path, idle=HANGS)
    assert (tmp_path / "copy.raw").stat().st_size == 3 * MIB


def test_places_at_which_a_source_stops(
    stream: bytes, tmp_path: Path, is_long: bool, monkeypatch: pytest.MonkeyPatch, short_waits: None
) -> None:
    """Anywhere: what is not whole is not complete."""
    seed = random.randrange(1 << 32) if is_long else 2
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(1000 if is_long else 8):
        with pytest.raises((*ENDINGS, errors.MigrationError)):
            receive_from(rng.choice([half_closed, gone]), stream[: rng.randrange(8, len(stream))], tmp_path)


def test_a_slow_and_honest_source_lives(stream: bytes, tmp_path: Path) -> None:
    """4 KiB in an idle time-out are enough: 70 bytes/s of the usual 60 seconds. It takes several of them here."""

    def slowly(peer: testing.Peer) -> None:
        rest = memoryview(stream)[8:]
        slow, rest = rest[: 56 << 10], rest[56 << 10 :]
        for start in range(0, len(slow), 8192):
            peer.say(slow[start : start + 8192])
            peer.over.wait(0.2)
        peer.say(rest)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.over.wait()

    receive_from(slowly, stream[:8], tmp_path, idle=0.5)
