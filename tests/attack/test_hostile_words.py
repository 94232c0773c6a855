# SPDX-License-Identifier: GPL-2.0-or-later
"""A9, B3: a target that is no honest blkmig, at each wait of a source for one; and a source that is none.

The waits: for HELLO after the question, for REPLY after the table, for READY in the pause of a move. Each has a bound,
which no message of another kind moves.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
import savevm_streams as streams
import scripted
from pauses import Call, disk_of
from receivers import connected

import blkmig
from blkmig import errors
from blkmig.block import TableDisk, flush_records, table
from blkmig.savevm import words

IDLE = 0.1
PACE = 0.005
MIB = lab.MIB

PONG = [scripted.message(2, 7)]
PONGS = [scripted.message(2, value) for value in range(1000)]
ALIVE = [scripted.message(words.MIG_RP_MSG_ALIVE, words.Alive(text).encode()) for text in ("", "a", "b")]
HELLO = [scripted.message(words.MIG_RP_MSG_HELLO, words.Hello(5, 6).encode())]
TAKEN = scripted.message(words.MIG_RP_MSG_REPLY, words.Reply().encode())
REFUSED = words.Reply((words.Refusal(1, 0, "no"),))
UNKNOWN = scripted.message(words.MIG_RP_MSG_REPLY, REFUSED.encode())
NOT_READY = [scripted.message(words.MIG_RP_MSG_READY, number) for number in (0, 2, 1 << 31)]


@contextlib.contextmanager
def chattering(target: scripted.Target, messages: list[bytes], *, floods: bool = False) -> Iterator[Callable[[], None]]:
    """Give what begins to say these messages over and over, slowly or as fast as they are taken."""
    begun, over = threading.Event(), threading.Event()

    def run() -> None:
        begun.wait()
        for piece in itertools.cycle([b"".join(messages * 1000)] if floods else messages):
            if over.wait(0 if floods else PACE) or target.is_over.is_set():
                return
            target.say(piece)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield begun.set
    finally:
        begun.set()
        over.set()
        if target.connection is not None:
            with contextlib.suppress(OSError):
                target.hang_up()
        thread.join(30)
        assert not thread.is_alive()


def move_to(target: scripted.Target, *, connect_timeout: float = 30.0) -> blkmig.OutgoingMigration:
    """Move a disk to `target`; raises what the source raises, whose writers go on then."""
    disk = disk_of(2)
    parameters = blkmig.MigrationParameters(
        idle_timeout=IDLE, connect_timeout=connect_timeout, writers_after="refuse", downtime_limit=30
    )
    migration = blkmig.outgoing([disk], target.uri, parameters)

    def run() -> None:
        with migration:
            migration.run()

    try:
        Call(run).result()
    except errors.MigrationError:
        disk.pwrite(b"mine", 0)
        raise
    return migration


@pytest.mark.parametrize("messages", [PONG, PONGS, NOT_READY])
def test_chatter_instead_of_hello(tmp_path: Path, messages: list[bytes]) -> None:
    """It is as good as silence: the section is `block`."""
    begin: list[Callable[[], None]] = []

    def answer(target: scripted.Target, value: int) -> None:
        begin[0]() if value == words.ASK else scripted.pong(target, value)

    target = scripted.Target(tmp_path, answer)
    with chattering(target, messages) as begin_to:
        begin.append(begin_to)
        assert move_to(target, connect_timeout=IDLE).stats.format == "block"


@pytest.mark.parametrize("floods", [False, True])
@pytest.mark.parametrize("messages", [PONG, PONGS, HELLO, NOT_READY, ALIVE])
def test_chatter_instead_of_a_reply(tmp_path: Path, messages: list[bytes], floods: bool) -> None:
    begin: list[Callable[[], None]] = []

    def answer(target: scripted.Target, value: int) -> None:
        scripted.hello()(target, value)
        begin[0]()

    target = scripted.Target(tmp_path, answer)
    with chattering(target, messages, floods=floods) as begin_to:
        begin.append(begin_to)
        with pytest.raises(errors.ChannelError, match=r"waiting for the target to take the disks|4 MiB of messages"):
            move_to(target)


@pytest.mark.parametrize("floods", [False, True])
@pytest.mark.parametrize("messages", [PONG, PONGS, HELLO, NOT_READY, ALIVE])
def test_chatter_instead_of_ready(tmp_path: Path, messages: list[bytes], floods: bool) -> None:
    """Signs of life do count here, ten times as long."""
    target = scripted.Target(tmp_path, scripted.hello(), on_start=TAKEN)
    with chattering(target, messages, floods=floods) as begin:
        begin_when_flushed(target, begin)
        with pytest.raises(errors.ChannelError):
            move_to(target)
    assert flush_records(1) in target.received
    assert not target.received.endswith(b"}"), "END has not left"


def begin_when_flushed(target: scripted.Target, begin: Callable[[], None]) -> None:
    def wait() -> None:
        while flush_records(1) not in target.received[-200:] and not target.is_over.wait(0.001):
            pass
        begin()

    threading.Thread(target=wait, daemon=True).start()


def test_silence_instead_of_ready(tmp_path: Path) -> None:
    with pytest.raises(errors.ChannelTimeout):
        move_to(scripted.Target(tmp_path, scripted.hello(), on_start=TAKEN))


HALVES = {
    "HELLO": (scripted.nothing, None, HELLO[0]),
    "REPLY": (scripted.hello(), TAKEN[:-1], b""),
    "a refusal": (scripted.hello(), UNKNOWN[:-1], b""),
}


@pytest.mark.parametrize(("answer", "on_start", "half"), HALVES.values(), ids=HALVES.keys())
def test_half_a_message(tmp_path: Path, answer: scripted.Answer, on_start: bytes | None, half: bytes) -> None:
    def say(target: scripted.Target, value: int) -> None:
        answer(target, value)
        target.say(half[:-1])

    with pytest.raises(errors.ChannelTimeout):
        move_to(scripted.Target(tmp_path, say, on_start=on_start), connect_timeout=IDLE)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (UNKNOWN, "refuses a disk that nobody has offered"),
        (TAKEN + TAKEN, "replies to what nobody has asked"),
        (scripted.message(words.MIG_RP_MSG_REPLY, b"\0\1"), "no REPLY as it must be"),
        (scripted.message(words.MIG_RP_MSG_ERROR, bytes(17)), "no ERROR as it must be|has ended the migration"),
        (b"GET / HTTP/1.1\r\n\r\n", "is no message"),
    ],
    ids=["a disk too many", "twice", "damaged", "an empty error", "garbage"],
)
def test_words_that_no_blkmig_says(tmp_path: Path, said: bytes, match: str) -> None:
    with pytest.raises((errors.StreamError, errors.TargetFailed), match=match):
        move_to(scripted.Target(tmp_path, scripted.hello(), on_start=said))


def test_a_reply_that_nobody_has_asked_for(tmp_path: Path) -> None:
    def answer(target: scripted.Target, value: int) -> None:
        scripted.pong(target, value)
        target.say(TAKEN)

    with pytest.raises(errors.StreamError, match="replies to what nobody has asked"):
        move_to(scripted.Target(tmp_path, answer))


# -- sources ---------------------------------------------------------------------------------------------------------

ASKING = streams.HEADER + streams.configuration() + scripted.OPEN_RETURN_PATH + scripted.ASK
TABLE = table.encode([TableDisk(b"d", 2 * MIB)])
DATA = struct.pack(">Q", 1) + b"\x01d" + b"x" * MIB
HOSTILE: dict[str, bytes] = {
    "no table": streams.start(1, "blkmig", streams.EOS),
    "no disks": streams.start(1, "blkmig", struct.pack(">QII", 0x20, 0, 0)),
    "the table twice": streams.start(1, "blkmig", TABLE + streams.EOS) + streams.part(1, TABLE + streams.EOS),
    "a disk without end": streams.start(1, "blkmig", table.encode([TableDisk(b"d", (1 << 63) - 1)]) + streams.EOS),
    "another disk": streams.start(1, "blkmig", TABLE + streams.EOS) + streams.part(1, DATA.replace(b"\x01d", b"\x01e")),
    "block, too": streams.start(1, "blkmig", TABLE + streams.EOS) + streams.start(2, "block"),
    "version 2": streams.start(1, "blkmig", TABLE + streams.EOS, version=2),
    "FLUSH 2": streams.start(1, "blkmig", TABLE + streams.EOS) + streams.part(1, flush_records(2)),
    "no description": streams.start(1, "blkmig", TABLE + streams.EOS)
    + streams.part(1, DATA + struct.pack(">Q", 2048 << 9 | 9) + b"\x01d" + streams.EOS)
    + streams.end(1)
    + streams.EOF,
    "half a table": streams.start(1, "blkmig", TABLE[:20], footers=False),
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_sources_that_are_no_blkmig(tmp_path: Path, said: bytes) -> None:
    """The receiver ends with an error, says why to who asked for words, and leaves nothing of a new target."""
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})
    with connected(receiver.uri) as source:
        source.settimeout(30)
        source.sendall(ASKING + said)
        source.shutdown(1)
        heard = b""
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                heard += piece
    with pytest.raises((errors.StreamError, errors.DeviceError)):
        receiver.result()
    idle = words.Ability.PROOF | words.Ability.DELTA  # nobody is to verify, and there is no old copy
    hello = words.Hello(abilities=words.OURS & ~idle)
    assert heard.startswith(scripted.message(words.MIG_RP_MSG_HELLO, hello.encode()))
    assert struct.pack(">H", words.MIG_RP_MSG_ERROR) in heard
    assert struct.unpack(">HHI", heard[-8:])[:2] == (1, 4)
    assert heard[-1] != 0
    assert not list(tmp_path.glob("*d.raw*"))
