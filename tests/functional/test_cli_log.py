# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service tells: a log for programs, priorities for the journal, options of the environment."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
from pathlib import Path

import command
import lab
import pytest
import schema

from blkmig import errors
from blkmig.cli import display, logfile, output, parser

MIB = lab.MIB
SCHEMA = json.loads((Path(display.__file__).parent / "progress.schema.json").read_text())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(os.urandom(MIB) * 24)
    return path


def lines(path: Path) -> list[dict[str, object]]:
    """Return the lines of a log, each checked against the schema."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in found:
        schema.check(line, SCHEMA)
        assert isinstance(line["time"], float)
    return found


def test_a_log_has_all_of_a_run_and_its_end(tmp_path: Path, disk: Path) -> None:
    """Both ends, beside whatever is shown; a second run is appended."""
    logs = [tmp_path / "in.log", tmp_path / "out.log"]
    with command.receiver(f"unix:{tmp_path}/s", f"--log-json={logs[0]}", f"vda={tmp_path}/copy.raw") as receiver:
        sent = command.run("send", "--json", f"--log-json={logs[1]}", "--max-bandwidth=20M", str(disk), receiver.uri)
        received = receiver.finish()
    assert (sent.exit_code, received.exit_code) == (0, 0), sent.stderr + received.stderr
    came, went = map(lines, logs)
    assert came[0]["event"] == "Listening"
    for found, regular in ((came, "Received"), (went, "Progressed")):
        kinds = [line["event"] for line in found]
        assert kinds[-2:] == ["Result", "Ended"]
        assert [line["status"] for line in found if line["event"] == "StatusChanged"][-1] == "completed"
        assert 1 <= kinds.count(regular) <= 10
        assert [line["time"] for line in found] == sorted(line["time"] for line in found)  # type: ignore[type-var]
    [result] = [line["result"] for line in went if line["event"] == "Result"]
    assert result == sent.result
    failed = command.run("send", f"--log-json={logs[1]}", str(disk), "tcp:127.0.0.1:1")
    again = lines(logs[1])
    assert again[: len(went)] == went
    assert (again[-1]["event"], again[-1]["code"], failed.exit_code) == ("Error", 5, 5)


def test_a_lost_link_and_barriers_are_in_the_log(tmp_path: Path, disk: Path) -> None:
    """Reconnecting and Acknowledged, too: whatever a migration tells its caller."""
    log = logfile.LogFile(str(tmp_path / "log"))
    for event in ("Reconnecting", "Acknowledged", "NotConverging"):
        assert any(each["properties"]["event"]["const"] == event for each in SCHEMA["oneOf"])
    log.put({"event": "Reconnecting", "time": 1.0, "elapsed": 1.0, "why": "gone"})
    log.put({"event": "Acknowledged", "time": 1.0, "elapsed": 1.0, "number": 1})
    assert log.close() == ""
    assert [line["event"] for line in lines(tmp_path / "log")] == ["Reconnecting", "Acknowledged"]


def test_regular_reports_are_one_a_second(tmp_path: Path) -> None:
    log = logfile.LogFile(str(tmp_path / "log"))
    for tenths in range(50):
        log.put({"event": "Received", "elapsed": tenths / 10, "phase": "bulk" if tenths < 25 else "dirty"})
    assert log.close() == ""
    found = [json.loads(line)["elapsed"] for line in (tmp_path / "log").read_text().splitlines()]
    assert found == [0.0, 1.0, 2.0, 2.5, 3.5, 4.5]


def test_a_line_that_was_cut_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"event": "Note"}\n{"event": "No')
    log = logfile.LogFile(str(path))
    log.put({"event": "Note"})
    assert log.close() == ""
    assert path.read_bytes() == b'{"event": "Note"}\n{"event": "No\n{"event": "Note"}\n'


def test_what_is_no_log_is_left_alone(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    for wrong in (disk, tmp_path, tmp_path / "nowhere" / "log", "/dev/null"):
        sent = command.run("send", f"--log-json={wrong}", str(disk), "file:/dev/null")
        assert (sent.exit_code, "--log-json" in sent.stderr) == (2, True), sent.stderr
    assert disk.read_bytes() == before


def test_a_disk_that_is_full_is_a_note(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is done, and its exit code says so."""

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    log = logfile.LogFile(str(tmp_path / "log"))
    monkeypatch.setattr(os, "write", full)
    log.put({"event": "Note"})
    assert log.close() == "No space left on device"


