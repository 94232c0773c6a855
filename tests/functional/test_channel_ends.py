# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams that stop, files that are full, commands that fail."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import socket
import subprocess

import golden_streams
import lab
import pytest
from fault_pairs import TIMEOUT, put_until_error, reset, tcp_pair
from processes import started as started

import blkmig
from blkmig import _core, channel, errors
from blkmig.channel import link, receiving


def test_the_stream_stops_inside_an_item() -> None:
    with tcp_pair() as (f, peer):
        f.put_buffer(bytes(7))
        f.close()
        peer.skip(2)
        with pytest.raises(errors.TruncatedStream) as caught:
            peer.get_be64()
        assert caught.value.position == 2
        assert isinstance(caught.value.__cause__, EOFError)
        assert peer.peek_byte() == 0, "what came of the record is still there"
        peer.skip(5)
        assert peer.at_eof()
        with pytest.raises(errors.TruncatedStream):
            peer.get_block(_core.BlockBuffer())
        assert peer.get_some(1) == b""


def test_a_source_that_resets() -> None:
    with tcp_pair() as (f, peer):
        f.abort()
        with pytest.raises(errors.ChannelError, match="receiving at byte 0: Connection reset") as caught:
            peer.get_byte()
        with pytest.raises(errors.ChannelError) as again:
            peer.next_run()
        assert again.value is caught.value


def test_a_peer_that_left_early_does_not_spoil_the_end() -> None:
    with tcp_pair() as (f, peer):
        f.put_byte(1)
        f.flush()
        peer.skip(1)
        reset(peer)
        f.close()


def test_a_closed_file_says_so(tmp_path: pathlib.Path) -> None:
    f = channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT)
    f.close()
    f.close()
    f.abort()
    for call in (f.flush, lambda: f.put_byte(0), f.return_path, f.wait_rate_limit):
        with pytest.raises(errors.StateError, match="closed"):
            call()
    peer = channel.listen(f"file:{tmp_path}/x").accept(timeout=TIMEOUT)
    peer.abort()
    peer.close()
    for call in (peer.get_byte, peer.at_eof, lambda: peer.wait_readable(0), peer.return_path):
        with pytest.raises(errors.StateError, match="closed"):
            call()


