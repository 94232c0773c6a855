# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong with a channel: peers that are absent or vanish, disks that are full, commands that fail."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import socket
from collections.abc import Iterator

import pytest
from fault_pairs import TIMEOUT, fail_to_answer, put_until_error, reset, tcp_pair

from blkmig import channel, errors


@contextlib.contextmanager
def full_listener(family: int, where: object) -> Iterator[socket.socket]:
    """A listening socket that takes nobody any more."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind(where)  # type: ignore[arg-type]
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(family))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield listener


def test_nobody_listens(tmp_path: pathlib.Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"tcp:127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(errors.ChannelError, match="start the receiving side first") as caught:
            channel.connect(uri, timeout=TIMEOUT)
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.uri == uri
    assert caught.value.doing == "connecting"
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert not isinstance(caught.value, errors.ChannelTimeout)
    with pytest.raises(errors.ChannelError, match="start the receiving side first") as caught:
        channel.connect(f"unix:{tmp_path}/none", timeout=TIMEOUT)
    assert caught.value.errno == errno.ENOENT


def test_a_receiver_that_does_not_answer() -> None:
    with (
        full_listener(socket.AF_INET, ("127.0.0.1", 0)) as listener,
        pytest.raises(errors.ChannelTimeout, match=r"no answer within 0\.2 s"),
    ):
        channel.connect(f"tcp:127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)


def test_a_unix_receiver_that_does_not_answer(tmp_path: pathlib.Path) -> None:
    with full_listener(socket.AF_UNIX, str(tmp_path / "s")), pytest.raises(errors.ChannelTimeout, match="no answer"):
        channel.connect(f"unix:{tmp_path}/s", timeout=0.1)


def test_one_address_that_never_answers_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_listener(socket.AF_INET, ("127.0.0.1", 0)) as silent, channel.listen("tcp:127.0.0.1:0") as listener:
        ports = [silent.getsockname()[1], int(listener.uri.rpartition(":")[2])]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        channel.connect("tcp:name:1", timeout=0.4).close()


def test_different_reasons_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_listener(socket.AF_INET, ("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))
        wheres = [silent.getsockname(), closed.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in wheres]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        with pytest.raises(errors.ChannelError, match=r"127\.0\.0\.1: .*127\.0\.0\.2: Connection refused"):
            channel.connect("tcp:name:1", timeout=0.2)


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(errors.ChannelError, match="the host 'nowhere' is not known"):
        channel.connect("tcp:nowhere:1", timeout=TIMEOUT)
    with pytest.raises(errors.ChannelError, match="the host 'nowhere' is not known"):
        channel.listen("tcp:nowhere:1")


def test_port_0_cannot_be_connected_to() -> None:
    with pytest.raises(errors.ParameterError, match="port"):
        channel.connect("tcp:localhost:0", timeout=TIMEOUT)


def test_a_port_in_use() -> None:
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        pytest.raises(errors.ChannelError, match="another program listens there already"),
    ):
        channel.listen(listener.uri)


def test_a_port_in_use_on_every_address() -> None:
    with channel.listen("tcp::0") as listener, pytest.raises(errors.ChannelError, match="another program"):
        channel.listen(listener.uri)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(errors.ChannelError, match="this machine does not have that address"):
        channel.listen("tcp:192.0.2.1:0")


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_nobody_connects(timeout: float) -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener, pytest.raises(errors.ChannelTimeout, match="nobody connected"):
        listener.accept(timeout=timeout)


def test_a_closed_listener_says_so() -> None:
    listener = channel.listen("tcp:127.0.0.1:0")
    listener.close()
    listener.close()
    with pytest.raises(errors.StateError):
        listener.accept(timeout=0)
    with pytest.raises(errors.ChannelError):
        channel.connect(listener.uri, timeout=TIMEOUT)


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_broken_peer_is_an_error_and_no_signal(kind: str, disposition: signal.Handlers) -> None:
    before = signal.signal(signal.SIGPIPE, disposition)
    try:
        ours, theirs = (end.detach() for end in socket.socketpair()) if kind == "socket" else reversed(os.pipe())
        f = channel.connect(f"fd:{ours}", timeout=TIMEOUT)
        os.close(theirs)
        error = put_until_error(f)
        assert error.errno == errno.EPIPE
        assert error.doing == "sending at byte 0"
        f.abort()
        os.close(ours)
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_pipe_whose_reader_has_gone_before() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    f = channel.connect(f"fd:{write_fd}", timeout=TIMEOUT)
    f.put_byte(0)
    with pytest.raises(errors.ChannelError, match="sending at byte 0: Broken pipe"):
        f.close()
    os.close(write_fd)


def test_a_reset_is_told_with_its_position_and_kept() -> None:
    with tcp_pair() as (f, peer):
        f.put_buffer(bytes(1000))
        f.flush()
        peer.skip(1000)
        reset(peer)
        first = put_until_error(f)
        assert first.doing.startswith("sending at byte ")
        assert int(first.doing.rpartition(" ")[2]) >= 1000
        assert first.errno in (errno.ECONNRESET, errno.EPIPE)
        for call in (f.flush, lambda: f.put_byte(0), f.wait_rate_limit):
            with pytest.raises(errors.ChannelError) as caught:
                call()
            assert caught.value is first
        with pytest.raises(errors.ChannelError) as caught:
            f.close()
        assert caught.value is first
        f.close()


def test_the_return_path_can_be_read_after_a_send_failed() -> None:
    with tcp_pair() as (f, peer):
        back = f.return_path()
        answer = peer.return_path()
        assert back is not None
        assert answer is not None
        answer.put_be32(42)
        answer.close()
        f.put_byte(0)
        f.flush()
        peer.skip(1)
        peer.close()
        put_until_error(f)
        assert back.get_be32() == 42


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_an_answer_that_cannot_be_sent_ends_the_link(tmp_path: pathlib.Path, scheme: str) -> None:
    """Both ends see it: who waits for the answer, and who would wait for what comes after it."""
    uri = "tcp:127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/s"
    with (
        channel.listen(uri) as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        fail_to_answer(f, peer)
        f.abort()
