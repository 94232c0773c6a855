# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view on a real terminal, read from its screen: its phases, its end, and that no terminal stops the work."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
import termios
import threading
from pathlib import Path

import command
import lab
import pytest
import screens

from blkmig import errors, stats
from blkmig.cli import live, output, progress, view

MIB = lab.MIB
SLOWLY = "--max-bandwidth=10M"


@pytest.fixture
def disks(tmp_path: Path) -> list[str]:
    """Return two disks of random bytes and a hole, of which a slow sender takes a few seconds."""
    words = []
    for name in ("vda", "vdb"):
        path = tmp_path / f"{name}.raw"
        path.write_bytes(os.urandom(12 * MIB))
        os.truncate(path, 16 * MIB)
        words.append(f"{name}={path}")
    return words


def is_under_way(rows: list[str]) -> bool:
    return any("bulk" in row for row in rows) and any("█" in row for row in rows)


def test_phases_and_the_end(tmp_path: Path, disks: list[str]) -> None:
    """While it runs there are the disks and their maps; at its end nothing is left of it, and the cursor is there."""
    terminal = screens.Terminal(80, 24)
    slowly = "--max-bandwidth=4M"  # a busy machine draws every few seconds
    with screens.running(terminal, "send", slowly, *disks, f"file:{tmp_path}/stream") as process:
        rows = terminal.until(is_under_way)
        assert rows[0].startswith("sending 2 disks, 32.0 MiB")
        assert [row[:3] for row in rows if row.startswith("vd")] == ["vda", "vdb"]
        rows = terminal.until(lambda rows: any("100 %" in row and row.startswith("vda") for row in rows))
        assert process.wait(screens.TIMEOUT) == 0
    terminal.finish()
    assert (terminal.rows(), terminal.history()) == ([], [])
    assert terminal.is_cursor_at_begin


def test_the_receiving_end(tmp_path: Path, disks: list[str]) -> None:
    terminal = screens.Terminal(60, 24)
    words = ["receive", f"unix:{tmp_path}/s", "--into", tmp_path / "in"]
    (tmp_path / "in").mkdir()
    with screens.running(terminal, *words) as process:
        terminal.until(lambda rows: "listening" in rows[0] if rows else False)
        with command.start("send", SLOWLY, *disks, f"unix:{tmp_path}/s") as sender:
            rows = terminal.until(lambda rows: any("vdb" in row for row in rows))
            assert "receiving 2 disks" in "\n".join(rows)
            assert process.wait(screens.TIMEOUT) == 0
            command.finish(sender)
    terminal.finish()
    assert terminal.rows() == [f"listening on unix:{tmp_path}/s"[:60]] or len(terminal.rows()) == 2  # it may wrap


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_leave_a_message_and_nothing_else(tmp_path: Path, disks: list[str], number: signal.Signals) -> None:
    terminal = screens.Terminal(80, 24)
    with screens.running(terminal, "send", SLOWLY, *disks, f"file:{tmp_path}/stream") as process:
        terminal.until(is_under_way)
        process.send_signal(number)
        assert process.wait(screens.TIMEOUT) == 128 + number
    terminal.finish()
    assert terminal.rows() == [f"blkmig: cancelled by {number.name}"]
    assert terminal.is_cursor_at_begin


def test_an_error_leaves_a_message_and_nothing_else(tmp_path: Path, disks: list[str]) -> None:
    """The other end dies."""
    terminal = screens.Terminal(200, 24)
    (tmp_path / "in").mkdir()
    receiver = command.Receiver(f"unix:{tmp_path}/s", "--into", tmp_path / "in")
    with screens.running(terminal, "send", SLOWLY, "--reconnect=0", *disks, receiver.uri) as process:
        terminal.until(is_under_way)
        receiver.process.kill()
        assert process.wait(screens.TIMEOUT) == errors.ChannelError.exit_code
    command.finish(receiver.process)
    terminal.finish()
    assert terminal.rows()
    assert all(row.startswith("blkmig: ") for row in terminal.rows()), terminal.show()


def test_a_kill_leaves_the_cursor(tmp_path: Path, disks: list[str]) -> None:
    terminal = screens.Terminal(80, 24)
    with screens.running(terminal, "send", SLOWLY, *disks, f"file:{tmp_path}/stream") as process:
        terminal.until(is_under_way)
        process.kill()
        process.wait(screens.TIMEOUT)
    terminal.finish()
    assert terminal.is_cursor_shown


