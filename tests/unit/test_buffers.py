# SPDX-License-Identifier: GPL-2.0-or-later
"""OutputBuffer and InputBuffer over sockets, pipes and files: every byte in order, every wait can be ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from blkmig import _core, _input, _output

MiB = 1 << 20
NOISE = random.Random(6).randbytes(MiB)
SMALLEST = 512


class Link:
    """Two fds; what is written to `output` comes out of `input`."""

    def __init__(self, kind: str, folder: pathlib.Path) -> None:
        self.kind = kind
        self._sockets: list[socket.socket] = []
        if kind == "pipe":
            self.input, self.output = os.pipe()
            os.set_blocking(self.output, False)
        elif kind == "file":
            self.output = os.open(folder / "stream", os.O_WRONLY | os.O_CREAT)
            self.input = os.open(folder / "stream", os.O_RDONLY)
        else:
            self._sockets = list(socket.socketpair() if kind == "unix" else _tcp_pair())
            self.input, self.output = (each.detach() for each in self._sockets)

    def close_output(self) -> None:
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def close_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


@pytest.fixture(params=["tcp", "unix", "pipe", "file"])
def link(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Link]:
    link = Link(request.param, tmp_path)
    yield link
    link.close_output()
    link.close_input()


@pytest.fixture(params=["tcp", "unix", "pipe"])
def waiting(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Link]:
    """Return a link on which one can wait for the other side."""
    link = Link(request.param, tmp_path)
    yield link
    link.close_output()
    link.close_input()


@pytest.fixture
def wake() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread and raise what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def writing(link: Link, work: Callable[[], None]) -> Iterator[None]:
    """Run `work`, the writer, beside the reader; into a file before it."""
    if link.kind == "file":
        work()
        yield
        return
    with beside(work):
        yield


def block(data: bytes) -> _core.BlockBuffer:
    blk = _core.BlockBuffer()
    blk.data[: len(data)] = data
    blk.filled(len(data))
    return blk


@pytest.mark.parametrize("capacity", [SMALLEST, 1000, 65536])
@pytest.mark.parametrize("seed", range(3))
def test_any_items_in_any_order(link: Link, capacity: int, seed: int) -> None:
    """A random stream, written item by item, read item by item with other cuts, counted by both sides."""
    rnd = random.Random(f"{capacity} {seed}")
    items: list[tuple[str, object]] = []
    for _ in range(120):
        kind = rnd.choice(("byte", "be16", "be32", "be64", "buffer", "buffer"))
        bits = {"byte": 8, "be16": 16, "be32": 32, "be64": 64}.get(kind, 0)
        size = rnd.choice((0, 1, 8, capacity - 1, capacity, capacity + 1, 3 * capacity, 100000))
        items.append((kind, rnd.getrandbits(bits) if bits else rnd.randbytes(size)))
    codes = {"byte": ">B", "be16": ">H", "be32": ">I", "be64": ">Q"}
    stream = b"".join(struct.pack(codes[kind], value) if kind in codes else value for kind, value in items)

    def write() -> None:
        out = _output.OutputBuffer(link.output, capacity)
        position = 0
        for kind, value in items:
            getattr(out, f"put_{kind}")(value)
            position += len(value) if isinstance(value, bytes) else struct.calcsize(codes[kind])
            assert out.position == position
            assert position - capacity <= out.flushed <= position
        out.flush()
        out.flush()
        assert out.flushed == out.position == len(stream)
        link.close_output()

    with writing(link, write):
        source = _input.InputBuffer(link.input, capacity)
        at = 0
        while at < len(stream):
            size = rnd.choice((1, 2, 4, 8, 7, capacity, 2 * capacity, 50000))
            size = min(size, len(stream) - at)
            how = rnd.choice(("buffer", "skip", "number", "peek"))
            if how == "skip":
                source.skip(size)
            elif how == "number" and size in (1, 2, 4, 8):
                name = {1: "byte", 2: "be16", 4: "be32", 8: "be64"}[size]
                assert getattr(source, f"get_{name}")() == int.from_bytes(stream[at : at + size], "big")
            elif how == "peek":
                size = 0
                assert source.peek_byte() == stream[at]
            else:
                assert source.get_buffer(size) == stream[at : at + size]
            at += size
            assert source.position == at
        with pytest.raises(EOFError, match=f"the stream ends at byte {len(stream)}"):
            source.get_byte()


@pytest.mark.parametrize("capacity", [SMALLEST, 65536])
@pytest.mark.parametrize("mapped", [False, True])
def test_records(link: Link, tmp_path: pathlib.Path, capacity: int, mapped: bool) -> None:
    """Data, zero runs, progress and the end, as a migration sends them."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE[::-1] + NOISE)
    fd = os.open(path, os.O_RDONLY)
    mapping = _core.Mapping(fd, 2 * MiB)

    def write() -> None:
        out = _output.OutputBuffer(link.output, capacity)
        blk = _core.BlockBuffer()
        for i in (0, 1):
            if mapped:
                assert not blk.fill_mapped(mapping, fd, i * MiB, MiB)
            else:
                assert not blk.fill(fd, i * MiB, MiB)
            out.put_block(2048 * i, 1, b"drive0", blk)
            assert out.flushed == out.position
        out.put_be64(50 << 9 | 4)
        out.put_zero_records(4096, 10000, b"drive0")
        out.put_block(4096 + 2048 * 10000, 9, b"drive0", blk)
        out.put_block_header(7, 1, b"x" * 255)
        out.put_payload(blk, 0, 1000)
        out.put_payload(blk, 1000, 0)
        out.put_payload(blk, 1000, MiB - 1000)
        out.put_be64(2)
        out.flush()
        assert out.position == out.flushed == 3 * MiB + 2 * 15 + 10001 * 15 + 264 + 16

    with writing(link, write):
        source = _input.InputBuffer(link.input, capacity)
        blk = _core.BlockBuffer()
        for i, expected in enumerate((NOISE[::-1], NOISE)):
            assert source.next_run() == (1, b"drive0", 2048 * i, 1)
            source.get_block(blk)
            assert bytes(blk.payload) == expected
            assert not blk.is_zero
        assert source.next_run() == (4, b"", 50, 1)
        sector, left = 4096, 10001
        while left:
            flags, name, start, count = source.next_run()
            assert (flags, name, start) == (9, b"drive0", sector)
            sector += 2048 * count
            left -= count
        assert source.next_run() == (1, b"x" * 255, 7, 1)
        source.get_block(blk)
        assert bytes(blk.payload) == NOISE
        assert source.next_run() == (2, b"", 0, 1)
        assert source.position == 3 * MiB + 2 * 15 + 10001 * 15 + 264 + 16
    os.close(fd)


