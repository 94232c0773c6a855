# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of address, both directions: what is put comes out, and the ends behave."""

from __future__ import annotations

import errno
import os
import pathlib
import socket

import descriptors
import pytest
from everything import TIMEOUT, check_everything, in_background, ipv6_or_skip, put_everything
from everything import listener as listener

from blkmig import channel, errors
from blkmig.channel import link, sockets


def test_a_socket_carries_everything(listener: channel.Listener) -> None:
    def receive() -> int:
        with listener.accept(timeout=TIMEOUT) as f:
            nbytes = check_everything(f)
            assert f.at_eof()
            assert f.wait_readable(0), "the end of the stream counts as readable"
            return nbytes

    with in_background(receive) as received, channel.connect(listener.uri, timeout=TIMEOUT) as f:
        nbytes = put_everything(f)
        assert f.transferred <= f.position
        f.flush()
        assert f.transferred == f.position == nbytes
        f.close()
        assert received.result(TIMEOUT) == nbytes


def test_the_return_path_outlives_the_stream(listener: channel.Listener) -> None:
    def receive() -> None:
        with listener.accept(timeout=TIMEOUT) as f:
            back = f.return_path()
            assert back is not None
            assert f.return_path() is back
            assert f.get_be64() == 1
            assert f.at_eof()
            f.close()
            with back:
                back.put_be32(2)

    with in_background(receive), channel.connect(listener.uri, timeout=TIMEOUT) as f:
        back = f.return_path()
        assert back is not None
        assert f.return_path() is back
        assert not back.wait_readable(0)
        f.put_be64(1)
        f.close()
        assert back.wait_readable(TIMEOUT)
        assert back.get_be32() == 2
        assert back.at_eof()
        back.close()


def test_abort_ends_both_directions(listener: channel.Listener) -> None:
    with channel.connect(listener.uri, timeout=TIMEOUT) as f, listener.accept(timeout=TIMEOUT) as peer:
        back = f.return_path()
        assert back is not None
        f.put_be64(1)
        f.abort()
        f.abort()
        if "tcp:" in listener.uri:  # A2: a sender that gives up is not one that has come to the end
            with pytest.raises(errors.ChannelError, match="reset"):
                peer.at_eof()
        else:
            assert peer.at_eof(), "what was staged is dropped"
        with pytest.raises(errors.StateError):
            back.get_byte()


def test_one_listener_accepts_again(listener: channel.Listener) -> None:
    for number in range(3):
        with channel.connect(listener.uri, timeout=TIMEOUT) as f:
            f.put_byte(number)
        with listener.accept(timeout=TIMEOUT) as peer:
            assert peer.get_byte() == number


def test_a_limited_socket_carries_everything(listener: channel.Listener) -> None:
    def receive() -> int:
        with listener.accept(timeout=TIMEOUT) as f:
            return check_everything(f)

    with in_background(receive), channel.connect(listener.uri, timeout=TIMEOUT) as f:
        f.set_rate_limit(100 << 20)
        put_everything(f)
        f.close()


def test_an_empty_host_takes_both_families() -> None:
    ipv6_or_skip()
    with channel.listen("tcp::0") as listener:
        port = listener.uri.rpartition(":")[2]
        assert listener.uri == f"tcp::{port}"
        assert port != "0"
        for host in ("127.0.0.1", "[::1]"):
            channel.connect(f"tcp:{host}:{port}", timeout=TIMEOUT).close()
            with listener.accept(timeout=TIMEOUT) as peer:
                assert peer.uri.startswith(f"tcp:{host}:")
                assert peer.at_eof()


def test_tcp_options() -> None:
    with (
        channel.listen("tcp:127.0.0.1:0") as listener,
        channel.connect(listener.uri, timeout=TIMEOUT) as f,
        listener.accept(timeout=TIMEOUT) as peer,
    ):
        for end in (f, peer):
            with descriptors.socket_to(end.uri) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_connection_within_this_machine_begins_without_pacing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has begun with BBR is paced to the end, so what counts is what is set before."""
    before: list[bytes] = []

    class Socket(socket.socket):
        def connect_ex(self, address: tuple[str, int]) -> int:
            before.append(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0"))
            return super().connect_ex(address)

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as untouched:
        default = untouched.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        address, port = server.getsockname()
        monkeypatch.setattr(socket, "socket", Socket)
        channel.connect(f"tcp:{address}:{port}", timeout=TIMEOUT).close()
        monkeypatch.setattr(link, "is_local", lambda sock: False)
        channel.connect(f"tcp:{address}:{port}", timeout=TIMEOUT).close()
    assert before == [b"reno", default]


@pytest.mark.parametrize("family", ["", "6"])
def test_little_waits_in_a_socket_within_this_machine(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    host = "[::1]" if family else "127.0.0.1"
    wanted = 2 * sockets.LOCAL_BUFFER
    most = 2 * int(pathlib.Path("/proc/sys/net/core/rmem_max").read_text())

    def receive_buffer() -> int:
        with (
            channel.listen(f"tcp:{host}:0") as listener,
            channel.connect(listener.uri, timeout=TIMEOUT),
            listener.accept(timeout=TIMEOUT) as peer,
        ):
            with descriptors.socket_to(peer.uri) as sock:
                return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    assert (receive_buffer() == wanted) == (most >= wanted)
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "LOCAL_BUFFER", most)  # twice of what may be had
        assert receive_buffer() < most
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "can_have_buffer", no_descriptor)
        assert receive_buffer() < wanted, "a connection is not lost for that"
    monkeypatch.setattr(link, "is_local", lambda sock: False)
    assert receive_buffer() < wanted, "the kernel's affair on other links"


def no_descriptor(family: int, nbytes: int) -> bool:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = int(listener.uri.rpartition(":")[2])
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed.getsockname()[1])),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        channel.connect("tcp:name:1", timeout=TIMEOUT).close()
        listener.accept(timeout=TIMEOUT).close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found[:1])
        with pytest.raises(errors.ChannelError, match=r"connecting: Connection refused .*tcp:name:1"):
            channel.connect("tcp:name:1", timeout=TIMEOUT)


def test_a_listening_port_can_be_taken_again_at_once() -> None:
    with channel.listen("tcp:127.0.0.1:0") as listener:
        uri = listener.uri
        f = channel.connect(uri, timeout=TIMEOUT)
        peer = listener.accept(timeout=TIMEOUT)
        peer.close()
        f.abort()
    channel.listen(uri).close()


def test_a_stale_socket_file_is_replaced(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    with channel.listen(f"unix:{path}") as listener:
        channel.connect(listener.uri, timeout=TIMEOUT).close()
        listener.accept(timeout=TIMEOUT).close()
    assert not path.exists(), "our socket file goes with us"


def test_a_socket_in_use_is_left_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    with channel.listen(f"unix:{path}") as listener:
        with pytest.raises(errors.ChannelError, match="another program listens"):
            channel.listen(f"unix:{path}")
        with channel.connect(listener.uri, timeout=TIMEOUT) as f:
            f.put_byte(7)
        with listener.accept(timeout=TIMEOUT) as peer:
            assert peer.get_byte() == 7, "the owner must not notice that somebody asked"


def test_a_file_in_the_way_is_left_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with pytest.raises(errors.ChannelError, match="not a socket"):
        channel.listen(f"unix:{path}")
    assert path.read_bytes() == b"precious"


def test_a_socket_file_of_somebody_else_is_not_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    first = channel.listen(f"unix:{path}")
    path.unlink()
    with channel.listen(f"unix:{path}"):
        first.close()
        assert path.exists()
        first.close()
    assert not path.exists()