def test_another_size(tmp_path: Path, disks: list[str]) -> None:
    terminal = screens.Terminal(120, 30)
    with screens.running(terminal, "send", SLOWLY, *disks, f"file:{tmp_path}/stream") as process:
        terminal.until(is_under_way)
        for columns, lines in ((40, 30), (100, 8), (80, 24)):
            terminal.resize(columns, lines)
            terminal.until(lambda rows, columns=columns: any(len(row) == columns - 1 for row in rows))  # type: ignore[misc]
        assert process.wait(screens.TIMEOUT) == 0
    terminal.finish()
    assert terminal.rows() == []


def test_a_terminal_that_goes_away_stops_nothing(tmp_path: Path, disks: list[str]) -> None:
    terminal = screens.Terminal(80, 24)
    with screens.running(terminal, "send", SLOWLY, *disks, f"file:{tmp_path}/stream") as process:
        terminal.until(is_under_way)
        terminal.hang_up()
        assert process.wait(screens.TIMEOUT) == 0
    terminal.finish()


@pytest.mark.parametrize("kind", ["live", "bar"])
def test_a_terminal_that_is_stopped_stops_nothing(tmp_path: Path, disks: list[str], kind: str) -> None:
    """Ctrl-S, and nobody presses Ctrl-Q: the work is done, and the command ends."""
    terminal = screens.Terminal(80, 24)
    termios.tcflow(terminal.follower, termios.TCOOFF)
    words = ["send", SLOWLY, f"--progress={kind}", *disks, f"file:{tmp_path}/stream"]
    with screens.running(terminal, *words) as process:
        assert process.wait(screens.TIMEOUT) == 0
    assert terminal.rows() == []
    terminal.hang_up()


@pytest.mark.parametrize("name", ["vt100", "dumb"])
def test_terminals_that_can_do_less(tmp_path: Path, disks: list[str], name: str) -> None:
    """Without colours it is the same; where no line can be drawn again there are plain lines."""
    terminal = screens.Terminal(80, 24)
    words = ["send", *disks, f"file:{tmp_path}/stream", SLOWLY]
    with screens.running(terminal, *words, env={"TERM": name, "NO_COLOR": "1"}) as process:
        if name != "dumb":
            terminal.until(is_under_way)
        assert process.wait(screens.TIMEOUT) == 0
    terminal.finish()
    is_plain = [row for row in terminal.rows() if "left" in row]
    assert bool(is_plain) == (name == "dumb"), terminal.show()


def test_live_where_it_cannot_be_had(tmp_path: Path, disks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sent = command.run("send", "--progress=live", *disks, f"file:{tmp_path}/stream")
    assert (sent.exit_code, "is no terminal" in sent.stderr) == (2, True)

    class Shown(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Shown())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[live\]'"), progress.reporter("live"):
        pass
    with progress.reporter("auto") as report:
        assert isinstance(report, progress.BarReporter)


# -- in one process --------------------------------------------------------------------------------------------------


def test_a_defect_in_drawing_is_a_note_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said, told = [], threading.Event()
    monkeypatch.setattr(output, "print_note", lambda text: (said.append(text), told.set()))

    def fails(self: view.Screen, encoding: str) -> None:
        raise ValueError("no such terminal")

    monkeypatch.setattr(view.Screen, "__init__", fails)
    with live.LiveReporter() as report:
        assert told.wait(screens.TIMEOUT)
        report(stats.StatusChanged(0.0, "active"))
    assert said == ["the live view has ended, the migration goes on: ValueError: no such terminal"]


def test_no_thread_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    for kind in (live.LiveReporter, progress.BarReporter):
        with kind() as report:
            report(stats.Received(1.0, 5, 1, 0, 1))


def test_frames_take_their_share_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a frame that took long, the next one comes so much later that drawing takes its share at most."""
    waits: list[float] = []
    took = iter([0.0, 0.001, 1.0, 1.1, 2.0, 2.0])

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return len(waits) > 3

    monkeypatch.setattr(live.LiveReporter, "draw", lambda self, screen: None)
    with live.LiveReporter(cpu=lambda: next(took), ended=Ended()):
        pass
    assert waits == [0.0, live.FRAME_SECONDS, pytest.approx(0.1 / live.SHARE), live.FRAME_SECONDS]


def test_nothing_is_drawn_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[object] = []
    monkeypatch.setattr(output.stderr, "frame", lambda *lines: frames.append(lines))
    monkeypatch.setattr(output.stderr, "size", lambda: (80, 24))
    report, screen = live.LiveReporter(), view.Screen(sys.stderr.encoding or "ascii")
    for is_in_background in (True, False):
        monkeypatch.setattr(output.stderr, "is_in_background", lambda found=is_in_background: found)
        report.draw(screen)
        assert bool(frames) != is_in_background
