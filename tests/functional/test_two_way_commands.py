# SPDX-License-Identifier: GPL-2.0-or-later
"""exec: and the standard streams both ways: a blkmig at the other end answers, and whoever cannot is not waited for."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import command
import pytest
from faulty import is_free
from pauses import disk_of

import blkmig
from blkmig import errors
from blkmig.channel import uri
from blkmig.migration import questions

MIB = 1 << 20
CONTENT = b"x" * 3 * MIB


def blkmig_words(*words: str) -> str:
    """Return the command of a blkmig, for a shell."""
    return shlex.join(command.command(*words))


def receiving(target: Path, *options: str) -> str:
    return blkmig_words("receive", "-", f"d={target}", *options)


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_blkmig_that_receives_answers(tmp_path: Path, writers_after: str) -> None:
    sent = blkmig.send([disk_of(3)], f"exec:{receiving(tmp_path / 't.raw')}", writers_after=writers_after)
    assert sent.format == "blkmig"
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


def test_a_blkmig_that_sends_is_answered(tmp_path: Path) -> None:
    (tmp_path / "s.raw").write_bytes(CONTENT)
    came = blkmig.receive(f"exec:{blkmig_words('send', f'd={tmp_path}/s.raw', '-')}", {"d": tmp_path / "t.raw"})
    assert came.format == "blkmig"
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


def test_results_do_not_go_where_the_answers_go(tmp_path: Path) -> None:
    """On a socket that is standard input and output, they are shown on standard error."""
    errors_of_it = tmp_path / "stderr"
    receiver = f"{receiving(tmp_path / 't.raw', '--json', '--progress=none')} 2>{errors_of_it}"
    blkmig.send([disk_of(3)], f"exec:{receiver}")
    assert json.loads(errors_of_it.read_text())["format"] == "blkmig"


def test_a_refusal_comes_back(tmp_path: Path) -> None:
    (tmp_path / "t.raw").write_bytes(b"too small")
    with pytest.raises(errors.TargetFailed, match=r"does not take disk 'd': .*too small"):
        blkmig.send([disk_of(3)], f"exec:{receiving(tmp_path / 't.raw')}")
    assert (tmp_path / "t.raw").read_bytes() == b"too small"


def test_what_becomes_of_the_command_after_its_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The target is complete then, and no writer is held for the rest."""
    sent = blkmig.send([disk_of(3)], f"exec:{receiving(tmp_path / 't.raw')}; exit 9", writers_after="refuse")
    assert sent.status == "completed"
    assert "has said that it has everything; and then: closing: the command ended with exit status 9" in caplog.text


def test_what_becomes_of_a_command_whose_disks_were_taken(tmp_path: Path) -> None:
    """They are here, so it is told, and is no failure."""
    (tmp_path / "s.raw").write_bytes(CONTENT)
    sender = f"exec:{blkmig_words('send', f'd={tmp_path}/s.raw', '-', '--move')}; exit 9"
    came = blkmig.receive(sender, {"d": tmp_path / "t.raw"})
    assert came.status == "completed"
    assert "the disks are here, but: closing: the command ended with exit status 9" in "\n".join(came.notes)
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


@pytest.mark.parametrize("moment", ["await_reply", "begin_end"])
def test_a_command_is_not_run_again_to_say_that_nobody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It would be another receiver, which has not heard of this migration, and says so on the terminal."""

    def gives_up(*_args: object) -> None:
        raise errors.Cancelled("given up")

    monkeypatch.setattr(questions.Questions, moment, gives_up)
    command_line = f"echo run >>{tmp_path}/runs; {receiving(tmp_path / 't.raw')} 2>>{tmp_path}/stderr"
    with pytest.raises(errors.Cancelled):
        blkmig.send([disk_of(3)], f"exec:{command_line}")
    assert (tmp_path / "runs").read_text() == "run\n"
    assert "not a migration stream" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("section", ["auto", "block", "blkmig"])
def test_who_cannot_answer_is_sent_to_as_through_a_pipe(
    tmp_path: Path, section: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its standard input is a pipe; what it prints is passed on, as its standard error is."""
    caplog.set_level(logging.WARNING, "blkmig")
    uri = f"exec:cat | {receiving(tmp_path / 't.raw', '--json')}"
    sent = blkmig.send([disk_of(3)], uri, connect_timeout=0.05, format=section)
    assert sent.format == ("blkmig" if section == "blkmig" else "block")
    assert '"status": "completed"' in caplog.text
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


def test_a_command_that_ends_early() -> None:
    disk = disk_of(3)
    with pytest.raises(errors.ChannelError, match="the command ended with exit status 3") as caught:
        blkmig.send([disk], "exec:: blkmig receive - ; exit 3")
    assert caught.value.exit_code == 5
    assert is_free(disk)


def test_other_commands_have_a_pipe(tmp_path: Path) -> None:
    sent = blkmig.send([disk_of(3)], f"exec:cat /dev/stdin >{tmp_path}/stream")
    assert sent.format == "block"
    blkmig.receive(f"exec:cat {tmp_path}/stream", {"d": tmp_path / "t.raw"})
    assert (tmp_path / "t.raw").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("text", "writing", "reading"),
    [
        ("ssh dest blkmig receive - --into /srv", True, False),
        ("ssh dest 'cd /srv && python3 -m blkmig -v receive - d=x'", True, False),
        ("ssh dest blkmig send vda.raw -", False, True),
        ("cat > /srv/blkmig/receive/stream", False, False),
        ("gzip > blkmig.gz; echo receive ", False, False),
        ("cat /srv/blkmig send", False, False),
        ("receive - blkmig", False, False),
        ("ssh dest socat - UNIX:incoming", False, False),
    ],
)
def test_commands_that_say_that_they_answer(text: str, writing: bool, reading: bool) -> None:
    address = uri.ExecAddress(text)
    assert (address.is_answered(writing=True), address.is_answered(writing=False)) == (writing, reading)
