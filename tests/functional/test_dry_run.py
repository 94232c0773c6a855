# SPDX-License-Identifier: GPL-2.0-or-later
"""``send --dry-run``: it refuses what `send` refuses, with the same words, and makes nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import command
import pytest

import blkmig
from blkmig import cli
from blkmig.files import locks, partial


@pytest.mark.parametrize(
    "words",
    [
        ("v={}/a.raw", "file:{}/a.raw"),
        ("v={}/a.raw", "tcp:127.0.0.1:0"),
        ("v={}/a.raw", "nowhere"),
        ("v={}/a.raw", "v={}/b.raw", "file:{}/s"),
        ("v={}/a.raw", "--switchover=pause-before", "file:{}/s"),
        ("v={}/a.raw", "file:{}/b.raw", "--qemu", "--verify"),
        ("v={}/a.raw", "file:{}/s", "--tls-certificates={}"),
        ("v={}/a.raw", "file:{}/s", "--resume"),
    ],
    ids=" ".join,
)
def test_a_dry_run_refuses_what_send_refuses(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It said that such a migration converges."""
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    told = []
    for option in ("--dry-run=0", "--progress=none"):
        done = command.run("send", option, *(word.format(tmp_path) for word in words))
        told.append((done.exit_code, done.stdout, done.stderr))
    assert told[0] == told[1]
    assert told[0][0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw", "b.raw"]


@pytest.fixture(scope="module")
def all_is_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whom permissions hold back may not read Python itself."""
    home = tmp_path_factory.mktemp("loading")
    (home / "a.raw").write_bytes(b"x")
    for option in ("--dry-run=0", "--progress=none"):
        assert cli.main(["send", option, f"{home}/a.raw", f"file:{home}/s"]) == 0


@pytest.mark.usefixtures("all_is_loaded")
@pytest.mark.parametrize(
    ("name", "offset", "why"),
    [
        ("nowhere/s", "", "No such file or directory"),
        ("a.raw/s", "", "Not a directory"),
        ("folder", "", "Is a directory"),
        ("folder/", "", "Is a directory"),
        ("closed/s", "", "Permission denied"),
        ("closed/s", ",offset=4096", "Permission denied"),
        ("closed/not_ours", "", "Permission denied"),
        ("no_entry/s", "", "Permission denied"),
        ("socket", "", "No such device or address"),
        ("leads_nowhere", "", "No such file or directory"),
        ("x" * 256, "", "File name too long"),
        ("../../../../../../../../../dev/nothing", "", "there is no such device"),
    ],
)
def test_a_dry_run_refuses_a_stream_that_cannot_be_opened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, offset: str, why: str
) -> None:
    """It said that such a migration converges."""
    (tmp_path / "a.raw").write_bytes(b"x")
    (tmp_path / "a.raw").chmod(0o644)
    for folder in ("folder", "closed", "no_entry"):
        (tmp_path / folder).mkdir()
    (tmp_path / "closed" / "not_ours").touch(0o400)
    (tmp_path / "leads_nowhere").symlink_to("nowhere/s")
    (tmp_path / "closed").chmod(0o555)
    (tmp_path / "no_entry").chmod(0)
    before, told = sorted(tmp_path.rglob("*")), []
    with socket.socket(socket.AF_UNIX) as sock, somebody(tmp_path):
        sock.bind(f"{tmp_path}/socket")
        for option in ("--dry-run=0", "--progress=none"):
            assert cli.main(["send", option, f"{tmp_path}/a.raw", f"file:{tmp_path}/{name}{offset}"]) == 1
            told.append(capfd.readouterr())
    assert told[0] == told[1]
    assert (told[0].out, why in told[0].err) == ("", True), told[0].err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "socket") == before


@contextlib.contextmanager
def somebody(home: Path) -> Iterator[None]:
    """Be a user whom permissions hold back, and who may write at `home`."""
    if (user := os.geteuid()) == 0:
        for path in (home, *home.parents[:-2]):
            path.chmod(path.stat().st_mode | 0o011)
        home.chmod(0o777)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["new", "there", "pipe", "/dev/null", "/dev/stdout"])
def test_a_dry_run_makes_no_stream(tmp_path: Path, name: str) -> None:
    """And it does not wait for who reads a pipe."""
    (tmp_path / "a.raw").write_bytes(b"x")
    (tmp_path / "there").write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = command.run("send", "--dry-run=0", f"{tmp_path}/a.raw", f"file:{tmp_path / name}")
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there").read_bytes() == b"old"


@pytest.mark.parametrize("holder", ["image", "image that is read", "sender", "sender over an old stream"])
def test_a_dry_run_refuses_a_stream_that_is_in_use(
    tmp_path: Path, holder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that such a migration converges. To look is all that it does: the locks stay, and what they are on."""
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(name.encode())
    stream = tmp_path / "s"
    if holder != "sender":
        stream.write_bytes(b"old")
    words = ["--progress=none", str(tmp_path / "a.raw"), f"file:{stream}"]
    with contextlib.ExitStack() as stack:
        if holder.startswith("sender"):
            other = stack.enter_context(blkmig.FileBackend(tmp_path / "b.raw"))
            stack.enter_context(blkmig.outgoing([other], f"file:{stream}"))
        else:
            fd = os.open(stream, os.O_RDWR)
            stack.callback(os.close, fd)
            locks.acquire(fd, locks.READER if "read" in holder else locks.WRITER, device="b")
        before = sorted(path.name for path in tmp_path.iterdir())
        told = [(cli.main(["send", *option, *words]), capsys.readouterr()) for option in (["--dry-run=0"], [])]
        assert told[0] == told[1]
        assert told[0][0] == 1
        assert "another program is using it" in told[0][1].err
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert cli.main(["send", "--dry-run=0", *words]) == 0
    assert not stream.exists() if holder == "sender" else stream.read_bytes() == b"old"


@pytest.mark.parametrize("left", [b"", b"half a stream"])
def test_a_dry_run_accepts_what_a_killed_sender_has_left(tmp_path: Path, left: bytes) -> None:
    """`send` removes it, or begins again with it; a dry run leaves it."""
    (tmp_path / "a.raw").write_bytes(b"a")
    mark = tmp_path / partial.partial_name("s")
    mark.write_bytes(left)
    assert cli.main(["send", "--dry-run=0", f"{tmp_path}/a.raw", f"file:{tmp_path}/s"]) == 0
    assert mark.read_bytes() == left


def test_a_dry_run_looks_at_the_folder_for_session_files(tmp_path: Path) -> None:
    """As `send` does, before it connects."""
    (tmp_path / "a.raw").write_bytes(b"x")
    for option in ("--dry-run=0", "--progress=none"):
        done = command.run("send", option, f"{tmp_path}/a.raw", f"file:{tmp_path}/s", f"--state-dir={tmp_path}/none")
        assert (done.exit_code, "session files cannot be in" in done.stderr) == (2, True)


@pytest.mark.parametrize("seconds", ["9" * 30, "1e9"])
def test_a_dry_run_of_all_eternity(tmp_path: Path, seconds: str) -> None:
    """It was called a defect of blkmig."""
    (tmp_path / "a.raw").write_bytes(b"x")
    done = command.run("send", f"--dry-run={seconds}", f"{tmp_path}/a.raw", f"file:{tmp_path}/s")
    assert (done.exit_code, "seconds must be from 0 to 86400" in done.stderr) == (2, True)