def test_leaving_with_an_error_sends_nothing_more(tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
            f.put_byte(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "x").read_bytes() == b""


def test_a_bad_argument_changes_nothing(tmp_path: pathlib.Path) -> None:
    for limit in (0, 1 << 30):
        with channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
            f.set_rate_limit(limit)
            with pytest.raises(OverflowError):
                f.put_byte(256)
            with pytest.raises(TypeError):
                f.put_buffer("text")  # type: ignore[arg-type]
            with pytest.raises((OverflowError, ValueError)):
                f.put_zero_records(0, 1, b"x" * 256)
            f.put_buffer(b"")
            f.put_byte(7)
        assert (tmp_path / "x").read_bytes() == b"\7"


def test_a_full_disk() -> None:
    f = channel.connect("file:/dev/full", timeout=TIMEOUT)
    error = put_until_error(f)
    assert error.errno == errno.ENOSPC
    assert str(error) == (
        "sending at byte 0: No space left on device [file:/dev/full]; make room there"
    )
    with pytest.raises(errors.ChannelError):
        f.close()


def test_a_disk_that_is_full_only_at_the_end() -> None:
    f = channel.connect("file:/dev/full", timeout=TIMEOUT)
    f.put_byte(1)
    with pytest.raises(errors.ChannelError, match="No space left"):
        f.close()
    f.close()


def test_a_failing_sync_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    f = channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(errors.ChannelError, match="Input/output error"):
        f.close()
    f.close()


def test_files_that_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    for uri in (f"file:{tmp_path}", f"file:{tmp_path}/no/such"):
        with pytest.raises(errors.ChannelError, match="opening"):
            channel.connect(uri, timeout=TIMEOUT)
        with pytest.raises(errors.ChannelError, match="opening"):
            channel.listen(uri).accept(timeout=TIMEOUT)


def test_descriptors_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ChannelError, match="99999 is not open in this process"):
        channel.connect("fd:99999", timeout=TIMEOUT)
    read_fd, write_fd = os.pipe()
    with pytest.raises(errors.ChannelError, match="not open for writing"):
        channel.connect(f"fd:{read_fd}", timeout=TIMEOUT)
    with pytest.raises(errors.ChannelError, match="not open for reading"):
        channel.listen(f"fd:{write_fd}").accept(timeout=TIMEOUT)
    os.close(read_fd)
    os.close(write_fd)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(errors.ParameterError, match="not a stream socket"),
    ):
        channel.connect(f"fd:{datagrams.fileno()}", timeout=TIMEOUT)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_disk_cut_off_while_its_block_is_sent(tmp_path: pathlib.Path, limit: int) -> None:
    """A block that is sent from the disk's mapping needs pages that are there; what is gone is read again, as zeros."""
    content = b"disk" * (_core.BLOCK_SIZE // 4)
    with (tmp_path / "disk").open("w+b") as disk, channel.connect(f"file:{tmp_path}/x", timeout=TIMEOUT) as f:
        disk.write(content)
        disk.flush()
        f.set_rate_limit(limit)
        mapping = _core.Mapping(disk.fileno(), _core.BLOCK_SIZE)
        blk = _core.BlockBuffer()
        assert not blk.fill_mapped(mapping, disk.fileno(), 0, _core.BLOCK_SIZE)
        disk.truncate(_core.BLOCK_SIZE // 2)
        f.put_block(0, _core.FLAG_DEVICE_BLOCK, b"x", blk)
    arrived = (tmp_path / "x").read_bytes()[10:]
    assert arrived == content[: _core.BLOCK_SIZE // 2] + bytes(_core.BLOCK_SIZE // 2)


def test_a_command_that_fails_at_the_end() -> None:
    f = channel.connect("exec:cat > /dev/null; exit 3", timeout=TIMEOUT)
    f.put_byte(0)
    with pytest.raises(errors.ChannelError, match="the command ended with exit status 3"):
        f.close()
    f.close()


def test_a_command_that_dies_is_quoted_in_the_error() -> None:
    f = channel.connect("exec:exit 5", timeout=TIMEOUT)
    error = put_until_error(f)
    assert error.errno == errno.EPIPE
    assert "Broken pipe; the command ended with exit status 5" in str(error)
    f.abort()


def test_a_command_that_does_not_exist() -> None:
    with channel.listen("exec:exec /no/such/program 2>/dev/null") as listener:
        f = listener.accept(timeout=TIMEOUT)
        with pytest.raises(errors.TruncatedStream, match="exit status 127, it was not found"):
            f.get_byte()
        with pytest.raises(errors.ChannelError, match="127"):
            f.close()


@pytest.mark.parametrize(("said", "how"), [("", "is empty, so look at what its sender says"), ("QE", "ends too early")])
def test_a_stream_without_a_byte_is_called_empty(said: str, how: str) -> None:
    """The reason stands at the other end, as of a sender that may not say it between the bytes of the stream."""
    with channel.listen(f"exec:printf '{said}'") as listener:
        f = listener.accept(timeout=TIMEOUT)
        with pytest.raises(errors.TruncatedStream, match=how):
            f.get_be32()
        f.close()


def test_a_command_ended_by_a_signal() -> None:
    f = channel.connect("exec:kill -9 $$", timeout=TIMEOUT)
    with pytest.raises(errors.ChannelError, match="ended by signal 9"):
        f.close()


def test_a_command_that_fails_behind_a_whole_stream(tmp_path: pathlib.Path) -> None:
    """Its status is told, and that the disk is there."""
    (tmp_path / "st").write_bytes(lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * 4096), name="d")]))
    with pytest.raises(errors.ChannelError, match="exit status 3") as caught:
        blkmig.receive(f"exec:cat {tmp_path}/st; exit 3", into=tmp_path / "d")
    assert caught.value.__notes__ == ["all disks are complete here"]
    assert (tmp_path / "d" / "d.raw").read_bytes() == b"x" * 4096


def test_a_command_that_goes_on_after_its_stream_is_ended(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(receiving, "COMMAND_SECONDS", 0.05)
    f = channel.listen("exec:echo; exec sleep 1000").accept(timeout=TIMEOUT)
    assert f.get_some(1) == b"\n"
    f.close()
    [child] = started
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("golden", [None, "zero-blocks", "devices"])
def test_a_source_that_never_ends_does_not_matter(
    tmp_path: pathlib.Path, golden: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the pipe open behind the end of the stream, of a blkmig or of a QEMU; nothing more is read."""
    monkeypatch.setattr(receiving, "COMMAND_SECONDS", 0.05)
    if golden is None:
        (tmp_path / "a.raw").write_bytes(b"x" * 5000)
        blkmig.send([tmp_path / "a.raw"], f"file:{tmp_path}/st")
    else:
        (tmp_path / "st").write_bytes(golden_streams.unpack(golden))
    received = blkmig.receive(f"exec:cat {tmp_path}/st; sleep 1000", into=tmp_path / "d", idle_timeout=0)
    assert received.status == "completed"


def test_aborting_ends_a_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(link, "CHILD_GRACE_SECONDS", 0.05)
    # Its own trap makes the shell deaf to SIGTERM, so that it takes SIGKILL.
    with channel.listen("exec:trap '' TERM; echo; while :; do read x <&- 2>/dev/null; done") as listener:
        f = listener.accept(timeout=TIMEOUT)
        assert f.get_some(1) == b"\n"
        f.abort()
        [child] = started
        assert child.returncode == -signal.SIGKILL
