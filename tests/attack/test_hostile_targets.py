# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that stop, chatter, lie or leave, at each phase of a sender."""

from __future__ import annotations

import concurrent.futures
import random
import socket
from pathlib import Path

import pytest
from hostile_peers import HANGS, MIB, answers, swallow
from hostile_peers import stream as stream
from receivers import connected

import blkmig
from blkmig import channel, errors, stats, testing

IDLE = 0.1
ASKED = 0.5
"""Seconds that a target has to answer at first; none of these says which sections it takes."""

PACE = 0.005
"""Seconds between two bytes of a peer that sends or takes one at a time: 20 in an idle time-out, of 4096."""


def send_to(act: testing.Step, tmp_path: Path, *, kind: str = "tcp", size: int = 2 * MIB, idle: float = HANGS) -> None:
    """Run a sender whose target acts; raises what the sender raises."""
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(size))
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        testing.Peer.listening(act, uri=uri, buffer=4096) as target,
    ):
        sending = pool.submit(blkmig.send, [tmp_path / "d.raw"], target.uri, idle_timeout=idle, connect_timeout=ASKED)
        sending.result(HANGS)


def takes_nothing(peer: testing.Peer) -> None:
    peer.over.wait()


def takes_a_byte_at_a_time(peer: testing.Peer) -> None:
    while not peer.over.wait(PACE) and peer.read(1):
        pass


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("act", [takes_nothing, takes_a_byte_at_a_time])
def test_a_target_that_does_not_read(act: testing.Step, kind: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ChannelTimeout, match="took nothing"):
        send_to(act, tmp_path, kind=kind, size=24 * MIB, idle=IDLE)


def says_nothing(peer: testing.Peer) -> None:
    swallow(peer)
    peer.over.wait()


def drips_a_word(peer: testing.Peer) -> None:
    swallow(peer)
    for byte in testing.message(2, 1) * 1000:
        if peer.over.wait(PACE):
            return
        peer.say(bytes([byte]))


def lives_for_ever(peer: testing.Peer) -> None:
    swallow(peer)
    while not peer.over.wait(IDLE / 4):
        peer.say(testing.message(2, 1))


@pytest.mark.parametrize("act", [says_nothing, drips_a_word, lives_for_ever])
def test_a_target_whose_word_never_comes(act: testing.Step, tmp_path: Path) -> None:
    with pytest.raises(errors.ChannelTimeout, match=r"said nothing|no further"):
        send_to(act, tmp_path, idle=IDLE)


def chatters(peer: testing.Peer) -> None:
    swallow(peer)
    for value in range(1, 1 << 30):
        peer.say(b"".join(testing.message(2, value * 100 + i) for i in range(100)))


def test_a_target_that_chatters(tmp_path: Path) -> None:
    with pytest.raises(errors.StreamError, match="message after message"):
        send_to(chatters, tmp_path)


PHASES = [0, 20, MIB, None]


@pytest.mark.parametrize("after", PHASES)
def test_garbage_on_the_return_path(after: int | None, tmp_path: Path) -> None:
    with pytest.raises(errors.StreamError, match="is no message"):
        send_to(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n", after), tmp_path, size=8 * MIB)


@pytest.mark.parametrize("after", PHASES[:-1])
@pytest.mark.parametrize(("status", "why"), [(0, "cannot be"), (1, "does not say why"), (28, "No space left")])
def test_a_word_before_the_end_is_no_success(after: int, status: int, why: str, tmp_path: Path) -> None:
    """A9: whatever it says; and C11: the reason is told."""
    with pytest.raises(errors.MigrationError, match=f"target has ended .*{why}") as caught:
        send_to(answers(testing.message(1, status), after), tmp_path, size=24 * MIB)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("after", PHASES[:-1])
def test_the_reason_of_a_target_that_goes_away(after: int, kind: str, tmp_path: Path) -> None:
    """C11: it comes before "broken pipe"."""

    def act(peer: testing.Peer) -> None:
        swallow(peer, after)
        peer.say(testing.message(1, 28))
        peer.sock.shutdown(socket.SHUT_WR)
        swallow(peer, 16 * MIB)

    with pytest.raises(errors.MigrationError, match="No space left on device"):
        send_to(act, tmp_path, kind=kind, size=24 * MIB)


@pytest.mark.parametrize("after", PHASES)
@pytest.mark.parametrize("how", ["half-closed", "gone"])
def test_a_target_that_leaves(how: str, after: int | None, tmp_path: Path) -> None:
    def act(peer: testing.Peer) -> None:
        swallow(peer, after)
        if how == "half-closed":
            peer.sock.shutdown(socket.SHUT_WR)
            swallow(peer)
            peer.over.wait()

    with pytest.raises(errors.ChannelError) as caught:
        send_to(act, tmp_path, size=8 * MIB)
    assert caught.value.exit_code == 5


def test_a_target_that_keeps_the_link_open_after_its_word(tmp_path: Path) -> None:
    def act(peer: testing.Peer) -> None:
        swallow(peer)
        peer.say(testing.message(1, 0))
        peer.over.wait()

    send_to(act, tmp_path)


def test_a_command_that_takes_everything_and_never_ends(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(1000))
    with pytest.raises(errors.ChannelTimeout, match="has not ended for 1 s"):
        blkmig.send([tmp_path / "d.raw"], "exec:cat >/dev/null; exec sleep 1000", idle_timeout=IDLE)


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
@pytest.mark.parametrize("reads", ["cat >/dev/null; ", ""])
def test_a_command_that_never_ends_and_may_be_idle_for_ever(reads: str, writers_after: str) -> None:
    """As a QEMU whose guest runs when it has come: a cancel, which a time-out is, too, ends that wait."""

    def tell(event: stats.Event) -> None:
        if isinstance(event, stats.Progressed) and event.phase == "waiting":
            migration.cancel()

    parameters = blkmig.MigrationParameters(idle_timeout=0, writers_after=writers_after)  # type: ignore[arg-type]
    disk = blkmig.MemoryBackend(bytearray(1000), name="d")
    migration = blkmig.outgoing([disk], f"exec:{reads}sleep 1000", parameters, on_progress=tell)
    with pytest.raises(errors.InDoubt if writers_after == "refuse" else errors.Cancelled), migration:
        migration.run()


def test_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(8 * MIB))
    with pytest.raises(errors.ChannelTimeout, match="took nothing"):
        blkmig.send([tmp_path / "d.raw"], "exec:exec sleep 1000", idle_timeout=IDLE)


def test_zero_waits_for_ever_and_hears_a_cancel(stream: bytes) -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener, connected(listener.uri) as sock:
        f = listener.accept(timeout=HANGS)
        f.set_idle_timeout(0.0)
        sock.sendall(b"\0")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(f.get_be64)
            with pytest.raises(concurrent.futures.TimeoutError):
                waiting.result(3 * IDLE)
            f.cancel()
            with pytest.raises(errors.Cancelled):
                waiting.result(HANGS)
        f.abort()
