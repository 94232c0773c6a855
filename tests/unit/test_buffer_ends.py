# SPDX-License-Identifier: GPL-2.0-or-later
"""How a stream's buffers meet peers that go, waits that are ended, and files that change."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from links import Link, beside, writing
from links import link as link
from links import waiting as waiting

from blkmig import _core, _input, _output

MiB = 1 << 20
NOISE = random.Random(6).randbytes(MiB)


@pytest.fixture
def wake() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


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
