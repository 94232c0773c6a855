# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream in a file has its name only when it is complete; nothing else is written into it, nor into a disk."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import command
import peers
import pytest

import blkmig
from blkmig import errors
from blkmig.files import partial
from blkmig.migration import streamfile

CONTENT = os.urandom(5_000_192)
TIMEOUT = 60
MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    folder = tmp_path / "streams"
    folder.mkdir()
    return folder / "q"


def names(stream: Path) -> list[str]:
    return sorted(path.name for path in stream.parent.iterdir())


def fail_to_send(source: Path, stream: Path) -> None:
    """Send, and have it end in mid-run."""
    with blkmig.FileBackend(source) as disk, contextlib.suppress(errors.Cancelled):
        with blkmig.outgoing([disk], f"file:{stream}") as migration:
            migration.iterate()
            migration.cancel()
            migration.complete()
        pytest.fail("it was cancelled")


def assert_is_whole(stream: Path, tmp_path: Path) -> None:
    copy = tmp_path / f"copy-{os.urandom(4).hex()}.raw"
    blkmig.receive(f"file:{stream}", {"a": copy})
    assert copy.read_bytes() == CONTENT


@pytest.mark.parametrize("before", [None, b"", b"an older stream"])
def test_a_stream_that_fails_is_not_found(source: Path, stream: Path, tmp_path: Path, before: bytes | None) -> None:
    """What was there stays, and the same command again makes it."""
    if before is not None:
        stream.write_bytes(before)
        stream.chmod(0o640)
    fail_to_send(source, stream)
    assert names(stream) == ([] if before is None else ["q"])
    assert before is None or stream.read_bytes() == before
    blkmig.send([source], f"file:{stream}")
    assert names(stream) == ["q"]
    assert stream.stat().st_mode & 0o777 == (0o600 if before is None else 0o640)
    assert_is_whole(stream, tmp_path)


def test_a_killed_sender_leaves_what_the_next_one_replaces(source: Path, stream: Path, tmp_path: Path) -> None:
    sender = command.start("send", f"a={source}", f"file:{stream}", "--max-bandwidth=256K")
    mark = stream.parent / partial.partial_name("q")
    while not mark.exists():
        assert sender.poll() is None
    sender.send_signal(signal.SIGKILL)
    sender.communicate(timeout=TIMEOUT)
    assert names(stream) == [mark.name]
    assert command.run("send", f"a={source}", f"file:{stream}").exit_code == 0
    assert names(stream) == ["q"]
    assert_is_whole(stream, tmp_path)


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_stream_whose_folder_is_moved_is_no_success(source: Path, stream: Path, is_made_again: bool) -> None:
    """A10: it would be somewhere, and not where it was asked for."""
    moved = stream.parent.with_name("moved")
    with blkmig.FileBackend(source) as disk, blkmig.outgoing([disk], f"file:{stream}") as migration:
        migration.iterate()
        stream.parent.rename(moved)
        if is_made_again:
            stream.parent.mkdir()
        with pytest.raises(errors.LocalFileError, match="was moved or replaced"):
            migration.complete()
    assert list(moved.iterdir()) == []


def test_of_two_senders_one_is_refused(source: Path, stream: Path) -> None:
    with blkmig.FileBackend(source) as disk, blkmig.outgoing([disk], f"file:{stream}") as migration:
        with blkmig.FileBackend.create(source.with_name("b"), 512) as other, pytest.raises(errors.LocalFileError) as no:
            blkmig.send([other], f"file:{stream}")
        assert "is using it" in str(no.value)
        migration.run()
    assert names(stream) == ["q"]


