# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of address, both directions: what is put comes out, and the ends behave."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import gc
import os
import pathlib
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import descriptors
import pytest

from blkmig import _core, channel, errors
from blkmig.channel import link, sockets

NAME = b"drive0"
TIMEOUT = 20


def block_of(seed: int) -> _core.BlockBuffer:
    blk = _core.BlockBuffer()
    blk.data[:] = bytes((seed + i) % 251 for i in range(256)) * 4096
    blk.filled(_core.BLOCK_SIZE)
    return blk


BLOCKS = [block_of(seed) for seed in range(3)]


def put_everything(f: channel.OutputQEMUFile) -> int:
    """Put one of each item; returns the bytes of it."""
    f.put_byte(0x12)
    f.put_be16(0x3456)
    f.put_be32(0x789ABCDE)
    f.put_be64(1 << 63 | 5)
    f.put_buffer(b"some bytes")
    f.put_buffer(memoryview(bytes(range(256)) * 1024))
    for index, blk in enumerate(BLOCKS):
        f.put_block(index * 2048, _core.FLAG_DEVICE_BLOCK, NAME, blk)
    f.put_zero_records(3 * 2048, 10_000, NAME)
    f.put_block_header(7, _core.FLAG_DEVICE_BLOCK | _core.FLAG_ZERO_BLOCK, b"other")
    f.put_be64(_core.FLAG_EOS)
    return f.position


def check_everything(f: channel.InputQEMUFile) -> int:
    """Get what put_everything puts; returns the bytes of it."""
    assert f.peek_byte() == 0x12
    assert f.get_byte() == 0x12
    assert f.get_be16() == 0x3456
    assert f.get_be32() == 0x789ABCDE
    assert f.get_be64() == 1 << 63 | 5
    assert f.get_buffer(10) == b"some bytes"
    assert f.get_buffer(1024) == bytes(range(256)) * 4
    f.skip(255 * 1024)
    blk = _core.BlockBuffer()
    for index, sent in enumerate(BLOCKS):
        assert f.next_run() == (_core.FLAG_DEVICE_BLOCK, NAME, index * 2048, 1)
        f.get_block(blk)
        assert blk.data == sent.data
    sector, zeros = 3 * 2048, 0
    while zeros < 10_000:
        flags, name, at, count = f.next_run()
        assert (flags, name, at) == (9, NAME, sector)
        sector, zeros = sector + count * 2048, zeros + count
    assert f.next_run() == (9, b"other", 7, 1)
    assert f.next_run() == (_core.FLAG_EOS, b"", 0, 1)
    return f.position


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[concurrent.futures.Future[object]]:
    """Do `work` in a thread; what it raised is raised when its result is asked for, and at the end."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future
        future.result(TIMEOUT)


def ipv6_or_skip() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


# -- tcp and unix ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["tcp:127.0.0.1:0", "tcp:localhost:0", "tcp::0", "tcp:[::1]:0", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[channel.Listener]:
    if "::1" in request.param:
        ipv6_or_skip()
    uri = f"unix:{tmp_path}/a,b:c" if request.param == "unix" else request.param
    with channel.listen(uri) as made:
        yield made


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
            sock = end._transport.socket
            assert sock is not None
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not os.get_inheritable(sock.fileno())


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
            assert peer._transport.socket is not None
            return peer._transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    assert (receive_buffer() == wanted) == (most >= wanted)
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "LOCAL_BUFFER", most)  # twice of what may be had
        assert receive_buffer() < most
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "_can_have_buffer", no_descriptor)
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


# -- the socket file -------------------------------------------------------------------------------------------------


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


# -- commands --------------------------------------------------------------------------------------------------------


def test_commands_carry_everything(tmp_path: pathlib.Path) -> None:
    path = shlex.quote(str(tmp_path / "it's a stream"))
    with channel.connect(f"exec:gzip -1c > {path}", timeout=TIMEOUT) as f:
        nbytes = put_everything(f)
        assert f.return_path() is None
    with channel.listen(f"exec:gzip -dc {path}") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert check_everything(f) == nbytes
        assert f.at_eof()
        assert f.return_path() is None


def test_a_command_prints_to_standard_error_only(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with channel.connect("exec:cat > /dev/null; echo done", timeout=TIMEOUT) as f:
        f.put_byte(1)
    assert capfd.readouterr() == ("", "done\n")


def test_a_receiving_command_has_nothing_to_read() -> None:
    with channel.listen("exec:wc -c") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_some(10) == b"0\n"


def test_a_command_may_write_more_than_is_wanted() -> None:
    with channel.listen("exec:cat /dev/zero") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_buffer(3) == bytes(3)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_carries_everything(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a,b"
    uri = f"file:{tmp_path}/a,,b"
    path.write_bytes(bytes(100 << 20))
    with channel.connect(uri, timeout=TIMEOUT) as f:
        nbytes = put_everything(f)
    assert path.stat().st_size == nbytes, "what was there before is gone"
    with channel.listen(uri) as listener, listener.accept(timeout=TIMEOUT) as f:
        assert check_everything(f) == nbytes
        assert f.at_eof()


def test_a_new_file_is_private(tmp_path: pathlib.Path) -> None:
    channel.connect(f"file:{tmp_path}/new", timeout=TIMEOUT).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_an_offset_keeps_what_stands_before_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"header..old stream that was longer")
    with channel.connect(f"file:{path},offset=8", timeout=TIMEOUT) as f:
        f.put_buffer(b"new")
    assert path.read_bytes() == b"header..new"
    with channel.listen(f"file:{path},offset=8") as listener, listener.accept(timeout=TIMEOUT) as f:
        assert f.get_buffer(3) == b"new"
        assert f.position == 3
        assert f.at_eof()


def test_a_closed_file_is_on_the_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
        f.put_be64(0)
    assert synced == [8]


def test_a_named_pipe_meets_both_ends(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    uri = f"file:{tmp_path}/pipe"

    def receive() -> int:
        with channel.listen(uri) as listener, listener.accept(timeout=TIMEOUT) as f:
            return check_everything(f)

    with in_background(receive), channel.connect(uri, timeout=TIMEOUT) as f:
        put_everything(f)
        f.close()


def test_a_named_pipe_without_a_reader_times_out(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.ChannelTimeout, match="nobody reads"):
        channel.connect(f"file:{tmp_path}/pipe", timeout=0.05)


# -- descriptors -----------------------------------------------------------------------------------------------------


def test_a_pipe_carries_everything_and_keeps_its_flags() -> None:
    read_fd, write_fd = os.pipe()
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)]

    def receive() -> int:
        with channel.listen(f"fd:{read_fd}") as listener, listener.accept(timeout=TIMEOUT) as f:
            return check_everything(f)

    with in_background(receive), channel.connect(f"fd:{write_fd}", timeout=TIMEOUT) as f:
        put_everything(f)
        assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)] == before
        assert f.return_path() is None
        f.close()
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (read_fd, write_fd)] == before
    os.close(read_fd)
    os.close(write_fd)


def test_a_socket_descriptor_goes_both_ways() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def receive() -> int:
            with channel.listen(f"fd:{theirs.fileno()}") as listener, listener.accept(timeout=TIMEOUT) as f:
                back = f.return_path()
                assert back is not None
                nbytes = check_everything(f)
                assert f.at_eof(), "the end is said although the descriptor stays open"
                with back:
                    back.put_be64(nbytes)
                return nbytes

        with in_background(receive), channel.connect(f"fd:{ours.fileno()}", timeout=TIMEOUT) as f:
            back = f.return_path()
            assert back is not None
            nbytes = put_everything(f)
            f.close()
            assert back.get_be64() == nbytes
            back.close()
        assert ours.getblocking()
        os.fstat(ours.fileno())


def test_a_file_descriptor_goes_on_where_it_stands(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        file.write(b"head")
        with channel.connect(f"fd:{file.fileno()}", timeout=TIMEOUT) as f:
            f.put_buffer(b"stream")
        file.write(b"tail")
        assert (tmp_path / "f").read_bytes() == b"headstreamtail"


SCRIPT = """
import sys
from blkmig import channel
if sys.argv[1] == "send":
    with channel.connect("-", timeout=1) as f:
        f.put_buffer(b"x" * 200000)
