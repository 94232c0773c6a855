# SPDX-License-Identifier: GPL-2.0-or-later
"""B3, A9: peers that mean harm, or are broken, at each phase of both ends; each is ended by a bound.

No test here waits for a moment to pass: peers act until their link is gone, and the end under test must end by itself.
Time-outs are tiny. `--long` goes through more places of the stream at which a source turns bad.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blkmig
from blkmig import channel, errors
from blkmig.savevm import drain

MIB = 1 << 20
IDLE = 0.1
HANGS = 30
"""Seconds after which an end that should have ended is said to hang."""

PACE = 0.005
"""Seconds between two bytes of a peer that sends or takes one at a time: 20 in an idle time-out, of 4096."""

PING = b"\x08\0\2\0\4\0\0\0\7"
OPEN_RETURN_PATH = b"\x08\0\1\0\0"
EMPTY_PART = b"\2\0\0\0\1" + struct.pack(">Q", 2) + b"\x7e\0\0\0\1"

Act = Callable[[socket.socket, threading.Event], None]


def message(kind: int, value: int) -> bytes:
    return struct.pack(">HHI", kind, 4, value)


@contextlib.contextmanager
def acting(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a peer act in a thread for the length of the ``with``; that its link goes is no error of the peer's."""
    over = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            act(over)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(HANGS)
        assert not thread.is_alive()


# -- hostile sources -------------------------------------------------------------------------------------------------


def silent(sock: socket.socket, over: threading.Event) -> None:
    over.wait()


def dripping(sock: socket.socket, over: threading.Event) -> None:
    while not over.wait(PACE):
        sock.sendall(b"\0")


def pinging(sock: socket.socket, over: threading.Event) -> None:
    """Send PINGs as fast as they are taken, and read none of the answers."""
    while not over.is_set():
        sock.sendall(PING * 1000)


def pinging_slowly(sock: socket.socket, over: threading.Event) -> None:
    while not over.wait(PACE):
        sock.sendall(PING)


def empty_sections(sock: socket.socket, over: threading.Event) -> None:
    while not over.is_set():
        sock.sendall(EMPTY_PART * 1000)


def progress_records(sock: socket.socket, over: threading.Event) -> None:
    """Begin a section and fill it with nothing but PROGRESS."""
    sock.sendall(EMPTY_PART[:5])
    while not over.is_set():
        sock.sendall(struct.pack(">Q", 5 << 9 | 4) * 1000)


def half_closed(sock: socket.socket, over: threading.Event) -> None:
    sock.shutdown(socket.SHUT_WR)
    over.wait()


def gone(sock: socket.socket, over: threading.Event) -> None:
    sock.close()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good stream of a disk of 3 MiB; the source has asked for an answer."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "d.raw").write_bytes(random.Random(1).randbytes(3 * MIB))
    blkmig.send([folder / "d.raw"], f"file:{folder}/stream")
    whole = (folder / "stream").read_bytes()
    first = whole.index(b"\1\0\0\0\1\5block")
    return whole[:first] + OPEN_RETURN_PATH + whole[first:]


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


def receive_from(act: Act, said: bytes, tmp_path: Path, kind: str = "tcp", *, idle: float = IDLE) -> None:
    """Run a receiver whose source says `said` and then acts; raises what the receiver raises."""
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    parameters = blkmig.IncomingParameters(idle_timeout=idle, accept_timeout=5 * IDLE if idle == IDLE else HANGS)
    incoming = blkmig.IncomingMigration(uri, {"d": tmp_path / "copy.raw"}, parameters)
    with incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        sock = connected(incoming.uri)

        def source(over: threading.Event) -> None:
            sock.sendall(said)
            act(sock, over)

        with sock, acting(source):
            running = pool.submit(incoming.run)
            try:
                running.result(HANGS)
            finally:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def connected(uri: str) -> socket.socket:
    scheme, _, rest = uri.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(rest)
        return sock
    host, _, port = rest.rpartition(":")
    return socket.create_connection((host, int(port)))


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
def test_a_source_that_stops_ends_the_receiver(act: Act, phase: str, stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(ENDINGS):
        receive_from(act, cut_at(stream, phase), tmp_path, "unix" if phase == "header" else "tcp")


@pytest.mark.parametrize("act", [pinging, pinging_slowly, empty_sections, progress_records])
@pytest.mark.usefixtures("short_waits")
def test_chatter_is_no_payload(act: Act, stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(ENDINGS, match=r"nothing of|took nothing|4 MiB of messages"):
        receive_from(act, cut_at(stream, "before the end")[: -len(EMPTY_PART) - 8], tmp_path)


@pytest.mark.parametrize("phase", ["connected", "half a header"])
@pytest.mark.parametrize("act", [silent, dripping, half_closed, gone])
def test_who_says_nothing_is_waited_for_no_longer_than_asked(
    act: Act, phase: str, stream: bytes, tmp_path: Path
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

    def slowly(sock: socket.socket, over: threading.Event) -> None:
        rest = memoryview(stream)[8:]
        slow, rest = rest[: 56 << 10], rest[56 << 10 :]
        for start in range(0, len(slow), 8192):
            sock.sendall(slow[start : start + 8192])
            over.wait(0.2)
        sock.sendall(rest)
        sock.shutdown(socket.SHUT_WR)
        over.wait()

    receive_from(slowly, stream[:8], tmp_path, idle=0.5)


# -- hostile targets -------------------------------------------------------------------------------------------------


def swallow(sock: socket.socket, nbytes: int | None = None) -> None:
    """Read `nbytes`, or until a description has come: then the source has sent everything."""
    seen, count = b"", 0
    while (nbytes is None or count < nbytes) and (piece := sock.recv(1 << 16)):
        count += len(piece)
        seen = seen[-64:] + piece
        if nbytes is None and seen.endswith(b"}") and b'"blkmig"' in seen:
            return


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
        sending = pool.submit(blkmig.send, [tmp_path / "d.raw"], uri, idle_timeout=idle)
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


def answers(word: bytes, after: int | None) -> Act:
    """Return what says `word` when it has read `after` bytes, and reads on."""

    def act(sock: socket.socket, over: threading.Event) -> None:
        swallow(sock, after)
        sock.sendall(word)
        swallow(sock)
        over.wait()

    return act


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
