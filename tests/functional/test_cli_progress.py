# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress, as people and as programs see it: one line at any width, all of it JSON, never without an end (E10, E4)."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import struct
import subprocess
import termios
import threading
from pathlib import Path

import command
import lab
import pytest
import schema

from blkmig import cli, stats
from blkmig.cli import display, output, progress, wording

MIB = lab.MIB
SCHEMA = json.loads((Path(display.__file__).parent / "progress.schema.json").read_text())
ROUND = stats.RoundStatistics(number=3, dirty_bytes=MIB, transferred=MIB, seconds=0.01, redirtied_bytes=MIB)


def progressed(**fields: object) -> stats.Progressed:
    values: dict[str, object] = {
        "elapsed": 3725.0,
        "phase": "bulk",
        "percent": 34.5,
        "transferred": 5 << 30,
        "remaining": 1023 * MIB,
        "total": 1 << 40,
        "bandwidth": 112.5 * MIB,
        "dirty_rate": 1000.0 * MIB,
        "expected_downtime": None,
        "round_number": 123,
        "disk_rate": 1000.0 * MIB,
        "time_left": 3599.0,
    }
    return stats.Progressed(**{**values, **fields})  # type: ignore[arg-type]


EVENTS = [
    progressed(),
    progressed(time_left=None, dirty_rate=0.0),
    progressed(phase="dirty", expected_downtime=1234.5),
    progressed(phase="waiting", remaining=0, percent=100.0),
    progressed(phase="switchover"),
    stats.Received(1.0, 5 << 30, 99999, 5, 34, 112.5 * MIB, 12.0, "bulk"),
    stats.Received(1.0, 5 << 30, 99999, 5, 100, 112.5 * MIB, None, "dirty"),
    stats.Received(1.0, 5 << 30, 99999, 5, 100, 0.0, None, "storing"),
    stats.RoundEnded(1.0, ROUND, 1023 * MIB, 1023 * MIB),
    stats.NotConverging(9.0, 1000.0 * MIB, 112.5 * MIB, 1023 * MIB, MIB, 12),
    stats.NotConverging(9.0, 1000.0 * MIB, 112.5 * MIB, 1023 * MIB, MIB, 12, 62.5 * MIB),
    stats.StatusChanged(10.0, "device"),
]