def test_a_file_system_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, write = threading.Event(), os.write
    monkeypatch.setattr(logfile, "CLOSING_SECONDS", 0.0)
    monkeypatch.setattr(logfile, "MOST_BYTES", 100)
    monkeypatch.setattr(os, "write", lambda fd, data: goes_on.wait() and write(fd, data))
    log = logfile.LogFile(str(tmp_path / "log"))
    for _ in range(1000):
        log.put({"event": "Note"})
    assert log.close() == "the file system is slow"
    goes_on.set()


# -- the journal -----------------------------------------------------------------------------------------------------


def journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """Return what the journal is to a service: a socket that is its stderr; the environment says which."""
    ours, theirs = socket.socketpair()
    about = os.fstat(theirs.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
    with theirs:
        words = command.command("send", str(tmp_path / "nothing"), "file:x")
        process = subprocess.run(words, stderr=theirs, env=command.environment(), timeout=60, check=False)
    assert process.returncode == 1
    return ours


def test_the_journal_gets_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal(monkeypatch, tmp_path) as stream:
        said = stream.makefile().read()
    assert said.startswith("<3>blkmig: disk 'nothing': cannot open ")


def test_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1:2", "nonsense", ""):
        monkeypatch.setenv("JOURNAL_STREAM", value)
        assert command.run("send", str(tmp_path / "nothing"), "file:x").stderr.startswith("blkmig: disk ")


def test_each_kind_of_message_has_its_priority(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    about = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
    output.set_up(progress="plain", is_verbose=False)
    error = errors.MigrationError("e")
    error.add_note("n")
    output.print_error(error, 1)
    output.print_note("a note")
    output.print_listening("tcp:x:1")
    logging.getLogger("blkmig.x").warning("w")
    output.stderr.line("progress")
    monkeypatch.delenv("JOURNAL_STREAM")
    output.set_up(progress="plain", is_verbose=False)
    assert capfd.readouterr().err.splitlines() == [
        "<3>blkmig: e", "<3>blkmig: n", "<5>blkmig: a note", "<6>listening on tcp:x:1", "<4>blkmig: w", "<6>progress",
    ]  # fmt: skip


# -- the environment -------------------------------------------------------------------------------------------------


def test_a_unit_says_options_by_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: Path) -> None:
    monkeypatch.setenv("BLKMIG_PROGRESS", "json")
    monkeypatch.setenv("BLKMIG_LOG_JSON", str(tmp_path / "log"))
    monkeypatch.setenv("BLKMIG_REPORT", str(tmp_path / "page.html"))
    sent = command.run("send", str(disk), "file:/dev/null")
    assert sent.exit_code == 0
    assert json.loads(sent.stderr.splitlines()[-1])["event"] == "Ended"
    assert lines(tmp_path / "log")[-1]["event"] == "Ended"
    assert (tmp_path / "page.html").exists()
    assert command.run("send", "--progress=none", str(disk), "file:/dev/null").stderr == ""
    assert command.run("doctor").exit_code == 0, "commands without these options take no notice"
    monkeypatch.setenv("BLKMIG_PROGRESS", "nonsense")
    assert command.run("send", str(disk), "file:/dev/null").exit_code == 2
    monkeypatch.setenv("BLKMIG_PROGRESS", "")
    assert parser.progress_style(["send"]) == "auto"
