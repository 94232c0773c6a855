# SPDX-License-Identifier: GPL-2.0-or-later
"""Cancelling wakes every blocked call, from any thread and signal handler; an interrupt leaves a closable file."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import inspect
import os
import pathlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
import tls
import tls_links
from processes import started as started

from blkmig import _core, channel, errors

TIMEOUT = 20
BLK = _core.BlockBuffer()
BLK.data[:] = bytes(range(256)) * 4096
BLK.filled(_core.BLOCK_SIZE)

POLL_CALLS = {"7", "73", "271", "168"}
"""poll and ppoll, as /proc names them on x86-64, arm64 and others."""


class Pair:
    """Both ends of a link, neither of which does anything unless the test makes it."""

    def __init__(self, kind: str, stack: contextlib.ExitStack, tmp_path: pathlib.Path) -> None:
        if kind == "pipe":
            read_fd, write_fd = os.pipe()
            stack.callback(os.close, read_fd)
            stack.callback(os.close, write_fd)
            self.output = channel.connect(f"fd:{write_fd}", timeout=TIMEOUT)
            self.input = channel.listen(f"fd:{read_fd}").accept(timeout=TIMEOUT)
        elif kind == "exec":
            self.output = channel.connect("exec:exec sleep 1000", timeout=TIMEOUT)
            self.input = channel.listen("exec:exec sleep 1000").accept(timeout=TIMEOUT)
        elif kind == "tls":
            certificates = tls.make_certificates(tmp_path / "pki", host="localhost")
            self.output, self.input = stack.enter_context(tls_links.pair(certificates))
        else:
            uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
            with channel.listen(uri) as listener:
                self.output = channel.connect(listener.uri, timeout=TIMEOUT)
                self.input = listener.accept(timeout=TIMEOUT)
        stack.callback(self.output.abort)
        stack.callback(self.input.abort)


@pytest.fixture(params=["tcp", "tls", "unix", "pipe", "exec"])
def pair(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(request.param, stack, tmp_path)


def put_for_ever(f: channel.OutputQEMUFile) -> None:
    while True:
        f.put_block(0, _core.FLAG_DEVICE_BLOCK, b"x", BLK)


def is_waiting(thread_id: int) -> bool:
    """Whether the thread stands in poll(); where the system does not tell, any moment is as good as another."""
    try:
        call = pathlib.Path(f"/proc/self/task/{thread_id}/syscall").read_text().split()[0]
    except OSError:
        return True
    return call in POLL_CALLS


def cancel_while_blocked(call: Callable[[], object], cancel: Callable[[], None]) -> BaseException:
    """Run `call` in a thread, cancel it while it waits, and return what it raised."""
    ids: list[int] = []

    def run() -> object:
        ids.append(threading.get_native_id())
        return call()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        while not future.done() and not (ids and is_waiting(ids[0])):
            pass
        cancel()
        error = future.exception(TIMEOUT)
    assert error is not None
    return error


@contextlib.contextmanager
def on_alarm(handler: Callable[[], None]) -> Iterator[None]:
    """Run `handler` in signal handlers, again and again, so that it does not matter when the first one comes."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- from another thread ---------------------------------------------------------------------------------------------


def test_a_blocked_send(pair: Pair) -> None:
    error = cancel_while_blocked(lambda: put_for_ever(pair.output), pair.output.cancel)
    assert isinstance(error, errors.Cancelled)
    assert pair.output.uri in str(error)


@pytest.mark.parametrize("call", ["get_byte", "next_run", "at_eof", "get_block", "get_some", "wait_readable", "skip"])
def test_a_blocked_receive(pair: Pair, call: str) -> None:
    arguments = {"get_block": (BLK,), "get_some": (1,), "wait_readable": (TIMEOUT,), "skip": (1,)}.get(call, ())
    method = getattr(pair.input, call)
    error = cancel_while_blocked(lambda: method(*arguments), pair.input.cancel)
    assert isinstance(error, errors.Cancelled)


@pytest.mark.parametrize("pair", ["exec"], indirect=True)
def test_a_close_that_waits_for_a_command(started: list[subprocess.Popen[bytes]], pair: Pair) -> None:
    error = cancel_while_blocked(pair.output.close, pair.output.cancel)
    assert isinstance(error, errors.Cancelled)
    assert started[0].returncode is not None, "the command was ended"
    pair.output.close()