def test_links_lead_to_the_file(source: Path, stream: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(stream)
    blkmig.send([source], f"file:{link}")
    blkmig.send([source], f"file:{link}")
    assert link.is_symlink()
    assert names(stream) == ["q"]
    assert_is_whole(stream, tmp_path)


def run_mounted(file: Path, on: Path, words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run the command while `file` is mounted on `on`, as in a container that is given one file."""
    peers.require("unshare", "mount")
    enter = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        peers.lacking("no mounts of its own for a process")
    line = [*enter, "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', file, on]
    return subprocess.run([*line, *command.command(*words)], capture_output=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("before", [b"", b"an older stream" * MIB])
def test_a_mounted_file_is_written_in_place(source: Path, stream: Path, tmp_path: Path, before: bytes) -> None:
    """It cannot be replaced: that was said when all had been written."""
    (tmp_path / "file").write_bytes(before)
    stream.touch()
    words = ["send", f"a={source}", f"file:{stream}"]
    done = run_mounted(tmp_path / "file", stream, [*words, "--max-bandwidth=256K", "--timeout=0.1"])
    assert (done.returncode, (tmp_path / "file").read_bytes()) == (4, b""), done.stderr
    (tmp_path / "file").write_bytes(before)
    done = run_mounted(tmp_path / "file", stream, words)
    assert done.returncode == 0, done.stderr
    assert names(stream) == ["q"]
    assert_is_whole(tmp_path / "file", tmp_path)


def test_a_mounted_file_of_a_folder_is_not_emptied(source: Path, stream: Path, tmp_path: Path) -> None:
    """It is said before anything is written, and its name by itself is a target."""
    blkmig.send([source], f"file:{stream}")
    (tmp_path / "d").mkdir()
    target = tmp_path / "d" / "a.raw"
    target.touch()
    (tmp_path / "file").write_bytes(before := bytes(len(CONTENT)))
    done = run_mounted(tmp_path / "file", target, ["receive", f"file:{stream}", f"--into={tmp_path}/d", "--overwrite"])
    assert (done.returncode, (tmp_path / "file").read_bytes()) == (1, before)
    assert b"something is mounted on it" in done.stderr
    done = run_mounted(tmp_path / "file", target, ["receive", f"file:{stream}", f"a={target}"])
    assert (done.returncode, (tmp_path / "file").read_bytes()) == (0, CONTENT), done.stderr


def test_what_stands_before_the_offset_stays(source: Path, stream: Path) -> None:
    stream.write_bytes(b"x" * 1000)
    blkmig.send([source], f"file:{stream},offset=512")
    assert stream.read_bytes()[:512] == b"x" * 512
    assert names(stream) == ["q"]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"])
def test_what_is_held_open_is_written_in_place(path: str) -> None:
    assert streamfile.is_held_open(path)
    assert not streamfile.is_held_open("/dev/null")
    assert not streamfile.is_held_open("/tmp/../tmp/x")


@pytest.mark.parametrize("uri", ["file:/dev/stdout", "fd:1", "-"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_results_are_not_written_over_the_stream(
    source: Path, stream: Path, tmp_path: Path, uri: str, options: list[str]
) -> None:
    with stream.open("wb") as stdout:
        words = command.command("send", f"a={source}", uri, *options)
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, timeout=TIMEOUT, check=True)
    assert b"downtime" in done.stderr
    assert_is_whole(stream, tmp_path)


def test_a_pipe_that_nobody_reads(source: Path, tmp_path: Path) -> None:
    """`--timeout` ends the wait, too, and says what was missing."""
    os.mkfifo(tmp_path / "pipe")
    done = command.run("send", f"a={source}", f"file:{tmp_path}/pipe", "--timeout=0.2")
    assert done.exit_code == 5
    assert "nobody reads the pipe within 0.2 s" in done.stderr
    with pytest.raises(errors.ChannelTimeout, match="nobody reads the pipe"):
        blkmig.send([source], f"file:{tmp_path}/pipe", connect_timeout=0.2)


# -- what is shown ---------------------------------------------------------------------------------------------------


def run_with(redirection: str, words: list[str]) -> subprocess.CompletedProcess[bytes]:
    line = [*command.command(), *words]
    quoted = " ".join(f"'{word}'" for word in line)
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {quoted} {redirection}"], capture_output=True, timeout=TIMEOUT, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "disk", "uri"),
    [
        ("2>>{a}", "{a}", "file:{q}"),
        ("2<>{a}", "{a}", "file:{q}"),
        ("2>>{a}", "{a}", "file:/nonexistent/q"),
        ("2>>{a}", "{a}", "nonsense"),
        ("3<>{a} 2>&3", "/proc/self/fd/3", "file:{q}"),
        ("2>>{a}", "/dev/fd/2", "file:{q}"),
        ("3>>{a} 2>>{a}", "{other}", "fd:3"),
        ("2>>{a}", "{link}", "-"),
        (">>{a}", "{a}", "file:{q}"),
        ("1<>{a}", "{link}", "file:{q}"),
        ("3>>{a}", "{a}", "fd:3"),
        (">>{a}", "{a}", "-"),
        (">>{a}", "{a}", "file:/dev/stdout"),
        ("3>>{a}", "{a}", "file:/proc/self/fd/3"),
    ],
)
def test_nothing_is_written_into_a_disk(
    source: Path, stream: Path, tmp_path: Path, redirection: str, disk: str, uri: str
) -> None:
    """A4, for each way in which a shell can lead something there: not even the refusal is."""
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "other").write_bytes(CONTENT)
    places = {"a": source, "q": stream, "link": tmp_path / "link", "other": tmp_path / "other"}
    done = run_with(redirection.format(**places), ["send", f"v={disk.format(**places)}", uri.format(**places)])
    assert done.returncode == 2
    assert source.read_bytes() == CONTENT
    assert names(stream) == []
    assert b"blkmig: " in done.stderr + (b"blkmig: " if uri == "-" else done.stdout), "where it can be said, it is"


def test_no_message_goes_into_a_backing_file(source: Path, stream: Path, tmp_path: Path) -> None:
    """No disk of the command line is it: only an option of one names it."""
    top = tmp_path / "top.raw"
    top.write_bytes(CONTENT)
    with source.open("ab") as stderr:
        words = command.command("send", f"v={top},base={source}", f"file:{stream}", "--incremental")
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, timeout=TIMEOUT, check=False)
    assert done.returncode == 2
    assert b"standard error goes" in done.stdout
    assert source.read_bytes() == CONTENT


def test_no_message_goes_into_a_target(source: Path, stream: Path, tmp_path: Path) -> None:
    blkmig.send([source], f"file:{stream}")
    target = tmp_path / "b.raw"
    target.write_bytes(CONTENT)
    done = run_with(f"2>>{target}", ["receive", f"file:{stream}", f"a={target}"])
    assert done.returncode == 2
    assert target.read_bytes() == CONTENT


def test_no_message_goes_into_the_stream(source: Path, stream: Path) -> None:
    done = run_with(f">{stream} 2>&1", ["send", f"a={source}", "-"])
    assert done.returncode == 2
    assert stream.read_bytes() == b""


@pytest.mark.parametrize("progress", ["plain", "json"])
@pytest.mark.parametrize(
    ("kind", "uri"),
    [(kind, uri) for kind in ("pipe", "socket") for uri in ("-", "fd:1", "fd:{fd}")]
    + [("pipe", uri) for uri in ("file:/dev/stdout", "file:/dev/fd/{fd}", "file:{pipe}")],
)
def test_no_message_goes_between_the_bytes_of_the_stream(
    source: Path, tmp_path: Path, kind: str, uri: str, progress: str
) -> None:
    """As with ``send DISK - 2>&1 | receive -``: not even the refusal is written there."""
    os.mkfifo(tmp_path / "pipe")
    ours, theirs = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), os.open(tmp_path / "pipe", os.O_WRONLY)
    if kind == "socket":
        os.close(ours)
        os.close(theirs)
        ours, theirs = (end.detach() for end in socket.socketpair())
    is_stdout = "{" not in uri
    words = ["send", f"--progress={progress}", "--json", f"a={source}", uri.format(fd=theirs, pipe=tmp_path / "pipe")]
    done = subprocess.run(
        command.command(*words), stdout=theirs if is_stdout else subprocess.PIPE, stderr=theirs, pass_fds=(theirs,),
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, os.read(ours, 4096)) == (2, b"")
    assert is_stdout or b"standard error goes there, too" in done.stdout
    os.close(ours)


def test_no_message_goes_into_the_socket_of_the_source(source: Path, tmp_path: Path) -> None:
    """As a receiver that inetd starts: the source takes what is there for the target's word."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            words = command.command("receive", "-", f"a={tmp_path}/b.raw")
            done = subprocess.run(words, stdin=theirs, stdout=theirs, stderr=theirs, timeout=TIMEOUT, check=False)
        assert (done.returncode, ours.recv(4096)) == (2, b"")


def test_results_may_follow_in_the_socket_of_the_source(source: Path, stream: Path, tmp_path: Path) -> None:
    """As a receiver that some sshd starts, whose standard input and output are one socket."""
    blkmig.send([source], f"file:{stream}")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            words = command.command("receive", "-", f"a={tmp_path}/b.raw")
            receiver = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
        ours.sendall(stream.read_bytes())
        ours.shutdown(socket.SHUT_WR)
        said = receiver.communicate(timeout=TIMEOUT)[1]
        assert receiver.returncode == 0, said
        assert b"4.8 MiB" in ours.recv(4096)


def test_a_log_is_no_disk(source: Path, stream: Path, tmp_path: Path) -> None:
    assert run_with(f">{tmp_path}/out 2>{tmp_path}/log", ["send", f"a={source}", f"file:{stream}"]).returncode == 0
    done = run_with(f">>{source} 2>{tmp_path}/log", ["send", f"a={source}", f"file:{stream}"])
    assert done.returncode == 2
    assert "standard output goes there" in (tmp_path / "log").read_text()
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("words", "redirection"),
    [
        ("receive - v={tmp}/c.raw", "<{q} 2>>{q}"),
        ("receive - v={tmp}/c.raw --bogus", "<{q} 2>>{q}"),
        ("receive file:{q} v={tmp}/c.raw", ">>{q}"),
        ("receive fd:3 v={tmp}/c.raw", "3<{q} >>{q}"),
        ("inspect {q}", ">>{q}"),
        ("inspect -", "<{q} >>{q}"),
        ("inspect -", "<{q} 2>>{q}"),
        ("inspect --json file:{q}", ">>{q}"),
        ("receive file:{q} --map=0={a} --bogus", "2>>{a}"),
        ("receive file:{q} --map 0={a} --bogus", "2>>{a}"),
        ("send v=/dev/null,base={a} --bogus", "2>>{a}"),
        ("send --dry-run=.1 --bandwidth=1G v={a} file:{tmp}/x", ">>{a}"),
        ("serve v={a} --nbd=unix:{tmp}/s", ">>{a}"),
    ],
)
def test_nothing_is_written_into_what_is_read(
    source: Path, stream: Path, tmp_path: Path, words: str, redirection: str
) -> None:
    """A4: neither a result nor a message, whatever reads it."""
    blkmig.send([source], f"file:{stream}")
    content = stream.read_bytes()
    places = {"a": source, "q": stream, "tmp": tmp_path}
    done = run_with(redirection.format(**places), words.format(**places).split())
    assert done.returncode == 2, done.stderr + done.stdout
    assert source.read_bytes() == CONTENT
    assert stream.read_bytes() == content
    assert not (tmp_path / "c.raw").exists()


@pytest.mark.parametrize(
    "words",
    [
        "send v={a} file:/dev/blkmig-none",
        "send v={a} file:/dev/blkmig-none,offset=512",
        "send v={a} file:{tmp}/link",
        "receive file:{q} a=/dev/blkmig-none",
        "receive file:{q} --into=/dev",
    ],
)
def test_a_missing_device_is_not_made(source: Path, stream: Path, tmp_path: Path, words: str) -> None:
    """A file there would fill the machine's memory."""
    blkmig.send([source], f"file:{stream}")
    (tmp_path / "link").symlink_to("/dev/blkmig-none")
    try:
        done = command.run(*words.format(a=source, q=stream, tmp=tmp_path).split())
        assert done.exit_code == 1
        assert "there is no such device, and files are not made there" in done.stderr
        assert not Path("/dev/blkmig-none").exists()
        assert not Path("/dev/a.raw").exists()
    finally:
        Path("/dev/blkmig-none").unlink(missing_ok=True)
        Path("/dev/a.raw").unlink(missing_ok=True)