@pytest.mark.parametrize("columns", [40, 41, 60, 70, 80, 99, 100, 132, 300])
@pytest.mark.parametrize("kind", ["plain", "bar"])
def test_each_event_is_one_line_at_any_width(kind: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """E10: from 40 columns on nothing wraps, and the phase, what is left and the time are there."""
    shown: list[str] = []
    monkeypatch.setattr(output.stderr, "columns", lambda: columns)
    monkeypatch.setattr(output.stderr, "line", lambda text, **options: shown.append(text))
    monkeypatch.setattr(output.stderr, "status", lambda text: shown.append(text))
    with progress.reporter(kind) as report:
        assert report is not None
        for event in EVENTS:
            report(event)
    assert all(len(line) <= columns and "\n" not in line for line in shown)
    told = "\n".join(shown)
    for word in ("bulk 34 %", "1023.0 MiB left", "1:02:05", "waiting for the target", "not converging", "storing"):
        assert word in told


def test_words_about_a_migration_that_gets_nowhere() -> None:
    """E10: how fast the writers are, how fast the link is, and what to do."""
    line = wording.not_converging(stats.NotConverging(9.0, 30.0 * MIB, 25.0 * MIB, 50 * MIB, MIB, 3), None)
    assert line == (
        "not converging: the writers dirty 30.0 MiB/s, the link carries 25.0 MiB/s; allow a longer --downtime-limit "
        "(2.0 s would do), more bandwidth, or slow the writers down with --auto-converge"
    )


def test_what_the_writers_write_themselves_is_named() -> None:
    """E11: a guest that writes 30 MiB/s in small pieces dirties 108 MiB/s of blocks, and must know itself in it."""
    event = stats.NotConverging(9.0, 108.0 * MIB, 112.5 * MIB, 50 * MIB, MIB, 3, 30.0 * MIB)
    line = wording.not_converging(event, None)
    assert "the writers write 30.0 MiB/s, which dirties 108.0 MiB/s of whole blocks, the link carries 112.5" in line
    assert "writers 108.0 MiB/s by writing 30.0 MiB/s" in wording.not_converging(event, 120)
    event = dataclasses.replace(event, granule=4096)
    assert "which dirties 108.0 MiB/s in pieces of 4.0 KiB, the link" in wording.not_converging(event, None)


def test_many_short_rounds_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: a manual switchover has rounds of milliseconds until QEMU is ready."""
    shown: list[str] = []
    monkeypatch.setattr(output.stderr, "line", lambda text, **options: shown.append(text))
    report = progress.PlainReporter()
    for number in range(200):
        ended = stats.RoundStatistics(
            number=number, dirty_bytes=MIB, transferred=MIB, seconds=0.01, redirtied_bytes=MIB
        )
        report(stats.RoundEnded(number / 100, ended, MIB, 8 * MIB))
    report(stats.StatusChanged(2.0, "device"))
    assert [line.split("  ")[0] for line in shown] == ["bulk", "rounds 1-100", "rounds 101-199"]


def run_on_terminal(words: list[str], columns: int, folder: Path) -> tuple[int, str]:
    """Run the command with a terminal of so many columns as its stderr; return its exit code and what that got."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(leader, 65536):
                pieces.append(piece)
        except OSError:
            pass  # how a terminal ends

    process = subprocess.Popen(
        command.command(*words), cwd=folder, env=command.environment(), stdout=subprocess.DEVNULL, stderr=follower
    )
    os.close(follower)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        return process.wait(60), b"".join([reader.join(60) or b"", *pieces]).decode()
    finally:
        process.kill()
        reader.join(60)
        os.close(leader)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(os.urandom(MIB) * 24)
    return path


@pytest.mark.parametrize("columns", [40, 100])
def test_a_terminal_shows_no_line_that_wraps(tmp_path: Path, disk: Path, columns: int) -> None:
    """E10: the bar is one line; it is gone when the command has ended."""
    words = ["send", "--progress=bar", "--max-bandwidth=60M", "vda=vda.raw", "file:stream"]
    exit_code, shown = run_on_terminal(words, columns, tmp_path)
    assert exit_code == 0
    pieces = re.split(r"\r\n|\r\x1b\[K", shown)
    assert max(map(len, pieces)) <= columns
    assert any("left" in piece for piece in pieces)
    assert pieces[-1] == ""


def lines(text: str) -> list[dict[str, object]]:
    """Return JSON Lines, each checked against the schema."""
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        schema.check(line, SCHEMA)
    return found


def test_all_of_stderr_is_json_lines_as_documented(tmp_path: Path, disk: Path) -> None:
    """E10: both ends, from the first line to the last, results and errors included."""
    with command.start("receive", "--progress=json", "tcp:127.0.0.1:0", f"vda={tmp_path}/copy.raw") as receiver:
        assert receiver.stderr is not None
        first = receiver.stderr.readline().decode()
        [listening] = lines(first)
        sent = command.run("send", "--progress=json", "--max-bandwidth=60M", f"vda={disk}", str(listening["uri"]))
        received = command.finish(receiver, first.encode())
    assert (sent.exit_code, received.exit_code) == (0, 0), sent.stderr + received.stderr
    kinds = {str(line["event"]) for line in lines(sent.stderr) + lines(received.stderr)}
    # Nobody writes the disk, so it may be that no round ends before the last pass begins.
    assert kinds | {"RoundEnded"} == {
        *("Listening", "StatusChanged", "Progressed", "RoundEnded", "Received", "DisksComplete", "Ended")
    }
    assert [lines(each.stderr)[-1]["event"] for each in (sent, received)] == ["Ended", "Ended"]
    failed = command.run("send", "--progress=json", "-v", f"vda={disk}", "tcp:127.0.0.1:1")
    assert lines(failed.stderr)[-1]["event"] == "Error"
    assert lines(failed.stderr)[-1]["code"] == failed.exit_code == 5
    piped = command.run("send", "--progress=json", f"vda={disk}", "file:/dev/full")
    assert lines(piped.stderr)[-1]["event"] == "Error"
    usage = command.run("receive", "--progress=json")
    assert (lines(usage.stderr)[-1]["kind"], usage.exit_code) == ("UsageError", 2)


@pytest.mark.parametrize("kind", stats.Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_event_of_a_migration_is_documented(kind: type[stats.Event]) -> None:
    """E10: a field that is added to an event has to be added to the schema, too."""
    [documented] = [each for each in SCHEMA["oneOf"] if each["properties"]["event"]["const"] == kind.__name__]
    assert documented["required"] == ["event", *(field.name for field in dataclasses.fields(kind))]


def test_a_result_beside_a_stream_on_stdout_is_json_too(tmp_path: Path, disk: Path) -> None:
    process = command.start("send", "--progress=json", f"vda={disk}", "-")
    stream, err = process.communicate(timeout=60)
    assert stream.startswith(b"QEVM")
    assert [line["event"] for line in lines(err.decode())][-2:] == ["Result", "Ended"]


def test_an_error_for_programs_has_its_fields(capfd: pytest.CaptureFixture[str]) -> None:
    """E10: code, message and what the error knows."""
    assert cli.main(["send", "--progress=json", "/nonexistent", "file:x"]) == 1
    [error] = lines(capfd.readouterr().err)
    assert (error["kind"], error["code"]) == ("DeviceError", 1)
    assert error["fields"] == {
        "doing": "cannot open '/nonexistent'",
        "device": "nonexistent",
        "offset": None,
        "nbytes": None,
        "errno": 2,
    }