def test_a_blocked_accept(tmp_path: pathlib.Path) -> None:
    for uri in ("tcp:127.0.0.1:0", f"unix:{tmp_path}/s"):
        with channel.listen(uri) as listener:
            error = cancel_while_blocked(lambda: listener.accept(timeout=None), listener.cancel)
            assert isinstance(error, errors.Cancelled)
            with pytest.raises(errors.Cancelled):
                listener.accept(timeout=0)


@pytest.mark.parametrize("kind", ["tcp", "unix", "named pipe"])
def test_a_blocked_connect(tmp_path: pathlib.Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "named pipe":
            os.mkfifo(tmp_path / "pipe")
            connector = channel.Connector(f"file:{tmp_path}/pipe")
        else:
            family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
            where = ("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "s")
            full = stack.enter_context(socket.socket(family))
            full.bind(where)
            full.listen(0)
            for _ in range(4):
                client = stack.enter_context(socket.socket(family))
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            tcp = f"tcp:127.0.0.1:{full.getsockname()[1]}"
            connector = channel.Connector(tcp if kind == "tcp" else f"unix:{tmp_path}/s")
        error = cancel_while_blocked(lambda: connector.connect(timeout=1000), connector.cancel)
        assert isinstance(error, errors.Cancelled)
        with pytest.raises(errors.Cancelled):
            connector.connect(timeout=TIMEOUT)


def test_a_cancelled_connector_cancels_its_stream(tmp_path: pathlib.Path) -> None:
    connector = channel.Connector(f"file:{tmp_path}/x")
    f = connector.connect(timeout=TIMEOUT)
    connector.cancel()
    with pytest.raises(errors.Cancelled):
        f.put_byte(0)
    f.abort()


@pytest.mark.parametrize("put", ["put_byte", "put_buffer", "put_block", "put_zero_records", "wait_rate_limit"])
def test_a_wait_for_the_rate_limit(tmp_path: pathlib.Path, put: str) -> None:
    f = channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT)
    f.set_rate_limit(1)
    f.put_buffer(bytes(512))
    arguments = {
        "put_byte": (0,),
        "put_buffer": (bytes(1 << 20),),
        "put_block": (0, 1, b"x", BLK),
        "put_zero_records": (0, 1 << 20, b"x"),
    }.get(put, ())
    error = cancel_while_blocked(lambda: getattr(f, put)(*arguments), f.cancel)
    assert isinstance(error, errors.Cancelled)
    f.abort()


def test_a_changed_limit_wakes_a_waiting_sender(tmp_path: pathlib.Path) -> None:
    with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f, concurrent.futures.ThreadPoolExecutor(1) as pool:
        f.set_rate_limit(1)
        f.put_buffer(bytes(512))
        future = pool.submit(f.put_block, 0, 1, b"x", BLK)
        assert not future.done()
        f.set_rate_limit(0)
        future.result(TIMEOUT)


@pytest.mark.parametrize("pair", ["tcp", "unix"], indirect=True)
def test_cancelling_one_direction_cancels_the_other(pair: Pair) -> None:
    back = pair.output.return_path()
    assert back is not None
    error = cancel_while_blocked(back.get_byte, pair.output.cancel)
    assert isinstance(error, errors.Cancelled)
    with pytest.raises(errors.Cancelled):
        pair.output.put_byte(0)


# -- before and after ------------------------------------------------------------------------------------------------


def test_every_later_call_is_cancelled(pair: Pair) -> None:
    output, source = pair.output, pair.input
    output.cancel()
    output.cancel()
    source.cancel()
    calls: list[Callable[[], object]] = [
        lambda: output.put_byte(0),
        lambda: output.put_be16(0),
        lambda: output.put_be32(0),
        lambda: output.put_be64(0),
        lambda: output.put_buffer(b"x"),
        lambda: output.put_block_header(0, 1, b"x"),
        lambda: output.put_zero_records(0, 1, b"x"),
        lambda: output.put_block(0, 1, b"x", BLK),
        output.flush,
        output.wait_rate_limit,
        output.return_path,
        source.get_byte,
        source.get_be16,
        source.get_be32,
        source.get_be64,
        lambda: source.get_buffer(1),
        lambda: source.get_some(1),
        source.peek_byte,
        lambda: source.skip(1),
        source.next_run,
        lambda: source.get_block(BLK),
        source.at_eof,
        lambda: source.wait_readable(0),
        source.return_path,
    ]
    for call in calls:
        with pytest.raises(errors.Cancelled):
            call()
    with pytest.raises(errors.Cancelled):
        output.close()
    output.close()
    output.abort()
    source.abort()
    source.close()
    output.cancel()


def test_what_has_arrived_is_not_read_after_cancelling(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    with channel.listen(f"file:{tmp_path}/x").accept(timeout=TIMEOUT) as f:
        f.get_byte()
        f.cancel()
        with pytest.raises(errors.Cancelled):
            f.get_byte()
        f.abort()


def test_a_late_cancel_writes_into_nobodys_file(tmp_path: pathlib.Path) -> None:
    f = channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT)
    f.close()
    with contextlib.ExitStack() as stack:
        for number in range(20):
            stack.enter_context((tmp_path / str(number)).open("wb"))
        f.cancel()
    assert all((tmp_path / str(number)).read_bytes() == b"" for number in range(20))


# -- from signal handlers --------------------------------------------------------------------------------------------


def test_a_signal_handler_cancels_a_send(pair: Pair) -> None:
    with on_alarm(pair.output.cancel), pytest.raises(errors.Cancelled):
        put_for_ever(pair.output)


def test_a_signal_handler_cancels_a_receive(pair: Pair) -> None:
    with on_alarm(pair.input.cancel), pytest.raises(errors.Cancelled):
        pair.input.get_byte()


def test_a_signal_handler_cancels_an_accept() -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener, on_alarm(listener.cancel), pytest.raises(errors.Cancelled):
        listener.accept(timeout=None)


def test_a_signal_that_means_nothing_is_passed_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.ExitStack() as stack:
        f = stack.enter_context(channel.listen(f"fd:{ours.fileno()}").accept(timeout=TIMEOUT))
        seen: list[int] = []

        def tick() -> None:
            seen.append(0)
            if len(seen) == 3:
                theirs.sendall(b"x")

        with on_alarm(tick):
            assert f.get_byte() == ord("x")
        assert len(seen) >= 3


def interrupt() -> None:
    """Raise in the midst of a transfer; before and after it, wait for the next signal."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in ("put_block", "get_be64"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt
        frame = frame.f_back


def test_an_interrupted_send_is_no_stream_any_more(pair: Pair) -> None:
    f = pair.output
    with on_alarm(interrupt), pytest.raises(KeyboardInterrupt):
        put_for_ever(f)
    with pytest.raises(errors.ChannelError, match="interrupted"):
        f.put_byte(0)
    with pytest.raises(errors.ChannelError, match="interrupted"):
        f.close()
    f.close()
    f.abort()


def test_an_interrupted_send_has_sent_a_beginning_of_the_truth() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        f = channel.connect(f"fd:{ours.fileno()}", timeout=TIMEOUT)
        with on_alarm(interrupt), pytest.raises(KeyboardInterrupt):
            put_for_ever(f)
        sent = f.transferred
        f.abort()
        ours.shutdown(socket.SHUT_WR)
        arrived = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
    record = b"\0" * 7 + b"\1\1x" + bytes(BLK.data)
    assert len(arrived) == sent
    assert arrived == (record * (sent // len(record) + 1))[:sent]


def test_an_interrupted_receive_can_be_closed(pair: Pair) -> None:
    with on_alarm(interrupt), pytest.raises(KeyboardInterrupt):
        pair.input.get_be64()
    with pytest.raises(errors.ChannelError, match="interrupted"):
        pair.input.get_byte()
    pair.input.abort()
    pair.input.close()


def test_a_pipe_that_cannot_be_opened_again_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError

    read_fd, write_fd = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        f = channel.connect(f"fd:{write_fd}", timeout=TIMEOUT)
    assert not fcntl.fcntl(write_fd, fcntl.F_GETFL) & os.O_NONBLOCK
    f.put_buffer(b"abc")
    f.close()
    assert os.read(read_fd, 10) == b"abc"
    os.close(read_fd)
    os.close(write_fd)