def test_every_cut_of_a_record(waiting: Link) -> None:
    """A record that arrives byte by byte is the same record; what is behind a payload stays for the next."""
    stream = struct.pack(">QB3s", 2048 << 9 | 9, 3, b"vda") + struct.pack(">QB3s", 4096 << 9 | 9, 3, b"vda")

    def write() -> None:
        for byte in stream + struct.pack(">Q", 2):
            os.write(waiting.output, bytes([byte]))

    with beside(write):
        source = _input.InputBuffer(waiting.input)
        runs = []
        while not runs or runs[-1][0] != 2:
            runs.append(source.next_run())
        assert sum(run[3] for run in runs if run[0] == 9) == 2
        assert runs[0][:3] == (9, b"vda", 2048)


def test_get_some_and_staged(waiting: Link) -> None:
    source = _input.InputBuffer(waiting.input)
    os.write(waiting.output, b"abcdef")
    assert source.staged == 0
    assert source.get_some(2) == b"ab"
    assert source.staged == 4
    assert source.get_some(100) == b"cdef"
    assert source.position == 6
    waiting.close_output()
    assert source.get_some(1) == b""
    with pytest.raises(ValueError, match="cannot get 0 bytes"):
        source.get_some(0)


# ---- the end of the stream ----


@pytest.mark.parametrize(
    "get",
    [
        lambda s: s.get_byte(),
        lambda s: s.get_be64(),
        lambda s: s.get_buffer(9),
        lambda s: s.get_buffer(70000),
        lambda s: s.skip(9),
        lambda s: s.next_run(),
        lambda s: s.get_block(_core.BlockBuffer()),
    ],
)
@pytest.mark.parametrize("have", [0, 1, 7])
def test_end_inside_an_item(link: Link, get: Callable[[_input.InputBuffer], object], have: int) -> None:
    os.write(link.output, b"\1" * have)
    link.close_output()
    source = _input.InputBuffer(link.input)
    with contextlib.suppress(EOFError):
        for _ in range(have):  # single bytes are there before the end
            get(source)
    with pytest.raises(EOFError, match=f"the stream ends at byte {have}, inside an item"):
        get(source)