else:
    with channel.listen("-") as listener, listener.accept(timeout=1) as f:
        print(len(f.get_buffer(200000)), f.at_eof())
"""


def test_the_standard_streams() -> None:
    def run(verb: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, verb]

    sender = subprocess.Popen(run("send"), stdout=subprocess.PIPE)
    receiver = subprocess.run(run("receive"), stdin=sender.stdout, capture_output=True, timeout=60, check=True)
    assert sender.stdout is not None
    sender.stdout.close()
    assert sender.wait(60) == 0
    assert receiver.stdout == b"200000 True\n"


def test_a_terminal_is_refused() -> None:
    primary, secondary = os.openpty()
    for open_it in (
        lambda: channel.connect(f"fd:{secondary}", timeout=1),
        lambda: channel.listen(f"fd:{secondary}").accept(timeout=1),
    ):
        with pytest.raises(errors.ParameterError, match="terminal"):
            open_it()
    os.close(primary)
    os.close(secondary)


def test_nothing_leaks(tmp_path: pathlib.Path) -> None:
    def everything() -> None:
        with channel.listen(f"unix:{tmp_path}/s") as listener:
            f = channel.connect(listener.uri, timeout=TIMEOUT)
            peer = listener.accept(timeout=TIMEOUT)
            for end in (f, peer):
                back = end.return_path()
                assert back is not None
                end.close()
                back.close()
        channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT).close()
        channel.connect("exec:cat >/dev/null", timeout=TIMEOUT).close()
        channel.connect("exec:cat >/dev/null", timeout=TIMEOUT).abort()
        for bad in ("fd:99999", f"file:{tmp_path}", f"unix:{tmp_path}/none", "tcp:127.0.0.1:1"):
            with pytest.raises(errors.ChannelError):
                channel.connect(bad, timeout=TIMEOUT)

    everything()
    with descriptors.given_back():
        everything()
        gc.collect()
    assert threading.active_count() == 1
