# SPDX-License-Identifier: GPL-2.0-or-later
"""What a system, or an option, stands against: in the user's words, with what to do, and before he is asked."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import command
import pytest

from blkmig import cli, errors, params

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vda.raw").write_bytes(b"x" * MIB)


def said(words: list[str], capfd: pytest.CaptureFixture[str], exit_code: int) -> str:
    """Return what the command says of these words."""
    assert cli.main(words) == exit_code
    return capfd.readouterr().err


@pytest.mark.parametrize("count", range(6, 15))
@pytest.mark.parametrize("words", [["send", "vda.raw", "file:s"], ["receive", "unix:u", "vda=x.raw"]])
def test_too_few_descriptors(count: int, words: list[str]) -> None:
    """Whatever fails first for want of them, it says so, and what to do."""
    line = f"ulimit -n {count}; exec {shlex.join(command.command(*words, '--progress=none'))}"
    if words[0] == "receive":
        line = line.replace("unix:u", "unix:u --accept-timeout 0.01")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    if "Too many open files" in done.stderr:
        assert "see ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [errors.DeviceError, errors.ChannelError])
@pytest.mark.parametrize(("code", "what"), [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max")])
def test_errors_say_which_limit_it_is(kind: type[errors.MigrationError], code: int, what: str) -> None:
    where = {"device": "d"} if kind is errors.DeviceError else {"uri": "file:s"}
    error = kind("opening", cause=OSError(code, os.strerror(code)), **where)  # type: ignore[call-arg]
    assert what in str(error)


@pytest.mark.parametrize("words", [["send", "vda.raw", "fd:{0}"], ["receive", "fd:{0}", "vda=x.raw"]])
def test_a_descriptor_with_direct_io(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("stream").touch()
    fd = os.open("stream", os.O_RDWR | os.O_DIRECT)
    os.set_inheritable(fd, True)
    try:
        found = said([word.format(fd) for word in words], capfd, 2)
    finally:
        os.close(fd)
    assert f"fd:{fd}: descriptor {fd} was opened with O_DIRECT" in found
    assert "open it without" in found


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--incremental", ["--incremental"]),
        ("--no-delta", ["--no-delta"]),
        ("--format=block", ["--format=block"]),
        ("--no-return-path", ["--no-return-path"]),
        ("--qemu", ["--qemu"]),
    ],
)
def test_resume_names_the_option(option: str, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert option in said(["send", "--resume", *words, "vda.raw", "tcp:localhost:1"], capfd, 2).split("does not go")[1]


def test_old_copies_name_the_option() -> None:
    with pytest.raises(errors.ParameterError, match=r"leave out --incremental, or --delta and --in-place"):
        params.IncomingParameters(incremental=True, in_place=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--tls-certificates", "pki"],
        ["--tls-key", "key"],
        ["--tls-hostname", "name"],
        ["--resume", "--incremental"],
        ["--max-rounds", "0"],
        ["--format=blkmig", "--qemu"],
        ["--token-file", "token"],
    ],
)
def test_nobody_is_asked_for_a_token_of_no_use(
    words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getpass", lambda _: pytest.fail("it asks"))
    said(["send", "--token", *words, "vda.raw", "tls:localhost:1"], capfd, 2)


@pytest.mark.parametrize("uri", ["tcp:localhost:1", "file:s", "tls:localhost"])
def test_nor_where_there_is_no_tls(
    uri: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getpass", lambda _: pytest.fail("it asks"))
    said(["send", "--token", "vda.raw", uri], capfd, 2)


@contextlib.contextmanager
def socket_at(path: str, kind: socket.SocketKind, *, listens: bool) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.bind(path)
        if listens:
            made.listen()
        yield


def test_what_is_no_monitor(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("qemu.qmp")
    Path("folder").mkdir()
    assert "no such socket; QEMU makes it with -qmp" in said(["cleanup", "qemu:nowhere"], capfd, 1)
    for name in ("vda.raw", "folder"):
        assert "it is no socket: say the QMP socket" in said(["cleanup", f"qemu:{name}"], capfd, 1)
    with socket_at("datagrams", socket.SOCK_DGRAM, listens=False):
        assert "it is a socket of another kind" in said(["cleanup", "qemu:datagrams"], capfd, 1)
    with socket_at("dead", socket.SOCK_STREAM, listens=False):
        assert "nobody listens there: its QEMU has ended" in said(["cleanup", "qemu:dead"], capfd, 1)


def test_what_speaks_something_else(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("qemu.qmp")
    line = 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("other"); s.listen(); print(flush=True); '
    line += 'c = s.accept()[0]; c.sendall(b"NBDMAGIC\\n"); c.recv(1000)'
    with subprocess.Popen(["python3", "-c", line], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        found = said(["cleanup", "qemu:other"], capfd, 1)
        server.kill()
    assert "what answers there speaks no QMP" in found
