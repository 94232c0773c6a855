# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that stop, chatter, lie or leave, at each phase of a sender."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import socket
import struct
import threading
from pathlib import Path

import pytest
from hostile_peers import HANGS, MIB, Act, acting, answers, swallow
from hostile_peers import stream as stream
from receivers import connected

import blkmig
from blkmig import channel, errors, stats

IDLE = 0.1
ASKED = 0.5
"""Seconds that a target has to answer at first; none of these says which sections it takes."""

PACE = 0.005
"""Seconds between two bytes of a peer that sends or takes one at a time: 20 in an idle time-out, of 4096."""


def message(kind: int, value: int) -> bytes:
    return struct.pack(">HHI", kind, 4, value)


def send_to(act: Act, tmp_path: Path, *, kind: str = "tcp", size: int = 2 * MIB, idle: float = HANGS) -> None:
    """Run a sender whose target acts; raises what the sender raises."""
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(size))
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        listener = stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0) if kind == "tcp" else f"{tmp_path}/s")
        listener.listen()
        uri = f"tcp:127.0.0.1:{listener.getsockname()[1]}" if kind == "tcp" else f"unix:{tmp_path}/s"

        def target(over: threading.Event) -> None:
            with listener.accept()[0] as sock:
                act(sock, over)

        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        stack.enter_context(acting(target))
        sending = pool.submit(blkmig.send, [tmp_path / "d.raw"], uri, idle_timeout=idle, connect_timeout=ASKED)
        sending.result(HANGS)


def takes_nothing(sock: socket.socket, over: threading.Event) -> None:
    over.wait()


def takes_a_byte_at_a_time(sock: socket.socket, over: threading.Event) -> None:
    while not over.wait(PACE) and sock.recv(1):
        pass


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("act", [takes_nothing, takes_a_byte_at_a_time])
def test_a_target_that_does_not_read(act: Act, kind: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ChannelTimeout, match="took nothing"):
        send_to(act, tmp_path, kind=kind, size=24 * MIB, idle=IDLE)


def says_nothing(sock: socket.socket, over: threading.Event) -> None:
    swallow(sock)
    over.wait()


def drips_a_word(sock: socket.socket, over: threading.Event) -> None:
    swallow(sock)
    for byte in message(2, 1) * 1000:
        if over.wait(PACE):
            return
        sock.sendall(bytes([byte]))


def lives_for_ever(sock: socket.socket, over: threading.Event) -> None:
    swallow(sock)
    while not over.wait(IDLE / 4):
        sock.sendall(message(2, 1))


@pytest.mark.parametrize("act", [says_nothing, drips_a_word, lives_for_ever])
def test_a_target_whose_word_never_comes(act: Act, tmp_path: Path) -> None:
    with pytest.raises(errors.ChannelTimeout, match=r"said nothing|no further"):
        send_to(act, tmp_path, idle=IDLE)


def chatters(sock: socket.socket, over: threading.Event) -> None:
    swallow(sock)
    for value in range(1, 1 << 30):
        sock.sendall(b"".join(message(2, value * 100 + i) for i in range(100)))


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
        send_to(answers(message(1, status), after), tmp_path, size=24 * MIB)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("after", PHASES[:-1])
def test_the_reason_of_a_target_that_goes_away(after: int, kind: str, tmp_path: Path) -> None:
    """C11: it comes before "broken pipe"."""

    def act(sock: socket.socket, over: threading.Event) -> None:
        swallow(sock, after)
        sock.sendall(message(1, 28))
        sock.shutdown(socket.SHUT_WR)
        swallow(sock, 16 * MIB)

    with pytest.raises(errors.MigrationError, match="No space left on device"):
        send_to(act, tmp_path, kind=kind, size=24 * MIB)


@pytest.mark.parametrize("after", PHASES)
@pytest.mark.parametrize("how", ["half-closed", "gone"])
def test_a_target_that_leaves(how: str, after: int | None, tmp_path: Path) -> None:
    def act(sock: socket.socket, over: threading.Event) -> None:
        swallow(sock, after)
        if how == "half-closed":
            sock.shutdown(socket.SHUT_WR)
            swallow(sock)
            over.wait()

    with pytest.raises(errors.ChannelError) as caught:
        send_to(act, tmp_path, size=8 * MIB)
    assert caught.value.exit_code == 5


def test_a_target_that_keeps_the_link_open_after_its_word(tmp_path: Path) -> None:
    def act(sock: socket.socket, over: threading.Event) -> None:
        swallow(sock)
        sock.sendall(message(1, 0))
        over.wait()

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