def test_numbers_that_cannot_be(link: Link) -> None:
    source, out = _input.InputBuffer(link.input), _output.OutputBuffer(link.output)
    with pytest.raises(ValueError, match="cannot get -1 bytes"):
        source.get_buffer(-1)
    with pytest.raises(OverflowError):
        source.skip(-1)
    assert source.get_buffer(0) == b""
    source.skip(0)
    for put, value in ((out.put_byte, 256), (out.put_be16, -1), (out.put_be32, 1 << 32), (out.put_be64, 1 << 64)):
        with pytest.raises(OverflowError):
            put(value)
    blk = _core.BlockBuffer()
    for sector, flags, name in ((1 << 55, 1, b""), (0, 512, b""), (0, 1, bytes(256))):
        with pytest.raises(OverflowError):
            out.put_block(sector, flags, name, blk)
        with pytest.raises(OverflowError):
            out.put_block_header(sector, flags, name)
    with pytest.raises(OverflowError):
        out.put_zero_records(0, 1 << 45, b"")
    for offset, nbytes in ((-1, 1), (0, -1), (0, MiB + 1), (MiB, 1), (1, MiB)):
        with pytest.raises(IndexError):
            out.put_payload(blk, offset, nbytes)
    out.put_zero_records(0, 0, b"")
    assert out.position == out.flushed == 0


def test_fds_that_cannot_be(tmp_path: pathlib.Path) -> None:
    for make in (_output.OutputBuffer, _input.InputBuffer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            make(-1)
        for capacity in (0, -1, SMALLEST - 1):
            with pytest.raises(ValueError, match="at least 512 bytes"):
                make(0, capacity)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="Is a directory"):
        _input.InputBuffer(directory).get_byte()
    os.close(directory)
    full = os.open("/dev/full", os.O_WRONLY)
    out = _output.OutputBuffer(full)
    out.put_byte(1)
    with pytest.raises(OSError, match="No space left"):
        out.flush()
    assert (out.position, out.flushed) == (1, 0)
    os.close(full)


# ---- a peer that goes, or does nothing ----


def fill_up(out: _output.OutputBuffer) -> None:
    while True:
        out.put_buffer(NOISE)


def test_peer_gone_is_epipe(waiting: Link) -> None:
    waiting.close_input()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        fill_up(_output.OutputBuffer(waiting.output))
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_peer_goes_while_we_wait(waiting: Link) -> None:
    def read_a_little() -> None:
        os.read(waiting.input, 100000)
        waiting.close_input()

    with beside(read_a_little), pytest.raises(OSError) as caught:  # noqa: PT011
        fill_up(_output.OutputBuffer(waiting.output))
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


