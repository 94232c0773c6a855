# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody in a hurry types: each message says what happened, where, and what to do next."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import command
import pytest

from blkmig import cli

MIB = 1 << 20


def said(words: list[str], capfd: pytest.CaptureFixture[str], exit_code: int) -> str:
    """Return what the command says of these words, in its last line."""
    assert cli.main(words) == exit_code
    found = capfd.readouterr().err
    assert "Traceback" not in found
    return found.splitlines()[-1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vda.raw").write_bytes(b"x" * MIB)
    Path("folder").mkdir()


@pytest.mark.parametrize("words", [["send", "tcp:host:4444", "vda.raw"], ["send", "vda.raw", "unix:s", "vdb.raw"]])
def test_the_address_comes_last_of_a_sender(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    found = said(words, capfd, 2)
    assert found == (
        f"blkmig: {words[-1]!r} is not an address of a stream, as {words[-2]!r} is: the address comes last, "
        "blkmig send [NAME=]DISK ... URI"
    )


def test_the_address_comes_first_of_a_receiver(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(["receive", "vda=x.raw", "tcp::4444"], capfd, 2) == (
        "blkmig: 'vda=x.raw' is not an address of a stream, as 'tcp::4444' is: the address comes first, "
        "blkmig receive URI [NAME=]DISK ..."
    )


def test_an_address_is_no_url(capfd: pytest.CaptureFixture[str]) -> None:
    for uri in ("tcp://host:4444", "tls://host:4444", "tcp://host"):
        assert "there are no slashes in it: say " in said(["send", "vda.raw", uri], capfd, 2)


def test_an_object_has_no_lines_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert "say one of them" in said(["inspect", "--records", "--json", "vda.raw"], capfd, 2)


@pytest.mark.parametrize(
    "option", ["--downtime-limit", "--timeout", "--idle-timeout", "--connect-timeout", "--reconnect"]
)
def test_seconds_have_no_unit(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = said(["send", "vda.raw", "file:s", option, "300ms"], capfd, 2)
    assert found == f"blkmig: argument {option}: '300ms' is not a number of seconds: say it without a unit"


def test_a_variable_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BLKMIG_PROGRESS", "fancy")
    found = said(["send", "vda.raw", "file:s"], capfd, 2)
    assert found.startswith("blkmig: argument --progress: invalid choice: 'fancy'")
    assert found.endswith(" (BLKMIG_PROGRESS is 'fancy')")


def test_what_a_variable_says_is_named_whatever_is_wrong_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody has typed that option."""
    monkeypatch.setenv("BLKMIG_REPORT", "no/r.html")
    wanted = "blkmig: the environment says --report: BLKMIG_REPORT is 'no/r.html'"
    assert said(["send", "vda.raw", "file:s"], capfd, 2) == wanted
    assert said(["send", "--dry-run", "vda.raw", "file:s"], capfd, 2) == wanted
    assert "BLKMIG" not in said(["send", "--report=not/there", "vda.raw", "file:s"], capfd, 2)
    assert "BLKMIG" not in said(["send", "", "file:s"], capfd, 2)


def test_a_variable_for_the_folder_of_session_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is known to be of no use before anything is opened; a relative path is made absolute before."""
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    for words in (["receive", "tcp:127.0.0.1:0", "vda=t.raw"], ["send", "vda.raw", "file:s"]):
        for path, why in (("none", "No such file"), ("file", "Not a directory")):
            monkeypatch.setenv("BLKMIG_STATE_DIR", path)
            assert cli.main(words) == 2
            found = capfd.readouterr().err
            assert f"session files cannot be in '{tmp_path}/{path}' (--state-dir): {why}" in found
            assert found.endswith(f"the environment says --state-dir: BLKMIG_STATE_DIR is '{path}'\n")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--log-json", "--metrics", "--report"])
@pytest.mark.parametrize(
    "words",
    [
        "send vda.raw file:s {} vda.raw",
        "send vda.raw file:s {} link",
        "send vda.raw,base=folder/b file:s {} folder/b",
        "send vda.raw file:s {} s",
        "receive unix:s new {} new",
        "receive unix:s vda=new {} ./new",
        "receive unix:s vda=vda.raw {} vda.raw",
        "receive file:vda.raw a=new {} vda.raw",
        "receive unix:s --map 0=new {} new",
        "receive unix:s --delta vda=vda.raw vda=new {} link",
    ],
)
def test_a_file_of_the_commands_own_is_no_disk(words: str, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A4: neither is written into the other; at the end, after hours, it would be too late to say so."""
    Path("link").symlink_to("vda.raw")
    Path("folder/b").touch()
    there = sorted(path for path in Path().rglob("*") if path.name not in ("new", "s"))
    found = said(words.format(option).split(), capfd, 2)
    assert "are the same file: give each a file of its own" in found or "something else is there" in found
    assert Path("vda.raw").read_bytes() == b"x" * MIB
    assert sorted(path for path in Path().rglob("*") if path.name not in ("new", "s")) == there


def test_two_files_of_the_commands_own_are_two(capfd: pytest.CaptureFixture[str]) -> None:
    assert "are the same file" in said(["send", "vda.raw", "file:s", "--report=r", "--metrics=./r"], capfd, 2)
    assert "are the same file" in said(["receive", "tls::0", "v=t", "--token-file=t"], capfd, 2)
    assert not Path("r").exists()
    assert not Path("t").exists()


def test_a_folder_is_no_disk(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(["send", "folder", "file:s"], capfd, 1) == (
        "blkmig: disk 'folder': cannot open 'folder': it is a folder, not a file or a block device"
    )
    assert said(["receive", "unix:s", "folder"], capfd, 1) == (
        "blkmig: disk 'number 0': cannot open 'folder': it is a folder: name a file in it, or say --into 'folder' for "
        "all disks of the stream"
    )


def test_a_folder_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(["receive", "unix:s", "vda=not/there/x.raw"], capfd, 1) == (
        "blkmig: disk 'vda': cannot create 'not/there/x.raw': its folder does not exist: make it first"
    )


def both(receive: list[str], send: list[str], *, limit: str = "") -> tuple[command.Outcome, command.Outcome]:
    """Run both ends, the receiver below a `limit` of its shell; return what the sender and the receiver say."""
    line = f"{limit}; exec {shlex.join(command.command('receive', 'unix:s', *receive))}"
    receiver = subprocess.Popen(
        ["bash", "-c", line.removeprefix("; ")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=command.environment(),
    )
    assert receiver.stderr is not None
    first = receiver.stderr.readline()
    sent = command.run("send", *send, "unix:s")
    return sent, command.finish(receiver, first)


def test_a_target_of_another_name() -> None:
    for end in both(["vdX=x.raw"], ["vda.raw"]):
        assert end.exit_code == 1
        assert "the stream holds a disk 'vda', but targets were given for 'vdX': say vda=PATH" in end.stderr


def test_a_target_that_is_too_small() -> None:
    Path("x.raw").write_bytes(b"x" * 512)
    for end in both(["vda=x.raw"], ["vda.raw"]):
        assert end.exit_code == 1
        assert "nothing was written; give it a larger one, or remove it and receive again" in end.stderr


def test_a_receiver_that_does_not_verify() -> None:
    """The sender does not say that anything was verified."""
    sent, came = both(["vda=x.raw"], ["--verify", "vda.raw"])
    assert (sent.exit_code, came.exit_code) == (0, 0)
    assert "verified      the target does that if it was told to (receive --verify)" in sent.stdout
    assert "verified" not in came.stdout


def test_rounds_in_which_nothing_is_sent_are_not_told() -> None:
    """While the target compares, the sender goes on with rounds; nobody has written."""
    sent, came = both(["--verify", "vda=x.raw"], ["--verify", "vda.raw"])
    assert (sent.exit_code, came.exit_code) == (0, 0)
    assert "dirty rounds  0\n" in sent.stdout
    assert "round" not in sent.stderr


def test_one_pack_is_one() -> None:
    with Path("vda.raw").open("wb") as file:
        file.truncate(MIB)
        os.pwrite(file.fileno(), b"x", 0)
    sent, came = both(["vda=x.raw"], ["vda.raw"])
    assert "in 1 block, 1 zero, and 1 pack\n" in sent.stdout
    assert "1.0 MiB, 1 block, 1 zero, 4.0 KiB in 1 pack\n" in came.stdout