@pytest.mark.parametrize("kind", ["pipe", "unix"])
def test_no_sigpipe_even_where_it_kills(kind: str) -> None:
    """A process that has SIGPIPE at its default, as command line tools do, gets EPIPE and lives; pending ones stay."""
    code = f"""
import os, signal, socket
from blkmig import _core, _output
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if {kind!r} == "pipe":
    reader, writer = os.pipe()
    os.close(reader)
else:
    reader, other = socket.socketpair()
    reader.close()
    writer = other.detach()
out = _output.OutputBuffer(writer)
out.put_byte(1)
try:
    out.flush()
except BrokenPipeError:
    print("EPIPE", signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.sigpending())
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "EPIPE set() set()\n"), result.stderr


def test_pending_sigpipe_stays_pending() -> None:
    """A SIGPIPE that somebody else blocked and has not taken yet is not taken away."""
    reader, writer = os.pipe()
    os.close(reader)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    handler = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGPIPE)
        with pytest.raises(BrokenPipeError):
            fill_up(_output.OutputBuffer(writer))
        assert signal.SIGPIPE in signal.sigpending()
        assert signal.sigtimedwait([signal.SIGPIPE], 0) is not None
    finally:
        signal.signal(signal.SIGPIPE, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        os.close(writer)


def test_wake_ends_a_write(waiting: Link, wake: tuple[int, int]) -> None:
    out = _output.OutputBuffer(waiting.output, wake_fd=wake[0])
    with beside(lambda: os.write(wake[1], b"!") and None), pytest.raises(OSError) as caught:  # noqa: PT011
        fill_up(out)
    assert caught.value.errno == errno.ECANCELED
    assert 0 < out.flushed < out.position


@pytest.mark.parametrize(
    "get",
    [lambda s: s.get_byte(), lambda s: s.get_buffer(100000), lambda s: s.next_run(), lambda s: s.skip(10)],
)
def test_wake_ends_a_read(waiting: Link, wake: tuple[int, int], get: Callable[[_input.InputBuffer], object]) -> None:
    source = _input.InputBuffer(waiting.input, wake_fd=wake[0])
    with beside(lambda: os.write(wake[1], b"!") and None), pytest.raises(OSError) as caught:  # noqa: PT011
        get(source)
    assert caught.value.errno == errno.ECANCELED


def test_wake_ends_a_payload(waiting: Link, wake: tuple[int, int]) -> None:
    os.write(waiting.output, NOISE[:5000])
    source = _input.InputBuffer(waiting.input, wake_fd=wake[0])
    blk = _core.BlockBuffer()
    with beside(lambda: os.write(wake[1], b"!") and None), pytest.raises(OSError) as caught:  # noqa: PT011
        source.get_block(blk)
    assert caught.value.errno == errno.ECANCELED


def test_wake_whose_other_end_is_closed_wakes(waiting: Link) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        _input.InputBuffer(waiting.input, wake_fd=reader).get_byte()
    assert caught.value.errno == errno.ECANCELED
    os.close(reader)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_shutdown_ends_both_ways(kind: str, tmp_path: pathlib.Path) -> None:
    link = Link(kind, tmp_path)
    with socket.socket(fileno=link.input) as sock:
        with beside(lambda: sock.shutdown(socket.SHUT_RDWR)), pytest.raises(EOFError):
            _input.InputBuffer(link.input).get_byte()
        with pytest.raises(BrokenPipeError):
            fill_up(_output.OutputBuffer(link.input))
    link.close_output()


# ---- a mapped payload whose pages go ----


@pytest.mark.parametrize("gone_at", [0, 4096, 300 * 1024, MiB - 4096])
def test_file_truncated_while_its_payload_is_sent(link: Link, tmp_path: pathlib.Path, gone_at: int) -> None:
    """sendmsg meets pages that are no more: the rest comes from a read, the byte count stays that of one block."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE)
    fd = os.open(path, os.O_RDWR)
    blk = _core.BlockBuffer()
    assert not blk.fill_mapped(_core.Mapping(fd, MiB), fd, 0, MiB)
    os.truncate(path, gone_at)

    def write() -> None:
        out = _output.OutputBuffer(link.output)
        out.put_byte(7)
        out.put_block(0, 1, b"vda", blk)
        out.put_be64(2)
        out.flush()
        assert out.position == out.flushed == 1 + 12 + MiB + 8

    with writing(link, write):
        source = _input.InputBuffer(link.input)
        assert source.get_byte() == 7
        assert source.next_run() == (1, b"vda", 0, 1)
        received = _core.BlockBuffer()
        source.get_block(received)
        assert bytes(received.payload) == NOISE[:gone_at].ljust(MiB, b"\0")
        assert source.next_run() == (2, b"", 0, 1)
    os.close(fd)


def test_fd_closed_before_its_payload_is_sent(tmp_path: pathlib.Path) -> None:
    """The mapping has an fd of its own: whoever owns the number now is not read."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE)
    fd = os.open(path, os.O_RDONLY)
    blk = _core.BlockBuffer()
    blk.fill_mapped(_core.Mapping(fd, MiB), fd, 0, MiB)
    os.close(fd)
    os.truncate(path, 8192)
    assert os.open("/dev/zero", os.O_RDONLY) == fd
    with (tmp_path / "stream").open("wb") as stream:
        _output.OutputBuffer(stream.fileno()).put_block(0, 1, b"vda", blk)
    os.close(fd)
    assert (tmp_path / "stream").read_bytes()[12:] == NOISE[:8192].ljust(MiB, b"\0")


def test_read_error_while_a_payload_is_sent(tmp_path: pathlib.Path) -> None:
    """The file cannot be read again (O_DIRECT, where the offset is wrong): that error is raised, not EFAULT."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE + NOISE)
    fd = os.open(path, os.O_RDWR)
    blk = _core.BlockBuffer()
    assert not blk.fill_mapped(_core.Mapping(fd, 2 * MiB), fd, 100, MiB)
    os.truncate(path, 8192)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        os.pread(fd, 10, 100)
    except OSError as error:
        refused = error.errno
    else:
        pytest.skip("the file system takes any O_DIRECT read")
    with (tmp_path / "stream").open("wb") as stream, pytest.raises(OSError) as caught:  # noqa: PT011
        _output.OutputBuffer(stream.fileno()).put_block(0, 1, b"vda", blk)
    assert caught.value.errno == refused == errno.EINVAL
    os.close(fd)


def test_foreign_buffer_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    """A view of a mapping, put as any buffer: EFAULT, no signal."""
    path = tmp_path / "disk"
    path.write_bytes(NOISE)
    fd = os.open(path, os.O_RDWR)
    view = memoryview(_core.Mapping(fd, MiB))
    os.truncate(path, 0)
    link = Link("unix", tmp_path)
    with pytest.raises(OSError, match="Bad address"):
        _output.OutputBuffer(link.output).put_buffer(view)
    for each in (fd, link.input, link.output):
        os.close(each)
